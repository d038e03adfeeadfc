"""Who takes part in a round, and which worker trains whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from fedsim.data.federated import FederatedData
from fedsim.devices import ClientCost
from fedsim.plan import Plan
from fedsim.randomness import numpy_generator
from fedsim.round import Block, Population

Work = TypeVar("Work")


@dataclass(frozen=True)
class Hand:
    """What a worker is dealt: the round's plan, its blocks, and the busiest worker's load over the mean.

    `clients` are those of all workers; `costs` what a round costs each of its cohort, on worker 0.
    """

    plan: Plan
    blocks: list[Block]
    utilisation: float
    clients: list[int]
    costs: Sequence[ClientCost] = ()

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
    return Population(data.n_clients, seen, tuple(sorted(data.unseen)), samples, data.groups, data.proxy)


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


def form_blocks(keys: Mapping[int, tuple[float, ...]], block_size: int) -> list[list[int]]:
    """Return clients in blocks of at most `block_size`, as even as can be, neighbours in the order of their keys.

    A key says what a client's work is like: the lowest depth that it trains (a block's backward pass stops at the
    lowest of all), then its amount, most first. Blocks depend on the cohort and on nothing else.
    """
    order = sorted(keys, key=lambda client: (keys[client], client))
    n_blocks = -(-len(order) // block_size)
    edges = [len(order) * index // n_blocks for index in range(n_blocks + 1)] if order else [0]
    return [order[start:stop] for start, stop in pairwise(edges)]


def deal(blocks: Sequence[Work], loads: Sequence[float], n_workers: int) -> tuple[list[list[Work]], float]:
    """Deal blocks to workers, longest processing time first: the heaviest block goes to the least busy worker.

    Returns each worker's hand, and the utilisation: the busiest worker's load over the mean (1 is perfect). Ties go to
    the earlier block and worker, so every worker deals alike.
    """
    hands: list[list[Work]] = [[] for _ in range(n_workers)]
    busy = [0.0] * n_workers
    for index in sorted(range(len(blocks)), key=lambda index: (-loads[index], index)):
        worker = busy.index(min(busy))
        hands[worker].append(blocks[index])
        busy[worker] += loads[index]
    return hands, max(busy) * n_workers / total if (total := sum(busy)) else 1.0
