"""Orderings that papers published, held against finished runs: holds, does not hold, or undecided."""

from collections.abc import Sequence
from dataclasses import dataclass

from results import markdown

from fedsim.randomness import numpy_generator
from fedsim.report.comparison import Comparison, scores_of
from fedsim.report.paired import Scores, bootstrap_interval, mean_score

COLUMNS = ("published", "their difference", "here [95 %]", "")


@dataclass(frozen=True)
class Gate:
    """A published ordering of two methods; or, with `stages`, of one method's clients after two of its stages."""

    better: str
    worse: str
    published: str
    """By how much, in the paper; – where it only says so."""
    evaluation: str = "global"
    stages: tuple[str, str] | None = None

    @property
    def claim(self) -> str:
        """The ordering in words."""
        if self.stages:
            return f"{self.better}: {self.stages[0]} > {self.stages[1]}"
        where = {"unseen.tuned": ", unseen clients, tuned", "unseen.untuned": ", unseen clients, untuned"}
        return f"{self.better} > {self.worse}{where.get(self.evaluation, '')}"

    def gaps(self, comparison: Comparison) -> Scores:
        """Return the differences by client, (C,) for each seed."""
        first, second = self.stages or ("", "")
        pairs = zip(comparison.results[self.better], comparison.results[self.worse], strict=True)
        return [scores_of(a, self.evaluation, first) - scores_of(b, self.evaluation, second) for a, b in pairs]


def verdict(gaps: Scores) -> tuple[str, str]:
    """Return the mean difference with its bootstrap interval, and what that says of the ordering."""
    low, high = bootstrap_interval(gaps, numpy_generator(0, "bootstrap"))
    found = "holds" if low > 0 else "does **not** hold" if high < 0 else "undecided"
    return f"{mean_score(gaps):+.3f} [{low:+.3f}, {high:+.3f}]", found


def gate_table(comparison: Comparison, gates: Sequence[Gate]) -> str:
    """Return a line for each ordering, in markdown."""
    rows = [[gate.claim, gate.published, *verdict(gate.gaps(comparison))] for gate in gates]
    return markdown(COLUMNS, rows)
