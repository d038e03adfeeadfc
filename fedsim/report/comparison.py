"""The one table of a comparison: what was measured, as a row a method; in markdown, LaTeX, CSV and on the terminal."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from fedsim.report.cells import as_csv, tabular
from fedsim.report.paired import MARGIN, Difference, differences_of, mean_and_sd
from fedsim.report.summary import EPSILONS, SIMULATED, Result, evaluated_in_words
from fedsim.report.table import discoveries, print_end, print_table
from fedsim.storage.disk import open_own

SHOWN = {
    "mean": "global.mean",
    "p10": "global.p10",
    "worst": "global.worst",
    "std": "global.std",
    "best round": "global.best.mean",
    "personal": "personal.mean",
    "unseen": "unseen.untuned.mean",
    "unseen, tuned": "unseen.tuned.mean",
}
"""Columns of accuracies: mean ± standard deviation over seeds."""
PRINTED = ("method", "mean", "p10", "unseen", "MB", "difference [95 %]", "verdict")
"""Columns that the terminal shows; the others are in the files."""
SUMS = {"MB up": "bytes.up", "MB down": "bytes.down", "seconds": "seconds", "simulated s": SIMULATED}
SUMS |= {title: key for key, title in EPSILONS.items()}
"""Columns of costs: the mean over seeds; the last ones only where there are devices, or there is privacy."""


@dataclass(frozen=True)
class Comparison:
    """Finished runs of several methods over the same seeds.

    `results` holds one result per seed for each method; `chosen` the values that a grid found; `budget` what every run
    had, in words; without it nothing is said about that.
    """

    folder: Path
    seeds: Sequence[int]
    results: Mapping[str, Sequence[Result]]
    digest: str
    reference: str | None = None
    chosen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    budget: str = ""

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """Each method's difference from its reference, paired by seed."""
        return differences_of(
            {name: [scores_of(r) for r in runs] for name, runs in self.results.items()}, self.reference
        )

    def values(self, name: str, key: str) -> list[float]:
        """Return a number of a method's summaries, one for each seed that has it."""
        return [float(result.summary[key]) for result in self.results[name] if key in result.summary]

    def summary(self) -> dict[str, Any]:
        """Return `<method>.<name>`, the mean over seeds of each number of the runs' summaries."""
        means: dict[str, Any] = {}
        for name, runs in self.results.items():
            keys = dict.fromkeys(key for run in runs for key, value in run.summary.items() if _is_number(value))
            means |= {f"{name}.{key}": mean_and_sd(self.values(name, key))[0] for key in keys}
        return means


def scores_of(result: Result, evaluation: str = "global", stage: str = "") -> np.ndarray:
    """Return the clients' metric in their last evaluation of a kind (and in a stage), (C,), in client order.

    By default that of seen clients after the last aggregation.
    """
    with open_own(result.folder / "clients.csv", "r", newline="") as file:
        rows = (row for row in csv.DictReader(file) if row["evaluation"] == evaluation and stage in ("", row["stage"]))
        metric = result.summary.get("metric", "accuracy")
        latest = {int(row["client"]): float(row[metric]) for row in rows}
    return np.array([latest[client] for client in sorted(latest)])


def local_steps(results: Sequence[Result]) -> float | None:
    """Return the local steps of a client in a round, a mean over clients, rounds and runs; None if unrecorded."""
    tables = [result.folder / "costs.csv" for result in results]
    steps: list[int] = []
    for table in filter(Path.exists, tables):
        with open_own(table, "r", newline="") as file:
            steps += [int(row["local_steps"]) for row in csv.DictReader(file)]
    return float(np.mean(steps)) if steps else None


def steps_in_words(comparison: Comparison) -> str:
    """Return how many local steps the methods took, by name where they differ; empty where nothing is recorded."""
    steps = {name: local_steps(runs) for name, runs in comparison.results.items()}
    known = {name: f"{taken:.1f}" for name, taken in steps.items() if taken is not None}
    listed = ", ".join(f"{name} {taken}" for name, taken in known.items())
    listed = next(iter(known.values())) if len(set(known.values())) == 1 else listed
    return f"Local steps of a client in a round, on average: {listed}. " if known else ""


def cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the table's header and its rows as texts; – where there is nothing to tell."""
    always = [key for key in SUMS.values() if key not in (SIMULATED, *EPSILONS)]
    told = {key for key in SUMS.values() if any(comparison.values(name, key) for name in comparison.results)}
    sums = {column: key for column, key in SUMS.items() if key in told.union(always)}
    header = ["method", *SHOWN, *sums, "difference [95 %]", "p (Holm)", "verdict"]
    rows = []
    for name in comparison.results:
        row = [_spread(comparison.values(name, key)) for key in SHOWN.values()]
        for column, key in sums.items():
            values = comparison.values(name, key)
            scale, digits = (1e6, 2) if column.startswith("MB") else (1, 2 if key in EPSILONS else 0)
            row.append(f"{np.mean(values) / scale:.{digits}f}" if values else "–")
        rows.append([name, *row, *_tested(comparison.differences.get(name))])
    return header, rows


