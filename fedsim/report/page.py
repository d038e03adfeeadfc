"""One page of HTML that holds everything: it loads nothing, and opens from a file."""

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from markupsafe import Markup

from fedsim.report.cluster_figures import clusters_of, draw_clusters
from fedsim.report.comparison import Comparison, cells, notes, table_csv
from fedsim.report.drawing import Picture, drawing, picture, read_picture
from fedsim.report.figures import figures_of
from fedsim.report.how_to_read import how_to_read
from fedsim.report.page_template import render, whole_page
from fedsim.report.reading import GLOBAL, Run, find_runs
from fedsim.report.run_figures import draw_run
from fedsim.report.run_tables import Sheet, tables_of
from fedsim.report.several import Rows, draw_differences, draw_several, rows_of
from fedsim.report.summary import EPSILONS, SIMULATED
from fedsim.report.table import discoveries
from fedsim.storage.disk import check_own_folder, write_atomically

SECTIONS = {
    "Curves": ("curve", "loss"),
    "Clients": ("clients", "participation", "models"),
    "Stages": ("tiers", "stages"),
    "Clusters": ("clusters", "similarity", "contingency"),
    "Found out by the run": ("run-",),
    "Cost": ("bytes", "seconds", "utilisation", *EPSILONS),
}
"""Which figures and tables stand together, by how their names begin, after the split of the data."""
SPLIT = "run-split"
NAMED = 6
"""Methods that a page is called by; of more their number."""
CARDS = {
    "mean": "global.mean",
    "10th percentile": "global.p10",
    "worst client": "global.worst",
    "mean of personal models": "personal.mean",
    "unseen, untuned": "unseen.untuned.mean",
    "unseen, tuned": "unseen.tuned.mean",
}


@dataclass(frozen=True)
class Files:
    """Where figures and tables are kept beside the page, and under which prefix those of one run."""

    folder: Path
    prefix: str = ""
    kept: list[Picture | Sheet] = field(default_factory=list)

    def keep(self, part: Picture | Sheet) -> Markup:
        """Remember a part, whose files are written when all is made, and return it as HTML."""
        if isinstance(part, Picture):
            part = replace(part, how=how_to_read(part.name))
        part = replace(part, name=safe_name(f"{self.prefix}{part.name}"))
        self.kept.append(part)
        return part.html(self.folder.name) if isinstance(part, Picture) else part.html()

    def write(self) -> None:
        """Write the files of all parts; raises ValueError where their folder is a link."""
        check_own_folder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in self.kept:
            part.save(self.folder)


def write_report(paths: Sequence[Path], to: Path, reference: str | None = None) -> Path:
    """Write the report of all runs in some folders to the page `to`, and its figures and tables beside it.

    The folder beside it is called like the page. Raises ValueError when a folder holds no run, or what no run writes,
    before anything is written.
    """
    if to.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--to is '{to}'; the name of a page ends in .html.")
    runs = find_runs(paths)
    files = Files(to.parent / f"{to.stem}-files")
    check_own_folder(files.folder)
    numbers = ""
    with drawing():
        if len(runs) > 1:
            with reading(*runs):
                rows = rows_of(runs)
                comparison = rows.comparison(reference)
                numbers, body = table_csv(comparison), _several(rows, comparison, files)
            for run in runs:
                own = replace(files, prefix=f"{run.name.replace('/', '-')}-")
                body += render("folded", name=run.name, status=run.status, body=_one(run, own))
        else:
            body = _one(runs[0], files)
    files.write()
    if numbers:
        write_atomically(files.folder / "comparison-all.csv", numbers.encode(errors="replace"))
    write_atomically(to, whole_page(*_title(runs), body).encode(errors="replace"))
    return to


def _title(runs: Sequence[Run]) -> tuple[str, str]:
    """The methods and their data; and the backbone, which runs these are, and when the last row was written."""
    with reading(*runs):
        methods, data, backbones = (
            list(dict.fromkeys(filter(None, (getattr(run, name) for run in runs))))
            for name in ("method", "data", "backbone")
        )
        seeds = list(dict.fromkeys(run.seed for run in runs))
        title = ", ".join(methods) if len(methods) <= NAMED else f"{len(methods)} methods"
        title = (title or runs[0].name) + (f" on {', '.join(data)}" if data else "")
        about = [f"backbone {', '.join(backbones)}"] if backbones else []
        about += [f"run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs"]
        about += [f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"] if len(runs) > 1 else []
        return title, " · ".join([*about, max(run.date for run in runs)])


@contextmanager
def reading(*runs: Run) -> Iterator[None]:
    """Name the run folders where what they hold cannot be made sense of, whatever it is: they may be a stranger's."""
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        named = ", ".join(f"'{run.path}'" for run in runs[:4]) + (", …" if len(runs) > 4 else "")
        why = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"No report can be made of {named}: {why}") from error


