"""fedsim's engines against the limit and against peers: seconds per round, and whether all end in the same weights.

    python benchmarks/engines.py                                          # everything, into RESULTS.md
    python benchmarks/engines.py --workloads tiny --rows batched pfl      # a part, printed only

Every row trains the same clients on the same batches from the same start, in a process of its own with one thread. Two
rounds come first, the first reported apart; the weights after the second must be those of fedsim's sequential engine.
Then the rows take turns, a round each.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import nan
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import scaling
import tyro
from results import markdown, provenance, show, write
from row_process import RowError, RowProcess
from safetensors.torch import load_file
from workloads import CPU, Workload

WorkloadName = Literal["tiny", "vit-8", "vit-32", "text"]
RowName = Literal["centralised", "batched", "sequential", "peft", "pfl", "flower"]
TITLES = {
    "centralised": "limit: no clients, plain torch",
    "batched": "fedsim, batched",
    "sequential": "fedsim, sequential",
    "peft": "loop over PEFT {peft}",
    "pfl": "pfl-research {pfl}",
    "flower": "Flower {flwr}, Ray {ray}",
}
TOLERANCE = 1e-5
"""By how much weights may differ from the reference."""
COLUMNS = ("workload", "row", "first, s", "round, s (min–max)", "samples/s", "÷ limit", "ms a client", "difference")
EXPLANATION = (
    "first, s: the first round (with the start of Flower's actor, and an evaluation that pfl insists on). "
    "round, s: median of {repeats} further ones. ÷ limit: that median over the limit's, which trains one adapter on "
    "the same samples, with as many in a step as fedsim's batched engine has in a pass. ms a client: what a round "
    "takes beyond the limit, over clients. difference: between a weight of this row and the same weight of fedsim's "
    "sequential engine after two rounds, the largest; FAILED above 1e-05."
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure. Only a measurement of everything is written into RESULTS.md."""

    workloads: tuple[WorkloadName, ...] = get_args(WorkloadName)
    """Which federations."""
    rows: tuple[RowName, ...] = get_args(RowName)
    """Which ways to train them."""
    repeats: int = 5
    """Rounds of each row that are timed."""
    scaling: bool = True
    """Whether to compare two workers with one."""

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats is {self.repeats}; it must be 1 or more (--repeats).")

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        names = set(self.workloads), set(self.rows)
        return self.scaling and names == (set(get_args(WorkloadName)), set(get_args(RowName)))


@dataclass
class Measured:
    """What was found out about one row on one workload; a row that could not go on says why."""

    first: float = nan
    seconds: list[float] = field(default_factory=list)
    difference: float = nan
    failure: str = ""

    @property
    def middle(self) -> float:
        """Median seconds of a round."""
        return median(self.seconds) if self.seconds else nan


class Contest:
    """All rows, in processes that are alive at the same time and run in turns."""

    def __init__(self, rows: Sequence[str]):
        self.processes = {row: RowProcess(row) for row in rows}

    def run(self, workload: Workload, repeats: int) -> dict[str, Measured]:
        """Set a workload up, run two rounds, compare the weights, time further rounds."""
        self.running, self.measured = dict(self.processes), {row: Measured() for row in self.processes}
        list(self.each("open", workload.name))
        for _, size in self.each("step_size", only="batched"):
            list(self.each("take_steps_of", size["answer"], only="centralised"))
        for row, answer in self.each("round"):
            self.measured[row].first = answer["seconds"]
        list(self.each("round"))
        self.compare()
        for _ in range(repeats):
            for row, answer in self.each("again"):
                self.measured[row].seconds.append(answer["seconds"])
        return self.measured

    def close(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.close()

    def each(self, name: str, *arguments: Any, only: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        """Ask every row in turn; one that fails is out."""
        for row in [row for row in self.running if only in ("", row)]:
            try:
                yield row, self.running[row].ask(name, *arguments)
            except RowError as error:
                self.measured[row].failure = str(error)
                del self.running[row]

    def compare(self) -> None:
        """Note how far every federated row is from fedsim's sequential engine."""
        with tempfile.TemporaryDirectory() as folder:
            paths = {row: Path(folder) / row for row in self.running if row != "centralised"}
            for row, path in paths.items():
                list(self.each("save", str(path), only=row))
            if "sequential" not in self.running:
                return
            reference = load_file(paths["sequential"])
            for row in paths.keys() & self.running.keys():
                weights = load_file(paths[row])
                assert weights.keys() == reference.keys()
                gaps = [float((weights[slot] - reference[slot]).abs().max()) for slot in reference]
                self.measured[row].difference = max(gaps)


def table_rows(workload: Workload, measured: dict[str, Measured]) -> list[list[str]]:
    """Return the lines of one workload."""
    limit = measured["centralised"].middle if "centralised" in measured else nan
    lines = []
    for row, found in measured.items():
        if found.failure:
            lines.append([workload.name, title(row), *["–"] * 5, found.failure[:60]])
            continue
        middle = found.middle
        cells = [f"{found.first:.2f}", f"{middle:.3f} ({min(found.seconds):.3f}–{max(found.seconds):.3f})"]
        cells += [f"{workload.samples / middle:.0f}", number(middle / limit, ".2f")]
        overhead = (middle - limit) / workload.clients * 1e3 if row != "centralised" else nan
        lines.append([workload.name, title(row), *cells, number(overhead, ".1f"), verdict(workload, row, found)])
    return lines


def verdict(workload: Workload, row: str, found: Measured) -> str:
    """Say how far a row's weights are from the reference, and whether that is too far."""
    if row in ("centralised", "sequential"):
        return "–" if row == "centralised" else "reference"
    shown = number(found.difference, ".1e")
    return f"FAILED {shown}" if found.difference > TOLERANCE else shown


def number(value: float, form: str) -> str:
    """Format a number that may not be there."""
    return "–" if value != value else format(value, form)


def title(row: str) -> str:
    """Return a row's name with versions."""
    return TITLES[row].format(**{name: installed(name) for name in ("peft", "pfl", "flwr", "ray")})


def installed(package: str) -> str:
    """Return a package's version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def measure(workloads: Sequence[Workload], rows: Sequence[str], repeats: int) -> list[list[str]]:
    """Return the lines of workloads."""
    lines = []
    with closing(Contest(rows)) as contest:
        for workload in workloads:
            print(f"{workload.name}: {', '.join(rows)}", file=sys.stderr, flush=True)
            lines += table_rows(workload, contest.run(workload, repeats))
    return lines


def main(options: Options) -> None:
    """Measure, print and write."""
    where = provenance(threads=1)
    workloads = [workload for workload in CPU if workload.name in options.workloads]
    lines = measure(workloads, options.rows, options.repeats)
    notes = [workload.describe() for workload in workloads]
    notes += [scaling.measure()] if options.scaling else []
    show("Engines", COLUMNS, lines)
    explained = EXPLANATION.format(repeats=options.repeats)
    print("\n".join([explained, *notes, where]))
    if options.is_whole:
        text = "\n\n".join([where, markdown(COLUMNS, lines), explained, "\n".join(f"- {note}" for note in notes)])
        write("engines", text, "Engines: fedsim against the limit and against peers")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