def notes(comparison: Comparison) -> list[str]:
    """Return the sentences under the table: what its columns mean, the budget, the test and the chosen values."""
    seeds = ", ".join(map(str, comparison.seeds))
    metric = next(iter(comparison.results.values()))[0].summary.get("metric", "accuracy").capitalize()
    lines = [
        f"{metric} of seen clients, each on its own test split, after the last round: mean, 10th percentile, worst and "
        f"standard deviation over clients; ± is the standard deviation over seeds ({seeds}). best round: the best mean "
        "of any round. personal: after a client's last local training. unseen: clients that took no part, as handed "
        "out, and tuned on their own data.",
    ]
    if comparison.budget:
        same = f"Every method had the same split and backbone, {comparison.budget}."
        lines.append(f"{same} {steps_in_words(comparison)}Bytes are what each sends.")
    results = [result for of_method in comparison.results.values() for result in of_method]
    lines += dict.fromkeys(few for result in results if (few := evaluated_in_words(result.summary)))
    if comparison.differences:
        lines.append(_how_tested(comparison))
    for name, values in comparison.chosen.items():
        listed = ", ".join(f"{key} {value}" for key, value in values.items())
        lines.append(f"{name} was tuned to {listed} on validation rows (tuning.json).")
    return lines


def _how_tested(comparison: Comparison) -> str:
    against = comparison.reference or "the best of the other methods by mean"
    if len(comparison.seeds) < 2:
        return (
            f"difference: from {against}, with a 95 % interval over clients, which holds for this split and seed only. "
            "One seed tells nothing about others, so nothing is tested (--seeds 0 1 2 …)."
        )
    over = "with the reference" if comparison.reference else "of methods, since the scores choose the reference"
    return (
        f"difference: from {against}, with its 95 % interval. The seed is the unit: a paired t-test on the means of "
        f"seeds; p Holm-corrected over the pairs {over}. verdict: better or worse where p is below 5 %; no difference "
        f"where two one-sided tests hold it within ±{MARGIN:g}; else undecided, with how many seeds would decide it."
    )


def markdown(comparison: Comparison) -> str:
    """Return the table and its notes in markdown."""
    header, rows = cells(comparison)
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return table + "\n\n" + "\n\n".join(line for line in notes(comparison)) + "\n"


def latex(comparison: Comparison) -> str:
    """Return the table as a LaTeX tabular, its notes as comments."""
    return tabular(*cells(comparison), notes(comparison))


def table_csv(comparison: Comparison) -> str:
    """Return all numbers: a row per method and number of the summaries, with each seed's value; then differences."""
    rows: list[list[object]] = [["method", "number", "mean", "sd", *(f"seed {seed}" for seed in comparison.seeds)]]
    for key in comparison.summary():
        name = max((n for n in comparison.results if key.startswith(f"{n}.")), key=len)
        number = key.removeprefix(f"{name}.")
        of_seeds = [run.summary.get(number, "") for run in comparison.results[name]]
        rows.append([name, number, *mean_and_sd(comparison.values(name, number)), *of_seeds])
    for name, found in comparison.differences.items():
        for part in ("mean", "low", "high", "p", "p_holm", "p_same", "verdict"):
            rows.append([name, f"difference from {found.reference}: {part}", getattr(found, part)])
    return as_csv(rows)


def print_comparison(comparison: Comparison) -> None:
    """Print the main columns, the notes, what the methods found out, where the rest is and, last, the digest."""
    console = Console(width=None if Console().is_terminal else 120)
    header, rows = cells(comparison)
    traffic = [f"{float(row[header.index('MB up')]) + float(row[header.index('MB down')]):.2f}" for row in rows]
    named = [dict(zip(header, row, strict=True)) | {"MB": sent} for row, sent in zip(rows, traffic, strict=True)]
    print_table(console, PRINTED, [[row[column] for column in PRINTED] for row in named])
    for line in notes(comparison):
        console.print(line, highlight=False)
    for name, runs in comparison.results.items():
        for seed, run in zip(comparison.seeds, runs, strict=True):
            for line in discoveries(run):
                console.print(f"{name}, seed {seed}: {line}", highlight=False)
    print_end(console, comparison.folder, comparison.digest)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean, sd = mean_and_sd(values)
    return f"{mean:.3f}" if math.isnan(sd) else f"{mean:.3f} ± {sd:.3f}"


def _tested(found: Difference | None) -> tuple[str, str, str]:
    if found is None:
        return "–", "–", "–"
    gap = f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}] − {found.reference}"
    if found.seeds < 2:
        return gap, "–", "one seed"
    return gap, f"{found.p_holm:.2g}", found.verdict


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
