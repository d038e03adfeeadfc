"""Splits in which clients have the same label proportions and differ in size at most: IID and quantity skew."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from fedsim.data.partition.dealing import Pools, Split, check_alpha, deal_classes, draw_large_enough


def iid(pools: Pools, rng: np.random.Generator) -> Split:
    """Give all clients the same number of samples (or one more) and, as nearly as it goes, the pool's labels."""
    return _deal("IID split", pools, lambda: np.full((1, pools.n_clients), 1 / pools.n_clients), rng)


def quantity_skew(pools: Pools, alpha: float, rng: np.random.Generator) -> Split:
    """Give the clients shares of all samples drawn from Dir(α), each with the pool's labels as nearly as it goes."""
    check_alpha(alpha)
    name = f"quantity skew by Dirichlet({alpha})"
    return _deal(name, pools, lambda: rng.dirichlet(np.full(pools.n_clients, alpha), size=1), rng)


def _deal(name: str, pools: Pools, draw: Callable[[], np.ndarray], rng: np.random.Generator) -> Split:
    """Cut the well-mixed pools at shares (1, clients): where all labels are alike, sizes are all that matters."""
    shares = draw_large_enough(name, replace(pools, train=pools.train * 0, test=pools.test * 0), draw)
    found = []
    for targets in pools.both:
        tables = deal_classes(targets * 0, shares, lambda _, of=targets: mixed(of, rng))
        found.append([torch.from_numpy(np.sort(rows)) for rows in tables])
    return found[0], found[1]


def mixed(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return all rows in an order of which every stretch has nearly the label proportions of the whole.

    The k-th of a class's n samples, which are shuffled, comes at a random place of the k-th n-th of the order.
    """
    places = np.empty(len(targets))
    for label in np.unique(targets):
        rows = rng.permutation(np.flatnonzero(targets == label))
        places[rows] = (np.arange(len(rows)) + rng.random(len(rows))) / len(rows)
    return np.argsort(places, kind="stable")
