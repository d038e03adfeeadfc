"""A split into clients of given sizes: label proportions by Dirichlet, the same for a client's train and test samples.

The splits in partition.py give away every sample; this one draws what it needs and leaves the rest.
"""

import numpy as np
import torch

from fedsim.data.partition.dealing import Pools, Split, check_alpha

MIN_SHARE = 0.01
"""The least share of a class in a client's proportions, as in FedLEASE's released code (arXiv 2509.15087)."""


def sized_dirichlet(pools: Pools, alpha: float, rng: np.random.Generator, min_share: float = MIN_SHARE) -> Split:
    """Draw for each client exactly the least sizes of `pools`, by proportions from Dir(α), floored at `min_share`.

    No sample is drawn twice. Where a class has run out, the client takes from the classes that are left, by its
    proportions among them. Raises ValueError when the pools are smaller than what the clients are to have.
    """
    check_alpha(alpha)
    n_clients, sizes = pools.n_clients, (pools.min_train, pools.min_test)
    if min(sizes) < 1:
        raise ValueError(f"Clients of {sizes[0]} training and {sizes[1]} test samples were asked for (--data.*).")
    for name, targets, size in zip(("training", "test"), pools.both, sizes, strict=True):
        if len(targets) < n_clients * size:
            raise ValueError(
                f"{n_clients} clients of {size} {name} samples need {n_clients * size}, and there are {len(targets)} "
                "(--data.n-clients, --data.train-per-client, --data.test-per-client; --data.test-split '' holds test "
                "samples out of the training split)."
            )
    shares = rng.dirichlet(np.full(pools.n_classes, alpha), size=n_clients).clip(min_share)
    shares /= shares.sum(1, keepdims=True)
    return _draw(pools.train, shares, sizes[0], rng), _draw(pools.test, shares, sizes[1], rng)


def _draw(targets: np.ndarray, shares: np.ndarray, size: int, rng: np.random.Generator) -> list[torch.Tensor]:
    """Rows of each client, in ascending order."""
    left = [rng.permutation(np.flatnonzero(targets == label)) for label in range(shares.shape[1])]
    tables = []
    for proportions in shares:
        counts = counts_by_shares(proportions, size, np.array([len(rows) for rows in left]))
        tables.append(np.sort(np.concatenate([rows[:n] for rows, n in zip(left, counts, strict=True)])))
        left = [rows[n:] for rows, n in zip(left, counts, strict=True)]
    return [torch.from_numpy(table) for table in tables]


def counts_by_shares(shares: np.ndarray, size: int, available: np.ndarray) -> np.ndarray:
    """Return counts by class that add up to `size`: by shares, largest remainders first, at most `available`."""
    counts = np.zeros(len(shares), int)
    while (missing := size - counts.sum()) > 0:
        weights = np.where(available > counts, shares, 0)
        if not weights.any():  # only classes without a share are left
            weights = (available > counts).astype(float)
        wanted = missing * weights / weights.sum()
        extra = np.floor(wanted).astype(int)
        extra[np.argsort(extra - wanted, kind="stable")[: missing - extra.sum()]] += 1
        counts = np.minimum(counts + extra, available)
    return counts
