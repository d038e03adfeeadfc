"""Tables of a page: the same numbers as HTML, LaTeX and CSV."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from fedsim.report.cells import as_csv, tabular
from fedsim.report.cluster_figures import ClusterEvent
from fedsim.report.evaluation import STATISTICS
from fedsim.report.page_template import render
from fedsim.report.reading import EVALUATIONS, Run
from fedsim.report.run_figures import stages_of
from fedsim.storage.disk import write_atomically

Cell = str | float | int | None
TITLES = {"mean": "mean", "weighted_mean": "weighted mean", "std": "std", "worst": "worst", "p10": "p10"}


@dataclass(frozen=True)
class Sheet:
    """A table: numbers are shown with three decimals and kept in full."""

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def html(self) -> Markup:
        """Return a <table> that scrolls where it is too wide."""
        rows = [[(shown_as(cell), _full(cell)) for cell in row] for row in self.rows]
        return render("sheet", name=self.name, header=self.header, rows=rows)

    def save(self, folder: Path) -> None:
        """Write <name>.csv and <name>.tex."""
        write_atomically(folder / f"{self.name}.csv", as_csv([self.header, *self.rows]).encode(errors="replace"))
        shown = [[shown_as(cell) for cell in row] for row in self.rows]
        write_atomically(folder / f"{self.name}.tex", tabular(self.header, shown).encode(errors="replace"))


def shown_as(cell: Cell) -> str:
    """Return a cell as it is printed; – for nothing."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _full(cell: Cell) -> str | None:
    """A number with all its digits, where it is shown with fewer."""
    return repr(cell) if isinstance(cell, float) and not math.isnan(cell) else None


def tables_of(run: Run, clusters: ClusterEvent | None) -> Iterator[Sheet]:
    """Yield a run's tables: the models' summary for each metric, stages, clusters against domains."""
    for metric in run.metrics:
        of = "" if metric == run.metrics[0] else f".{metric}"
        rows: list[list[Cell]] = []
        for key, title in EVALUATIONS.items():
            if f"{key}{of}.mean" in run.summary:
                values = [float(run.summary[f"{key}{of}.{name}"]) for name in STATISTICS]
                rows.append([title, int(run.summary[f"{key}.clients"]), *values])
        if rows:
            yield Sheet(f"models-{metric}", [metric, "clients", *(TITLES[name] for name in STATISTICS)], rows)
    stages = stages_of(run)
    if len(stages) > 1:
        of = {s: f" ({run.summary[key]} clients)" for s in stages if (key := f"stage.{s}.clients") in run.summary}
        ends = [
            [f"{stage}{of.get(stage, '')}", *(float(run.summary[f"stage.{stage}.{name}"]) for name in STATISTICS)]
            for stage in stages
        ]
        yield Sheet("stages", ["end of stage", *(TITLES[name] for name in STATISTICS)], ends)
    if clusters is not None and clusters.is_compared:
        domains, found, counts = clusters.table()
        header = ["domain", *(f"cluster {cluster}" for cluster in found)]
        yield Sheet("contingency", header, [[g, *row] for g, row in zip(domains, counts.tolist(), strict=True)])
