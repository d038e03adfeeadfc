"""The split of flwr-datasets, sample for sample, so that results compare with those of simulators that use it."""

import numpy as np
import torch

from fedsim.data.partition.dealing import Pools, Split, check_alpha, deal_classes, draw_large_enough


def flower_dirichlet(pools: Pools, alpha: float, rng: np.random.Generator) -> Split:
    """Deal as `DirichletPartitioner(shuffle=False, self_balancing=False)` of flwr-datasets 0.6.1 does.

    Its rule differs from `partition.dirichlet` in that classes are not shuffled, are cut at the whole sample below, and
    a client's rows lie class after class. With `rng` = `numpy.random.default_rng(seed)`, `min_train` its
    `min_partition_size` and no `min_test`, the training tables are its own, index for index. The test split, which it
    knows nothing of, is cut by the same shares. It gives up after 11 draws, we after a thousand.
    """
    check_alpha(alpha)
    present = np.unique(pools.train)
    shares_of_all = np.full((pools.n_classes, pools.n_clients), 1 / pools.n_clients)

    def draw() -> np.ndarray:
        shares = shares_of_all.copy()
        shares[present] = rng.dirichlet(np.full(pools.n_clients, alpha), size=len(present))
        return shares

    shares = draw_large_enough(f"Dirichlet({alpha})", pools, draw, _floored)
    train, test = (
        [torch.from_numpy(rows) for rows in deal_classes(targets, shares, lambda rows: rows, _floored)]
        for targets in pools.both
    )
    return train, test


def _floored(shares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Cut at the whole samples below; the last client gets what is left."""
    cuts: np.ndarray = (np.cumsum(shares, axis=-1) * counts).astype(int)
    cuts[..., -1] = counts[..., 0]
    return cuts
