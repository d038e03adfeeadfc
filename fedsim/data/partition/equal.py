"""Splits in which clients have the same label proportions and differ in size at most: IID and quantity skew."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fedsim.data.partition.dealing import Split, check, draw_large_enough, rounded


def iid(
    train_targets: np.ndarray,
    test_targets: np.ndarray,
    n_clients: int,
    rng: np.random.Generator,
    min_train: int = 4,
    min_test: int = 2,
) -> Split:
    """Give all clients the same number of samples (or one more) and, as nearly as it goes, the pool's labels."""
    check(n_clients)
    shares = np.full((1, n_clients), 1 / n_clients)
    return _deal("IID split", (train_targets, test_targets), (min_train, min_test), lambda: shares, n_clients, rng)


def quantity_skew(
    train_targets: np.ndarray,
    test_targets: np.ndarray,
    n_clients: int,
    alpha: float,
    rng: np.random.Generator,
    min_train: int = 4,
    min_test: int = 2,
) -> Split:
    """Give the clients shares of all samples drawn from Dir(α), each with the pool's labels as nearly as it goes."""
    check(n_clients, alpha)
    name, pools = f"quantity skew by Dirichlet({alpha})", (train_targets, test_targets)

    def draw() -> np.ndarray:
        return rng.dirichlet(np.full(n_clients, alpha), size=1)

    return _deal(name, pools, (min_train, min_test), draw, n_clients, rng)


def _deal(
    name: str,
    pools: tuple[np.ndarray, np.ndarray],
    least: tuple[int, int],
    draw: Callable[[], np.ndarray],
    n_clients: int,
    rng: np.random.Generator,
) -> Split:
    """Cut the well-mixed pools at shares (1, clients): where all labels are alike, sizes are all that matters."""
    alike = np.zeros(len(pools[0]), int), np.zeros(len(pools[1]), int)
    shares = draw_large_enough(name, alike, n_clients, least, draw)
    train, test = (_cut(mixed(pool, rng), shares) for pool in pools)
    return train, test


def _cut(rows: np.ndarray, shares: np.ndarray) -> list[Tensor]:
    cuts = rounded(shares, np.array([[len(rows)]]))[0]
    return [torch.from_numpy(np.sort(part)) for part in np.split(rows, cuts[:-1])]


def mixed(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return all rows in an order of which every stretch has nearly the label proportions of the whole.

    The k-th of a class's n samples, which are shuffled, comes at a random place of the k-th n-th of the order.
    """
    places = np.empty(len(targets))
    for label in np.unique(targets):
        rows = rng.permutation(np.flatnonzero(targets == label))
        places[rows] = (np.arange(len(rows)) + rng.random(len(rows))) / len(rows)
    return np.argsort(places, kind="stable")
