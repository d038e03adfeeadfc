"""The server's own data set: samples that no client gets, held by a proxy client that never trains."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsim.data.federated import FederatedData
from fedsim.data.partition.sized import counts_by_shares


def split_off_proxy(targets: np.ndarray, n_samples: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return the rows of `n_samples` samples, in the proportions of their classes, and all other rows; ascending.

    Where there are fewer samples than classes, chance decides among those that are equally large.
    """
    _check(n_samples, len(targets))
    if not n_samples:
        return torch.empty(0, dtype=torch.long), torch.arange(len(targets))
    classes, sizes = np.unique(targets, return_counts=True)
    order = rng.permutation(len(classes))
    counts = counts_by_shares(sizes[order] / len(targets), n_samples, sizes[order])
    chosen = np.zeros(len(targets), bool)
    for label, count in zip(classes[order], counts, strict=True):
        chosen[rng.permutation(np.flatnonzero(targets == label))[:count]] = True
    return torch.from_numpy(np.flatnonzero(chosen)), torch.from_numpy(np.flatnonzero(~chosen))


def with_proxy(data: FederatedData, rows: Tensor) -> FederatedData:
    """Return the data with one more client, the proxy, to which these rows go; other clients train without them."""
    if not len(rows):
        return data
    if data.proxy is not None:
        raise ValueError(f"The data have a proxy client already, {data.proxy}.")
    train = [table[~torch.isin(table, rows)] for table in data.train]
    test = [*data.test, torch.empty(0, dtype=torch.long)]
    return replace(data, train=[*train, rows], test=test, proxy=len(data.train))


def with_drawn_proxy(data: FederatedData, n_samples: int, rng: np.random.Generator) -> FederatedData:
    """Return the data with a proxy client that takes `n_samples` training samples at random from seen clients."""
    rows = torch.cat([table for client, table in enumerate(data.train) if client not in data.unseen])
    _check(n_samples, len(rows))
    return with_proxy(data, rows[torch.from_numpy(rng.permutation(len(rows))[:n_samples])].sort().values)


def _check(n_samples: int, count: int) -> None:
    if not 0 <= n_samples < count:
        given = f"proxy_samples is {n_samples}; it must be less than the {count} training samples"
        raise ValueError(f"{given} (--data.proxy-samples).")
