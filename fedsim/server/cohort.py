"""Who takes part in a round."""

from dataclasses import dataclass

from fedsim.data.federated import FederatedData
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


def population_of(data: FederatedData) -> Population:
    """Return who there is; raises ValueError when no client that takes part has a training sample."""
    seen = tuple(client for client in range(data.n_clients) if client not in data.unseen and client != data.proxy)
    samples = tuple(data.train_size(client) for client in range(data.n_clients))
    if not sum(samples[client] for client in seen):
        raise ValueError("No client that takes part in training has a training sample.")
    return Population(data.n_clients, seen, tuple(sorted(data.unseen)), samples, data.domains, data.proxy)


def check_cohort_size(cohort_size: int | None, population: Population) -> None:
    """Raise ValueError when fewer clients than `cohort_size` take part; None means all of them."""
    if cohort_size is not None and not 1 <= cohort_size <= len(population.seen):
        raise ValueError(
            f"cohort_size is {cohort_size}; it must lie in 1 … {len(population.seen)}, the clients that take part in "
            f"training ({len(population.unseen)} of {population.n_clients} are held out as unseen) (--cohort-size)."
        )


def sample_cohort(population: Population, size: int, seed: int, round_index: int) -> list[int]:
    """Return the clients of a round, uniform without replacement, in ascending order."""
    rng = numpy_generator(seed, "cohort", round_index)
    return sorted(int(client) for client in rng.choice(population.seen, size=size, replace=False))
