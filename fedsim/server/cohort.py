"""Who takes part in a round."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice

import numpy as np

from fedsim.plan import Plan
from fedsim.randomness import numpy_generator
from fedsim.round import Block, Population


@dataclass(frozen=True)
class Dispatch:
    """What a worker is dealt: the round's plan, its blocks, and the busiest worker's load over the mean.

    `clients` are those of all workers.
    """

    plan: Plan
    blocks: list[Block]
    utilisation: float
    clients: list[int]

    @property
    def n_clients(self) -> int:
        """Clients of this worker."""
        return sum(map(len, self.blocks))


def sample_cohort(
    population: Population,
    size: int,
    seed: int,
    round_index: int,
    *,
    draw: int = 0,
    without: Collection[int] = (),
    is_there: Callable[[int], bool] | None = None,
) -> list[int]:
    """Return the clients of a round, uniform without replacement, in ascending order.

    `draw` numbers several draws of one round, `without` are clients that cannot be drawn, and `is_there` says whether
    one could take part; there are fewer where there are not so many.
    """
    rng = numpy_generator(seed, "cohort", round_index, draw)
    able = np.setdiff1d(population.seen, list(without)) if without else population.seen
    if is_there is None:
        return sorted(int(client) for client in rng.choice(able, size=min(size, len(able)), replace=False))
    return sorted(islice(filter(is_there, rng.permutation(able).tolist()), size))
