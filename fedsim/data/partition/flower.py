"""The split of flwr-datasets, sample for sample, so that results compare with those of simulators that use it."""

import numpy as np
import torch

from fedsim.data.partition.dealing import Split, check, deal_classes, draw_large_enough, n_classes


def flower_dirichlet(
    train_targets: np.ndarray,
    test_targets: np.ndarray,
    n_clients: int,
    alpha: float,
    rng: np.random.Generator,
    min_train: int = 10,
    min_test: int = 0,
) -> Split:
    """Deal as `DirichletPartitioner(shuffle=False, self_balancing=False)` of flwr-datasets 0.6.1 does.

    Its rule differs from `partition.dirichlet` in that classes are not shuffled, are cut at the whole sample below, and
    a client's rows lie class after class. With `rng` = `numpy.random.default_rng(seed)`, `min_train` its
    `min_partition_size` and no `min_test`, the training tables are its own, index for index. The test split, which it
    knows nothing of, is cut by the same shares. It gives up after 11 draws, we after a thousand.
    """
    check(n_clients, alpha)
    present = np.unique(train_targets)
    shares_of_all = np.full((n_classes(train_targets, test_targets), n_clients), 1 / n_clients)

    def draw() -> np.ndarray:
        shares = shares_of_all.copy()
        shares[present] = rng.dirichlet(np.full(n_clients, alpha), size=len(present))
        return shares

    pools = (train_targets, test_targets)
    shares = draw_large_enough(f"Dirichlet({alpha})", pools, n_clients, (min_train, min_test), draw, _floored)
    train, test = (
        [torch.from_numpy(rows) for rows in deal_classes(pool, shares, lambda rows: rows, _floored)] for pool in pools
    )
    return train, test


def _floored(shares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Cut at the whole samples below; the last client gets what is left."""
    cuts: np.ndarray = (np.cumsum(shares, axis=-1) * counts).astype(int)
    cuts[..., -1] = counts[..., 0]
    return cuts
