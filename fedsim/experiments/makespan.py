"""Which cells of a comparison run side by side, on how many workers each: where the last is estimated to end soonest.

A round of n blocks of clients takes w workers ⌈n / w⌉ times as long as a block, and the server a while in which all but
its own worker wait. So a cohort of ten blocks leaves eight workers idle for three eighths of a round, and teams of five
and three workers none.
"""

from collections.abc import Iterator, Sequence
from heapq import heapify, heapreplace
from typing import NamedTuple

SERVER = 0.1
"""What the server does in a round and what workers say to each other, in blocks, for each block.

Of the demo on two workers .08 to .28 was measured (benchmarks/cells.py); larger backbones have less.
"""


class Job(NamedTuple):
    """What is left of a cell: rounds, blocks of clients in a round, a block's cost in any unit, the server's share."""

    rounds: int
    blocks: int
    cost: float = 1.0
    server: float = SERVER

    def time(self, n_workers: int) -> float:
        """Return how long so many workers take."""
        return self.rounds * self.cost * (-(-self.blocks // n_workers) + self.server * self.blocks)

    def less(self, rounds: int) -> "Job":
        """Return what is left after so many rounds, of which the final evaluation is always one."""
        return self._replace(rounds=self.rounds - rounds + 1)


class Stage(NamedTuple):
    """Teams of these sizes work side by side, each on its cells one after another; then all meet."""

    sizes: tuple[int, ...]
    cells: tuple[tuple[int, ...], ...]


def stages(jobs: Sequence[Job], n_workers: int) -> list[Stage]:
    """Return the stages in which all jobs are done soonest: one of teams, then the shortest jobs by all together.

    Jobs are dealt longest first, each to the team that would end it first. Either part may be missing.
    """
    order = sorted(range(len(jobs)), key=lambda index: (-jobs[index].time(1), index))
    together = [jobs[index].time(n_workers) for index in order]
    best: tuple[float, tuple[int, ...], int] = (sum(together), (n_workers,), len(jobs))
    for sizes in splits(n_workers, len(jobs)):
        rest = sum(together)
        for done, (_, end) in enumerate(_deal([jobs[index] for index in order], sizes), 1):
            rest -= together[done - 1]
            if end + rest < best[0] * (1 - 1e-9):
                best = end + rest, sizes, done
    _, sizes, done = best
    hands: list[list[int]] = [[] for _ in sizes]
    for index, (team, _) in zip(order[:done], _deal([jobs[index] for index in order[:done]], sizes), strict=True):
        hands[team].append(index)
    first, rest_of = Stage(sizes, tuple(map(tuple, hands))), tuple(order[done:])
    return [first, *([Stage((n_workers,), (rest_of,))] if rest_of else [])]


def makespan(jobs: Sequence[Job], plan: Sequence[Stage]) -> float:
    """Return when the last job of the last stage ends."""
    return sum(
        max(sum(jobs[index].time(size) for index in hand) for size, hand in zip(stage.sizes, stage.cells, strict=True))
        for stage in plan
    )


def splits(n_workers: int, most: int) -> Iterator[tuple[int, ...]]:
    """Yield the sizes of 2 … `most` teams of all workers, largest first, of at most two sizes."""
    for size in range(n_workers - 1, 0, -1):
        for count in range(1, n_workers // size + 1):
            rest = n_workers - count * size
            for small in range(1, size) if rest else (1,):
                if rest % small == 0 and 2 <= count + rest // small <= most:
                    yield (size,) * count + (small,) * (rest // small)


def _deal(jobs: Sequence[Job], sizes: Sequence[int]) -> Iterator[tuple[int, float]]:
    """Yield for each job the team that it goes to, and when the last team ends so far."""
    busy = {size: [(0.0, team) for team, other in enumerate(sizes) if other == size] for size in sorted(set(sizes))}
    for teams in busy.values():
        heapify(teams)
    last = 0.0
    for job in jobs:
        end, size = min((teams[0][0] + job.time(size), -size) for size, teams in busy.items())
        team = busy[-size][0][1]
        heapreplace(busy[-size], (end, team))
        last = max(last, end)
        yield team, last
