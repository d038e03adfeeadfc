"""One page of HTML that holds everything: it loads nothing, and opens from a file."""

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from fedsim.disk import check_own_folder, write_atomically
from fedsim.report.cluster_figures import clusters_of, draw_clusters
from fedsim.report.comparison import Comparison, cells, notes, table_csv
from fedsim.report.drawing import Picture, drawing, picture, read_picture
from fedsim.report.figures import figures_of
from fedsim.report.page_style import CSS
from fedsim.report.reading import AFTER_AGGREGATION, Run, find_runs
from fedsim.report.run_figures import draw_run
from fedsim.report.run_tables import Sheet, tables_of
from fedsim.report.several import Rows, draw_several, rows_of
from fedsim.report.summary import SIMULATED
from fedsim.report.table import discoveries

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a browser may do for the page: use the styles and images that are inside."""
SECTIONS = {
    "Curves": ("curve", "loss"),
    "Clients": ("clients", "models"),
    "Stages": ("tiers", "stages"),
    "Clusters": ("clusters", "similarity", "contingency"),
    "Cost": ("bytes", "seconds", "utilisation"),
}
"""Which figures and tables stand together, by how their names begin; the run's own figures come before the cost."""
CARDS = {
    "mean": "global.mean",
    "10th percentile": "global.p10",
    "worst client": "global.worst",
    "mean after training": "personal.mean",
    "unseen, untuned": "unseen.untuned.mean",
    "unseen, tuned": "unseen.tuned.mean",
}


@dataclass(frozen=True)
class Files:
    """Where figures and tables are kept beside the page, and under which prefix those of one run."""

    folder: Path
    prefix: str = ""

    def keep(self, part: Picture | Sheet) -> str:
        """Write a part's files and return it as HTML."""
        part = replace(part, name=safe_name(f"{self.prefix}{part.name}"))
        part.save(self.folder)
        return part.html(self.folder.name) if isinstance(part, Picture) else part.html()


def write_report(paths: Sequence[Path], to: Path, reference: str | None = None) -> Path:
    """Write the report of all runs in some folders to the page `to`, and its figures and tables beside it.

    The folder beside it is called like the page. Raises ValueError when a folder holds no run, before anything is
    written.
    """
    if to.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--to is '{to}'; the name of a page ends in .html.")
    runs = find_runs(paths)
    rows = rows_of(runs) if len(runs) > 1 else None
    comparison = rows.comparison(reference) if rows else None
    files = Files(to.parent / f"{to.stem}-files")
    check_own_folder(files.folder)
    files.folder.mkdir(parents=True, exist_ok=True)
    with drawing():
        if rows and comparison:
            body = "\n".join(_several(rows, comparison, files))
            for run in runs:
                own = replace(files, prefix=f"{run.name.replace('/', '-')}-")
                body += (
                    f'<details><summary>{escape(run.name)} <span class="soft">{escape(run.status)}</span></summary>'
                    f"{''.join(_one(run, own))}</details>"
                )
        else:
            body = "\n".join(_one(runs[0], files))
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    write_atomically(to, _page(title, body).encode())
    return to


def _page(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)} · fedsim</title><style>{CSS}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1></header><main>{body}</main>"
        '<footer class="soft">fedsim. This page is complete: it loads nothing from elsewhere.</footer></body></html>\n'
    )


def _one(run: Run, files: Files) -> Iterator[str]:
    """The parts of a page about one run."""
    kind = "status" if run.finished else "status going"
    yield f'<p><span class="{kind}">{escape(run.status)}</span> <span class="soft">{escape(_facts(run))}</span></p>'
    yield _cards(run)
    found = [line for line in discoveries(run.result) if not line.startswith("best round")] + _best(run)
    yield "".join(f"<p>{escape(line[0].upper() + line[1:])}.</p>" for line in found)
    parts: list[Picture | Sheet] = [*draw_run(run), *draw_clusters(run), *tables_of(run, clusters_of(run))]
    for title, names in SECTIONS.items():
        if title == "Cost":
            yield _section("Found out by the run", run_figures(run), files)
        yield _section(title, [part for part in parts if part.name.startswith(names)], files)
    recipe = escape(json.dumps(run.recipe, indent=1, ensure_ascii=False))
    yield f"<details><summary>Recipe, as resolved</summary><pre>{recipe}</pre></details>"


