"""How a split is dealt once every client's share of every class is known, and what is done when it comes out too small.

Each sample of a pool goes to exactly one client, and train and test pool are cut by the same shares.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Split = tuple[list[Tensor], list[Tensor]]
"""Train and test index tables, one of each per client."""
Cut = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(shares (N, clients), samples (N, 1)) to the places to cut at, (N, clients), the end included."""

SIZES = "--data.n-clients, --data.min-train, --data.min-test"
"""What a message advises to change where a caller names no other options."""
DRAWS = 1000
"""So often a split is drawn before the minimum sizes are given up,"""
ENTRIES, FEWEST_DRAWS = 10**7, 50
"""or as often as makes so many shares in all, but at least so often: draws for a thousand clients take long."""


@dataclass(frozen=True)
class Pools:
    """Classes of the samples to deal, for training and for testing, and how many clients get how many of them at least.

    `sizes` are the options that a message advises to change. Raises ValueError where there are no clients.
    """

    train: np.ndarray
    test: np.ndarray
    n_clients: int
    min_train: int = 4
    min_test: int = 2
    sizes: str = SIZES

    def __post_init__(self) -> None:
        if self.n_clients < 1:
            raise ValueError(f"{self.n_clients} clients were asked for; there must be 1 or more (--data.*).")

    @property
    def both(self) -> tuple[np.ndarray, np.ndarray]:
        """Train and test pool."""
        return self.train, self.test

    @property
    def n_classes(self) -> int:
        """N, read off the highest number."""
        return int(max(targets.max(initial=-1) for targets in self.both)) + 1


def rounded(shares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Cut at the nearest whole samples."""
    cuts: np.ndarray = np.rint(np.cumsum(shares, axis=-1) * counts).astype(int)
    return cuts


def deal(name: str, pools: Pools, draw: Callable[[], np.ndarray], rng: np.random.Generator) -> Split:
    """Cut each class, shuffled, at the cumulated shares (N, clients) drawn; a client's rows are in ascending order."""
    shares = draw_large_enough(name, pools, draw)
    train, test = (
        [torch.from_numpy(np.sort(rows)) for rows in deal_classes(targets, shares, rng.permutation)]
        for targets in pools.both
    )
    return train, test


def draw_large_enough(name: str, pools: Pools, draw: Callable[[], np.ndarray], cut: Cut = rounded) -> np.ndarray:
    """Draw shares (N, clients) until every client gets at least as many samples of the two pools as they say.

    Raises ValueError where the pools are too small for that, or a thousand draws (fewer for very many clients) did not
    do it.
    """
    n_clients, least = pools.n_clients, (pools.min_train, pools.min_test)
    problem = f"No {name} of {len(pools.train)} training and {len(pools.test)} test samples over {n_clients} clients "
    problem += f"leaves each at least {least[0]} and {least[1]}"
    change = f"ask for fewer clients or for smaller ones ({pools.sizes})."
    if any(n_clients * size > len(pool) for size, pool in zip(least, pools.both, strict=True)):
        raise ValueError(f"{problem}: that takes {n_clients * least[0]} and {n_clients * least[1]}; {change}")
    draws, drawn = DRAWS, 0
    while drawn < draws:
        shares, drawn = draw(), drawn + 1
        draws = min(DRAWS, max(FEWEST_DRAWS, ENTRIES // shares.size))
        if all(_sizes(pool, shares, cut).min() >= size for pool, size in zip(pools.both, least, strict=True)):
            return shares
    raise ValueError(f"{problem}, in {draws} draws; raise --data.alpha, {change}")


def _sizes(targets: np.ndarray, shares: np.ndarray, cut: Cut) -> np.ndarray:
    """Samples that each client would get, without dealing them."""
    counts = np.bincount(targets, minlength=len(shares))[:, None]
    sizes: np.ndarray = np.diff(cut(shares, counts), axis=1, prepend=0).sum(0)
    return sizes


def deal_classes(
    targets: np.ndarray, shares: np.ndarray, order: Callable[[np.ndarray], np.ndarray], cut: Cut = rounded
) -> list[np.ndarray]:
    """Return each client's rows, class after class, from cutting every class in the given order of its rows."""
    tables: list[list[np.ndarray]] = [[] for _ in range(shares.shape[1])]
    for label in range(int(targets.max()) + 1 if len(targets) else 0):
        rows = order(np.flatnonzero(targets == label))
        cuts = cut(shares[[label]], np.array([[len(rows)]]))[0]
        for table, part in zip(tables, np.split(rows, cuts[:-1]), strict=True):
            table.append(part)
    return [np.concatenate(table) if table else np.empty(0, int) for table in tables]


def check_alpha(alpha: float) -> None:
    """Raise ValueError where the concentration is not positive and finite."""
    if not 0 < alpha < math.inf:
        raise ValueError(f"The Dirichlet concentration is {alpha}; it must be positive and finite (--data.alpha).")
