"""A split into clients of given sizes: label proportions by Dirichlet, the same for a client's train and test samples.

The splits in partition.py give away every sample; this one draws what it needs and leaves the rest.
"""

import math

import numpy as np
import torch

from fedsim.data.partition.dealing import Split

MIN_SHARE = 0.01
"""The least share of a class in a client's proportions, as in FedLEASE's released code (arXiv 2509.15087)."""


def sized_dirichlet(
    train_targets: np.ndarray,
    test_targets: np.ndarray,
    n_clients: int,
    alpha: float,
    sizes: tuple[int, int],
    rng: np.random.Generator,
    min_share: float = MIN_SHARE,
) -> Split:
    """Draw for each client `sizes` = (train, test) samples by proportions from Dir(α), floored at `min_share`.

    No sample is drawn twice. Where a class has run out, the client takes from the classes that are left, by its
    proportions among them. Raises ValueError when the pools are smaller than what the clients are to have.
    """
    if n_clients < 1 or min(sizes) < 1 or not 0 < alpha < math.inf:
        raise ValueError(
            f"{n_clients} clients of {sizes[0]} training and {sizes[1]} test samples by Dirichlet({alpha}) were asked "
            "for; all of these must be positive (--data.*)."
        )
    for name, targets, size in (("training", train_targets, sizes[0]), ("test", test_targets, sizes[1])):
        if len(targets) < n_clients * size:
            raise ValueError(
                f"{n_clients} clients of {size} {name} samples need {n_clients * size}, and there are {len(targets)} "
                "(--data.n-clients, --data.train-per-client, --data.test-per-client; --data.test-split '' holds test "
                "samples out of the training split)."
            )
    n_classes = int(max(train_targets.max(), test_targets.max())) + 1
    shares = rng.dirichlet(np.full(n_classes, alpha), size=n_clients).clip(min_share)
    shares /= shares.sum(1, keepdims=True)
    return _draw(train_targets, shares, sizes[0], rng), _draw(test_targets, shares, sizes[1], rng)


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
