"""Who takes part in a round, and which worker trains whom."""

from collections.abc import Sequence
from typing import TypeVar

from fedsim.data.federated import FederatedData
from fedsim.randomness import numpy_generator
from fedsim.round import Population

Block = TypeVar("Block")


def population_of(data: FederatedData) -> Population:
    """Return who there is; raises ValueError when no client that takes part has a training sample."""
    seen = tuple(client for client in range(data.n_clients) if client not in data.unseen)
    samples = tuple(data.train_size(client) for client in range(data.n_clients))
    if not sum(samples[client] for client in seen):
        raise ValueError("No client that takes part in training has a training sample.")
    return Population(data.n_clients, seen, tuple(sorted(data.unseen)), samples, data.groups)


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


def deal(blocks: Sequence[Block], loads: Sequence[float], n_workers: int) -> list[list[Block]]:
    """Deal blocks to workers, longest processing time first: the heaviest block goes to the least busy worker.

    A block is what must be trained together. Ties go to the earlier block and worker, so every worker deals alike.
    """
    hands: list[list[Block]] = [[] for _ in range(n_workers)]
    busy = [0.0] * n_workers
    for index in sorted(range(len(blocks)), key=lambda index: (-loads[index], index)):
        worker = busy.index(min(busy))
        hands[worker].append(blocks[index])
        busy[worker] += loads[index]
    return hands