def run_figures(run: Run) -> list[Picture]:
    """Return the figures that the run left in its folder, and those that it has not drawn, not yet, or not whole."""
    left = {path.stem: read_picture(path, f"run-{path.stem}") for path in sorted(run.path.glob("*.svg"))}
    found = {name: figure for name, figure in left.items() if figure}
    for name, figure in figures_of(run.events, found.keys()).items():
        title = name.capitalize()
        found[name] = picture(figure, f"run-{name}", title, f"{title} of this run", True)
    return list(found.values())


def _section(title: str, parts: Sequence[Picture | Sheet], files: Files) -> str:
    if not parts:
        return ""
    figures = "".join(files.keep(part) for part in parts if isinstance(part, Picture))
    tables = "".join(files.keep(part) for part in parts if isinstance(part, Sheet))
    drawn = f'<div class="figures">{figures}</div>' if figures else ""
    return f"<section><h2>{title}</h2>{drawn}{tables}</section>"


def _several(rows: Rows, comparison: Comparison, files: Files) -> Iterator[str]:
    """The parts of a page that compare runs: the table and what it means, then curves."""
    going = [run for runs in rows.runs.values() for run in runs if not run.finished]
    for run in going:
        yield f'<p><span class="status going">{escape(run.name)}: {escape(run.status)}</span></p>'
    header, body = cells(comparison)
    sheet = Sheet("comparison", header, body)
    text = files.keep(sheet)
    write_atomically(files.folder / "comparison-all.csv", table_csv(comparison).encode())
    untested = [f"Not tested for differences: {rows.untested}."] if rows.untested else []
    remarks = "".join(f'<p class="soft">{escape(line)}</p>' for line in [*notes(comparison), *untested])
    yield f"<section><h2>Comparison</h2>{text}{remarks}</section>"
    yield _section("Curves", list(draw_several(rows)), files)
    yield "<h2>Every run</h2>"


def _facts(run: Run) -> str:
    """Method, seed, clients, device and revision, in a line."""
    environment = run.recipe.get("environment", {})
    title = run.recipe.get("method_name", run.recipe.get("method", ""))
    seen, unseen = (len(run.latest(evaluation)) for evaluation in (AFTER_AGGREGATION, "unseen_untuned"))
    facts = [f"method {title}"] if isinstance(title, str) and title else []
    facts += [f"seed {run.seed}"]
    facts += [f"{seen} seen clients" + (f", {unseen} unseen" if unseen else "")] if seen else []
    facts += [f"workers {environment['workers']}"] if "workers" in environment else []
    facts += [str(environment[name]) for name in ("device", "precision") if name in environment]
    facts += [f"revision {environment['git'][:10]}"] if environment.get("git") else []
    return " · ".join(facts)


def _best(run: Run) -> list[str]:
    """The best round by mean, counted from 1 as everywhere on the page."""
    best = [
        f"{title} {run.summary[f'{name}.best.mean']:.3f} in round {int(run.summary[f'{name}.best.round']) + 1}"
        for name, title in (("global", "after aggregation"), ("personal", "after training"))
        if f"{name}.best.mean" in run.summary
    ]
    return [f"best mean {' and '.join(best)}"] if best else []


def _cards(run: Run) -> str:
    shown = {f"{title}": run.summary[key] for title, key in CARDS.items() if key in run.summary}
    texts = {title: f'<data value="{float(value)!r}">{value:.3f}</data>' for title, value in shown.items()}
    for way in ("up", "down"):
        if f"bytes.{way}" in run.summary:
            texts[f"MB {way}"] = f"{run.summary[f'bytes.{way}'] / 1e6:.2f}"
    for title, key in {"seconds": "seconds", "simulated seconds": SIMULATED, "dropped out": "dropped"}.items():
        if key in run.summary:
            texts[title] = f"{run.summary[key]:.0f}"
    inside = "".join(f"<div><dt>{escape(title)}</dt><dd>{text}</dd></div>" for title, text in texts.items())
    return f'<dl class="cards">{inside}</dl>'


def safe_name(text: str) -> str:
    """Return a text as a file's name: up to 80 ASCII letters, digits and -_. that begin with no dot.

    One that has to be changed bears a checksum, so that it stays another than its like.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]|^\.", "-", text)[:80]
    return name if name == text else f"{name}-{zlib.crc32(text.encode(errors='replace')):08x}"
