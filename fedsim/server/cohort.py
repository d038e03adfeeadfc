"""Who takes part in a round."""

from dataclasses import dataclass

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


def sample_cohort(population: Population, size: int, seed: int, round_index: int) -> list[int]:
    """Return the clients of a round, uniform without replacement, in ascending order."""
    rng = numpy_generator(seed, "cohort", round_index)
    return sorted(int(client) for client in rng.choice(population.seen, size=size, replace=False))