def _one(run: Run, files: Files) -> Markup:
    """The part of a page about one run."""
    with reading(run):
        found = [line for line in discoveries(run.result) if not line.startswith("best round")] + _best(run)
        own = run_figures(run)
        parts: list[Picture | Sheet] = [*draw_run(run), *draw_clusters(run), *tables_of(run, clusters_of(run))]
        parts += [part for part in own if part.name != SPLIT]
        sections = [
            _section(title, [part for part in parts if part.name.startswith(names)], files)
            for title, names in SECTIONS.items()
        ]
        return render(
            "run",
            is_finished=bool(run.finished),
            status=run.status,
            facts=_facts(run),
            cards=_cards(run),
            split=_section("Split of the data", [part for part in own if part.name == SPLIT], files),
            found=[line[0].upper() + line[1:] for line in found],
            sections=sections,
            recipe=json.dumps(run.recipe, indent=1, ensure_ascii=False),
        )


def run_figures(run: Run) -> list[Picture]:
    """Return the figures that the run left in its folder, and those that it has not drawn, not yet, or not whole."""
    left = {path.stem: read_picture(path, f"run-{path.stem}") for path in sorted(run.path.glob("*.svg"))}
    found = {name: figure for name, figure in left.items() if figure}
    for name, figure in figures_of(run.events, found.keys()).items():
        title = name.capitalize()
        found[name] = picture(figure, f"run-{name}", title, f"{title} of this run", True)
    return list(found.values())


def _section(title: str, parts: Sequence[Picture | Sheet], files: Files, remarks: Sequence[str] = ()) -> Markup:
    if not parts:
        return Markup()
    figures = [files.keep(part) for part in parts if isinstance(part, Picture)]
    tables = [files.keep(part) for part in parts if isinstance(part, Sheet)]
    return render("section", title=title, figures=figures, tables=tables, remarks=remarks)


def _several(rows: Rows, comparison: Comparison, files: Files) -> Markup:
    """The part of a page that compares runs: the table and what it means, then curves."""
    going = [f"{run.name}: {run.status}" for runs in rows.runs.values() for run in runs if not run.finished]
    remarks = notes(comparison) + ([f"Not tested for differences: {rows.untested}."] if rows.untested else [])
    header, lines = cells(comparison)
    first = ["method", "mean", *header[-3:]]  # so that a narrow page shows the verdict
    shown = [*first, *(column for column in header if column not in first)]
    rows_shown = [[line[header.index(column)] for column in shown] for line in lines]
    sheet = Sheet("comparison", shown, rows_shown)
    table = _section("Comparison", [*draw_differences(comparison), sheet], files, remarks)
    return render("several", going=going, sections=[table, _section("Curves", list(draw_several(rows)), files)])


def _facts(run: Run) -> str:
    """Method, seed, clients, device and revision, in a line."""
    environment = run.recipe.get("environment", {})
    seen, unseen = (len(run.latest(evaluation)) for evaluation in (GLOBAL, "unseen.untuned"))
    facts = [f"method {run.method}"] if run.method else []
    facts += [f"seed {run.seed}"]
    facts += [f"{seen} seen clients" + (f", {unseen} unseen" if unseen else "")] if seen else []
    facts += [f"workers {environment['workers']}"] if "workers" in environment else []
    facts += [str(environment[name]) for name in ("device", "precision") if name in environment]
    facts += [f"revision {environment['git'][:10]}"] if environment.get("git") else []
    return " · ".join(facts)


def _best(run: Run) -> list[str]:
    """The best round by mean."""
    best = [
        f"{title} {run.summary[f'{name}.best.mean']:.3f} in round {int(run.summary[f'{name}.best.round'])}"
        for name, title in (("global", "of global models"), ("personal", "of personal models"))
        if f"{name}.best.mean" in run.summary
    ]
    return [f"best mean {' and '.join(best)}"] if best else []


def _cards(run: Run) -> list[tuple[str, str, str | None]]:
    """Titles, texts and, where these are rounded, whole numbers."""
    shown = {title: float(run.summary[key]) for title, key in CARDS.items() if key in run.summary}
    texts: list[tuple[str, str, str | None]] = [(title, f"{value:.3f}", repr(value)) for title, value in shown.items()]
    for way in ("up", "down"):
        if f"bytes.{way}" in run.summary:
            texts.append((f"MB {way}", f"{run.summary[f'bytes.{way}'] / 1e6:.2f}", None))
    for title, key in {"seconds": "seconds", "simulated seconds": SIMULATED, "dropped out": "dropped"}.items():
        if key in run.summary:
            texts.append((title, f"{run.summary[key]:.0f}", None))
    for key in filter(run.summary.__contains__, EPSILONS):
        epsilon, whose = float(run.summary[key]), EPSILONS[key]
        texts.append((f"{whose} at δ {float(run.summary['delta']):.3g}", f"{epsilon:.3g}", repr(epsilon)))
    return texts


def safe_name(text: str) -> str:
    """Return a text as a file's name: up to 80 ASCII letters, digits and -_. that begin with no dot.

    One that has to be changed bears a checksum, so that it stays another than its like.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]|^\.", "-", text)[:80]
    return name if name == text else f"{name}-{zlib.crc32(text.encode(errors='replace')):08x}"
