"""Tables for the terminal: what a run says, several runs side by side."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from fedsim.report.summary import EPSILONS, Result, evaluated_in_words

COLUMNS = {
    "mean": "global.mean",
    "p10": "global.p10",
    "worst": "global.worst",
    "std": "global.std",
    "personal\nmean": "personal.mean",
    "personal\np10": "personal.p10",
    "unseen\nuntuned": "unseen.untuned.mean",
    "unseen\ntuned": "unseen.tuned.mean",
}
WIDEST = 10_000
"""Columns in which any table is whole."""


def print_result(result: Result) -> None:
    """Print the table of one run, what its method discovered, where the rest is and, last, the digest."""
    console = Console(width=None if Console().is_terminal else 120)
    metric, name = result.summary.get("metric", "accuracy"), result.folder.name
    row = [_number(result, key) for key in COLUMNS.values()]
    row += [f"{result.summary[f'bytes.{way}'] / 1e6:.2f}" for way in ("up", "down")]
    row.append(f"{result.summary['seconds']:.0f}")
    header = ["run", *COLUMNS, "MB up", "MB down", "seconds"]
    told = {title: f"{result.summary[key]:.3g}" for key, title in EPSILONS.items() if key in result.summary}
    header, row = [*header, *told], [*row, *told.values()]
    console.print(f"{metric.capitalize()} over clients, each on its own test split", highlight=False)
    print_table(console, header, [[name, *row]])
    console.print(
        "mean, p10, worst, std: global models of seen clients, after aggregation. personal: after their own training. "
        "unseen: clients that took no part, untuned as handed out, tuned on their own data.",
        highlight=False,
    )
    for line in discoveries(result):
        console.print(f"{name}: {line}", highlight=False)
    print_end(console, result.folder, result.digest)


def print_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows as a table where its numbers fit the terminal whole, else each as a block of lines, name and value."""
    table = Table()
    for index, column in enumerate(header):
        table.add_column(column.replace(", ", "\n"), justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    wide = console.options.update(max_width=WIDEST)
    if Measurement.get(console, wide, table).maximum <= console.width:
        console.print(table, highlight=False)
        return
    names = [column.replace("\n", " ") for column in header[1:]]
    width = max(map(len, names))
    for first, *others in rows:
        lines = [first, *(f"  {name:{width}}  {value}" for name, value in zip(names, others, strict=True))]
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def print_end(console: Console, folder: Path, digest: str) -> None:
    """Print where the results are and what shows them, then the digest."""
    console.print(f"results  {folder}", markup=False, highlight=False, soft_wrap=True)
    report = shlex.join(["python", "-m", "fedsim.report", str(folder)])
    console.print(f"report   {report}", markup=False, highlight=False, soft_wrap=True)
    print(f"digest {digest}", flush=True)


def discoveries(result: Result) -> list[str]:
    """Return sentences about stages, clusters, routing and privacy, where the run has them."""
    summary, lines = result.summary, []
    stages = [key.split(".")[1] for key in summary if key.startswith("stage.") and key.endswith(".mean")]
    if len(stages) > 1:
        tiers = [f"{s} {summary[f'stage.{s}.mean']:.3f} ± {summary[f'stage.{s}.std']:.3f}" for s in stages]
        metric = summary.get("metric", "accuracy")
        lines.append(f"{metric} at the end of each stage (mean ± std over clients): " + " → ".join(tiers))
    if "clusters.count" in summary:
        ari = (
            f", adjusted Rand index against domains {summary['clusters.ari']:.2f}" if "clusters.ari" in summary else ""
        )
        count = round(summary["clusters.count"])
        lines.append(f"{count} clusters{ari}" if count > 1 else "1 cluster: nothing was split, so it tests no split")
    checks = {"": "with their own direction left out of it", "_with_own": "with what they trained in it"}
    routed = {words: summary.get(f"unseen.routing_agreement{key}") for key, words in checks.items()}
    if known := [f"{share:.0%} {words}" for words, share in routed.items() if share is not None]:
        lines.append(f"seen clients routed to their own cluster: {', '.join(known)}")
    for whose, key in zip(("clients", "samples"), EPSILONS, strict=True):
        if key in summary:
            lines.append(f"differential privacy of {whose}: ε {summary[key]:.3g} at δ {summary['delta']:.3g}")
    if few := evaluated_in_words(summary):
        lines.append(few)
    best = [
        f"{name} {summary[f'{name}.best.mean']:.3f} (round {summary[f'{name}.best.round']:.0f})"
        for name in ("global", "personal")
        if f"{name}.best.mean" in summary
    ]
    return [*lines, "best round by mean: " + ", ".join(best)] if best else lines


def _number(result: Result, key: str) -> str:
    value = result.summary.get(key)
    return "–" if value is None else f"{value:.3f}"
