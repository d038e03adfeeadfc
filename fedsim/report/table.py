"""Tables for the terminal: what a run says, several runs side by side."""

from rich.console import Console
from rich.table import Table

from fedsim.report.summary import Result

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


def print_result(result: Result) -> None:
    """Print the table of one run and what its method discovered, then its digest as the last line."""
    console = Console(width=None if Console().is_terminal else 120)
    metric, name = result.summary.get("metric", "accuracy"), result.folder.name
    table = Table(title=f"{metric.capitalize()} over clients, each on its own test split", title_justify="left")
    table.add_column("method")
    for column in (*COLUMNS, "MB up", "MB down", "seconds"):
        table.add_column(column, justify="right")
    row = [_number(result, key) for key in COLUMNS.values()]
    row += [f"{result.summary[f'bytes.{way}'] / 1e6:.2f}" for way in ("up", "down")]
    table.add_row(name, *row, f"{result.summary['seconds']:.0f}")
    console.print(table)
    console.print(
        "mean, p10, worst, std: global models of seen clients, after aggregation · personal: after their own training\n"
        "unseen: clients that took no part · untuned: as handed out · tuned: after tuning on their own data",
        highlight=False,
    )
    for line in discoveries(result):
        console.print(f"{name}: {line}", highlight=False)
    print(f"digest {result.digest}", flush=True)


def discoveries(result: Result) -> list[str]:
    """Return sentences about stages, clusters and routing, where the run has them."""
    summary, lines = result.summary, []
    stages = [key.split(".")[1] for key in summary if key.startswith("stage.") and key.endswith(".mean")]
    if len(stages) > 1:
        tiers = [f"{s} {summary[f'stage.{s}.mean']:.3f} ± {summary[f'stage.{s}.std']:.3f}" for s in stages]
        metric = summary.get("metric", "accuracy")
        lines.append(f"{metric} at the end of each stage (mean ± std over clients): " + " → ".join(tiers))
    if "clusters.count" in summary:
        ari = (
            f", adjusted Rand index against natural groups {summary['clusters.ari']:.2f}"
            if "clusters.ari" in summary
            else ""
        )
        lines.append(f"{summary['clusters.count']:.0f} clusters{ari}")
    if "unseen.routing_agreement" in summary:
        lines.append(f"seen clients routed to their own cluster: {summary['unseen.routing_agreement']:.0%}")
    best = [
        f"{name} {summary[f'{name}.best.mean']:.3f} (round {summary[f'{name}.best.round'] + 1:.0f})"
        for name in ("global", "personal")
        if f"{name}.best.mean" in summary
    ]
    return [*lines, "best round by mean: " + ", ".join(best)] if best else lines


def _number(result: Result, key: str) -> str:
    value = result.summary.get(key)
    return "–" if value is None else f"{value:.3f}"
