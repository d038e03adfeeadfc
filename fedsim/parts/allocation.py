"""Which depths a client trains: geometric patterns and draws from a distribution over depths.

Depths are counted 0 … D-1 from the input here, among those that carry adapters; `at_depths` gives them their numbers in
the backbone.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.adapters.bank import Bank
from fedsim.adapters.layout import RANK_AXIS, Slot
from fedsim.randomness import numpy_generator
from fedsim.round import ClientUpdate

Allocation = frozenset[int]

Pattern = Literal["bottleneck", "uniform", "shallow-heavy", "deep-heavy"]
"""The shape that the clients' sets make when they are stacked: both ends; evenly spread; the first depths (Fed-HeLLo's
triangle, if its base is the input side); the last depths (the inverted triangle)."""


def at_depths(allocations: Iterable[Allocation], depths: Sequence[int]) -> list[Allocation]:
    """Return allocations counted 0 … D-1 as numbers of blocks."""
    return [frozenset(depths[index] for index in allocation) for allocation in allocations]


def pattern_set(pattern: Pattern, capability: int, n_depths: int) -> Allocation:
    """Return the depths that GD-HLA (Fed-HeLLo, arXiv 2506.12213) gives a client that can train `capability` of them.

    An odd number leaves the bottleneck one more at the input side; the uniform pattern takes ⌊i·D/capability⌋.
    """
    wanted = min(capability, n_depths)
    if pattern == "shallow-heavy":
        return frozenset(range(wanted))
    if pattern == "deep-heavy":
        return frozenset(range(n_depths - wanted, n_depths))
    if pattern == "bottleneck":
        return frozenset(range(-(-wanted // 2))) | frozenset(range(n_depths - wanted // 2, n_depths))
    return frozenset(i * n_depths // wanted for i in range(wanted))


def coverage(pattern: Pattern, capabilities: Iterable[int], n_depths: int) -> list[int]:
    """Return in how many of the groups' sets each depth lies, (D,). Clients of one capability are one group."""
    sets = [pattern_set(pattern, capability, n_depths) for capability in set(capabilities)]
    return [sum(depth in each for each in sets) for depth in range(n_depths)]


def shares(counts: Iterable[float]) -> tuple[float, ...]:
    """Return counts (D,) over their sum: a distribution over depths."""
    array = np.asarray(list(counts), dtype=np.float64)
    return tuple((array / array.sum()).tolist()) if array.sum() > 0 else tuple(array.tolist())


@lru_cache(maxsize=1 << 14)
def drawn(probabilities: tuple[float, ...], capability: int, seed: int, round_index: int, client: int) -> Allocation:
    """Return as many distinct depths as the client can train, drawn one by one in proportion to what is left (D,).

    A function of (seed, round, client), so every worker draws alike. Depths of probability 0 are never drawn.
    Arrivals at these rates come in the order of such draws (NumPy's `choice` takes ten times as long).
    """
    possible = np.flatnonzero(probabilities)
    rng = numpy_generator(seed, "allocation", round_index, client)
    arrivals = rng.exponential(size=len(possible)) / np.asarray(probabilities)[possible]
    return frozenset(possible[arrivals.argsort()[:capability]].tolist())


def covering(
    allocations: Sequence[Allocation], cohort: Sequence[int], n_depths: int, rng: np.random.Generator
) -> list[Allocation]:
    """Return the allocations, changed so that every depth has a client of the cohort, if their number allows it.

    A depth that nobody has takes the place of one that two have, in the set of a random client that has such a one.
    """
    changed = list(allocations)
    for missing in range(n_depths):
        counts = np.bincount([depth for client in cohort for depth in changed[client]], minlength=n_depths)
        spare = [(client, depth) for client in cohort for depth in sorted(changed[client]) if counts[depth] > 1]
        if counts[missing] == 0 and spare:
            client, depth = spare[rng.integers(len(spare))]
            changed[client] = changed[client] - {depth} | {missing}
    return changed


def movement_log(bank: Bank, updates: Sequence[ClientUpdate]) -> dict[str, object]:
    """Return what is logged of a round: who trained, and the norm of its change of the adapters.

    `update_norm` is the median over clients, 0 when nobody trained.
    """
    norms = update_norms(bank, updates)
    return {
        "trained": [update.client for update in updates],
        "update_norms": norms,
        "update_norm": float(np.median(norms)) if norms else 0.0,
    }


def update_norms(bank: Bank, updates: Sequence[ClientUpdate]) -> list[float]:
    """Return ‖what a client sent − what all of them received‖ over its adapters, (n,)."""

    def change(slot: Slot, tensor: Tensor) -> float:
        return float((tensor - bank.read(slot, torch.tensor([0]))[0]).double().square().sum())

    adapters = [{slot: t for slot, t in u.tensors.items() if slot.factor in RANK_AXIS} for u in updates]
    return [math.sqrt(sum(change(slot, t) for slot, t in tensors.items())) for tensors in adapters]
