"""Which clients are trained together, and by which worker."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, TypeVar

Clients = TypeVar("Clients")


class Load(NamedTuple):
    """A client's work: samples, what one of them costs, and a key by which clients that work alike are neighbours."""

    key: tuple[float, ...]
    samples: float
    cost: float = 1.0


def form_blocks(loads: Mapping[int, Load], block_size: int, least: int = 1) -> tuple[list[list[int]], list[float]]:
    """Return clients in blocks of at most `block_size`, neighbours in the order of their keys, and what blocks cost.

    There are at least `least` blocks, or as many as clients.

    A key is the lowest depth that a client trains, then its amount, most first: a block's backward pass stops at the
    lowest of all, so that every sample costs what one of its first client does. Blocks have equally many clients, but
    an edge between two moves where that makes the dearer one cheaper. They depend on the cohort and on nothing else.
    """
    order = sorted(loads, key=lambda client: (loads[client].key, client))
    n_blocks = min(len(order), max(least, -(-len(order) // block_size)))
    edges = [len(order) * index // n_blocks for index in range(n_blocks + 1)] if order else [0]
    samples = [0.0, *accumulate(loads[client].samples for client in order)]

    def cost(start: int, stop: int) -> float:
        return (samples[stop] - samples[start]) * loads[order[start]].cost

    is_moving = True
    while is_moving:
        is_moving = False
        for index in range(1, n_blocks):
            start, edge, stop = edges[index - 1 : index + 2]
            dearer = {
                at: max(cost(start, at), cost(at, stop))
                for at in range(max(start + 1, stop - block_size), min(stop - 1, start + block_size) + 1)
            }
            best = min(dearer, key=lambda at: (dearer[at], abs(at - edge)))
            if dearer[best] < dearer[edge]:
                edges[index], is_moving = best, True
    return [order[a:b] for a, b in pairwise(edges)], [cost(a, b) for a, b in pairwise(edges)]


def largest_size(n_clients: int, n_blocks: int) -> int:
    """Return the most clients of a block with which so many clients still make so many blocks, or nearly so many."""
    return max(-(-n_clients // n_blocks), -(-n_clients // (n_blocks - 1)) - 1 if n_blocks > 1 else n_clients)


def deal(blocks: Sequence[Clients], loads: Sequence[float], n_workers: int) -> tuple[list[list[Clients]], float]:
    """Deal blocks to workers, longest processing time first: the heaviest block goes to the least busy worker.

    Returns each worker's hand, and the utilisation: the busiest worker's load over the mean (1 is perfect). Ties go to
    the earlier block and worker, so every worker deals alike.
    """
    hands: list[list[Clients]] = [[] for _ in range(n_workers)]
    busy = [0.0] * n_workers
    for index in sorted(range(len(blocks)), key=lambda index: (-loads[index], index)):
        worker = busy.index(min(busy))
        hands[worker].append(blocks[index])
        busy[worker] += loads[index]
    return hands, max(busy) * n_workers / total if (total := sum(busy)) else 1.0
