"""Orderings that gates.toml lists, held against scores: holds, does not hold, no difference, or undecided."""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kept import Cell
from results import markdown

from fedsim.report.paired import MARGIN, Difference, Scores, corrected, sequential, spending

COLUMNS = ("ordering", "published", "here [95 %]", "seeds", "verdict")
WORDS = {"better": "holds", "worse": "does **not** hold"}
Lookup = Callable[[str, int], Cell | None]
"""From a row and a seed to its cell."""


@dataclass(frozen=True)
class Gate:
    """An ordering of two rows of a table."""

    better: str
    worse: str
    published: str = "–"
    """By how much, in the paper; – where it does not say."""
    evaluation: str = "global"
    only: str = ""
    """A fact, a list of counts, of `better`: seeds in which none is above one do not count."""

    @property
    def claim(self) -> str:
        """The ordering in words."""
        where = {"unseen.tuned": ", unseen clients, tuned", "unseen.untuned": ", unseen clients, untuned"}
        return f"{self.better} > {self.worse}{where.get(self.evaluation, '')}"

    def gaps(self, cell: Lookup, seeds: Sequence[int]) -> Scores:
        """Return the differences by client, (C,), of the seeds up to the first that is not finished."""
        found = []
        for seed in seeds:
            a, b = cell(self.better, seed), cell(self.worse, seed)
            if a is None or b is None:
                break
            if not self.only or max(a.facts.get(self.only, [1])) > 1:
                found.append(a.of(self.evaluation) - b.of(self.evaluation))
        return found


@dataclass(frozen=True)
class Gates:
    """The orderings of a table, and when and how they are judged."""

    gates: tuple[Gate, ...]
    looks: tuple[int, ...]
    margin: float = MARGIN

    def judged(self, cell: Lookup, seeds: Sequence[int]) -> list[tuple[Gate, Difference | None]]:
        """Return what the scores say of each ordering; None where no seed is finished. Holm is over all of them."""
        gaps = [(gate, gate.gaps(cell, seeds)) for gate in self.gates]
        found = [sequential(of, self.looks, self.margin) for _, of in gaps if of]
        missing = len(gaps) - len(found)  # an ordering of which nothing is known counts in the correction all the same
        nothing = Difference("", 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0, 0.0)
        judged = iter(corrected([*found, *[nothing] * missing]))
        return [(gate, next(judged) if of else None) for gate, of in gaps]


def read_gates(path: Path, table: str) -> Gates:
    """Return the gates of a table; raises ValueError for a list that cannot be judged."""
    entry = tomllib.loads(path.read_text()).get(table)
    if not entry:
        raise ValueError(f"{path} has no gates of table '{table}'.")
    spending(entry["looks"])
    try:
        gates = tuple(Gate(**gate) for gate in entry["gates"])
    except TypeError as error:
        raise ValueError(f"A gate of table '{table}' in {path} cannot be read: {error}.") from None
    return Gates(gates, tuple(entry["looks"]), entry.get("margin", MARGIN))


def verdict(found: Difference | None, looks: Sequence[int]) -> str:
    """Return what a judged ordering says, in words; where it is undecided, how many more seeds would decide it."""
    if found is None:
        return "not yet run"
    if found.is_significant or found.verdict.startswith("no difference"):
        return WORDS.get(found.verdict, found.verdict)
    if found.seeds < looks[0]:
        return f"undecided: first judged with {looks[0]} seeds"
    if not found.needed:
        return "undecided: more than 1000 seeds"
    more = found.needed - found.seeds
    return f"undecided: {more} more seed{'s' if more > 1 else ''}"


def gate_table(judged: Sequence[tuple[Gate, Difference | None]], looks: Sequence[int]) -> str:
    """Return a line for each ordering, in markdown."""
    lines = []
    for gate, found in judged:
        gap, seeds = "–", "0"
        if found is not None:
            gap, seeds = f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]", str(found.seeds)
        lines.append([gate.claim, gate.published, gap, seeds, verdict(found, looks)])
    return markdown(COLUMNS, lines)
