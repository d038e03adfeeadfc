"""Orderings that papers published, held against finished runs: holds, does not hold, no difference, or undecided."""

from collections.abc import Sequence
from dataclasses import dataclass

from results import markdown

from fedsim.report.comparison import Comparison, scores_of
from fedsim.report.paired import Difference, Scores, corrected, difference

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


def verdicts(found: Sequence[Difference]) -> list[tuple[str, str]]:
    """Return each mean difference with its interval, and what that says of the ordering; Holm over all of them.

    A list of orderings is written down before the runs, so the correction is over that list.
    """
    words = {"better": "holds", "worse": "does **not** hold"}
    return [
        (f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]", words.get(gap.verdict, gap.verdict))
        if gap.seeds > 1
        else (f"{gap.mean:+.3f}", "one seed")
        for gap in corrected(found)
    ]


def gate_table(comparison: Comparison, gates: Sequence[Gate]) -> str:
    """Return a line for each ordering, in markdown."""
    found = verdicts([difference(gate.gaps(comparison)) for gate in gates])
    return markdown(COLUMNS, [[gate.claim, gate.published, *row] for gate, row in zip(gates, found, strict=True)])
