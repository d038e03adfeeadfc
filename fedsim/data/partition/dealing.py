"""How a split is dealt once every client's share of every class is known, and what is done when it comes out too small.

Each sample of a pool goes to exactly one client, and train and test pool are cut by the same shares.
"""

import math
from collections.abc import Callable

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


def rounded(shares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Cut at the nearest whole samples."""
    cuts: np.ndarray = np.rint(np.cumsum(shares, axis=-1) * counts).astype(int)
    return cuts


def draw_large_enough(
    name: str,
    pools: tuple[np.ndarray, np.ndarray],
    n_clients: int,
    least: tuple[int, int],
    draw: Callable[[], np.ndarray],
    cut: Cut = rounded,
    sizes: str = SIZES,
) -> np.ndarray:
    """Draw shares (N, clients) until every client gets at least so many (training, test) samples of the two pools.

    `pools` are targets, `sizes` the options of how many clients there are and of how large they are at least. Raises
    ValueError where the pools are too small for that, or a thousand draws (fewer for very many clients) did not do it.
    """
    problem = f"No {name} of {len(pools[0])} training and {len(pools[1])} test samples over {n_clients} clients leaves "
    problem += f"each at least {least[0]} and {least[1]}"
    change = f"ask for fewer clients or for smaller ones ({sizes})."
    if any(n_clients * size > len(pool) for size, pool in zip(least, pools, strict=True)):
        raise ValueError(f"{problem}: that takes {n_clients * least[0]} and {n_clients * least[1]}; {change}")
    draws, drawn = DRAWS, 0
    while drawn < draws:
        shares, drawn = draw(), drawn + 1
        draws = min(DRAWS, max(FEWEST_DRAWS, ENTRIES // shares.size))
        if all(_sizes(pool, shares, cut).min() >= size for pool, size in zip(pools, least, strict=True)):
            return shares
    raise ValueError(f"{problem}, in {draws} draws; raise --data.alpha, {change}")


def _sizes(targets: np.ndarray, shares: np.ndarray, cut: Cut) -> np.ndarray:
    """Samples that each client would get, without dealing them."""
    counts = np.bincount(targets, minlength=len(shares))[:, None]
    sizes: np.ndarray = np.diff(cut(shares, counts), axis=1, prepend=0).sum(0)
    return sizes


def deal_by_shares(targets: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> list[Tensor]:
    """Cut each class, shuffled, at the cumulated shares (N, clients); a client's rows are in ascending order."""
    tables = deal_classes(targets, shares, rng.permutation)
    return [torch.from_numpy(np.sort(table)) for table in tables]


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


def n_classes(*targets: np.ndarray) -> int:
    """Return N, read off the highest number."""
    return int(max(part.max(initial=-1) for part in targets)) + 1


def check(n_clients: int, alpha: float = 1.0) -> None:
    """Raise ValueError where there are no clients or the concentration is not positive and finite."""
    if n_clients < 1:
        raise ValueError(f"{n_clients} clients were asked for; there must be 1 or more (--data.*).")
    if not 0 < alpha < math.inf:
        raise ValueError(f"The Dirichlet concentration is {alpha}; it must be positive and finite (--data.alpha).")
