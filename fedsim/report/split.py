"""How the data are split over clients: statistics, as numbers in split.json."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fedsim.data.federated import FederatedData
from fedsim.data.index_tables import IndexTables


def describe_split(data: FederatedData) -> dict[str, Any]:
    """Return what split.json holds: statistics of the train and of the test tables, and every client's sizes.

    Entropies are in nats. The Jensen-Shannon divergence of a client's labels to those of all samples is in nats too,
    between 0 and log 2 = 0.693. Data without classes have sizes only.
    """
    return {
        "clients": data.n_clients,
        "unseen": sorted(data.unseen),
        "classes": data.n_classes if has_classes(data) else None,
        **{name: _statistics(label_counts(data, table), table) for name, table in _tables(data).items()},
        "domains": dict(enumerate(data.domain_names)) if data.domains else {},
        "by_client": {
            **{f"{name}_sizes": IndexTables.of(table).sizes.tolist() for name, table in _tables(data).items()},
            "domain": list(data.domains or ()),
        },
    }


def has_classes(data: FederatedData) -> bool:
    """Whether every sample has one class."""
    return data.targets.ndim == 1 and data.n_classes > 0


def label_counts(data: FederatedData, table: Sequence[Tensor]) -> np.ndarray | None:
    """Return samples by client and class (C, N), None where there are no classes."""
    if not has_classes(data):
        return None
    targets = data.targets.cpu().numpy()
    tables, n = IndexTables.of(table), data.n_classes
    owners = np.repeat(np.arange(len(tables)), tables.sizes.numpy())
    cells = owners * n + targets[tables.rows.cpu().numpy()]
    return np.bincount(cells, minlength=len(tables) * n).reshape(len(tables), n)


def _tables(data: FederatedData) -> Mapping[str, Sequence[Tensor]]:
    return {"train": data.train, "test": data.test}


def _statistics(counts: np.ndarray | None, table: Sequence[Tensor]) -> dict[str, Any]:
    sizes = IndexTables.of(table).sizes.numpy()
    found: dict[str, Any] = {"samples": int(sizes.sum()), "size": _summary(sizes)}
    if counts is None or not sizes.any():
        return found
    labels = counts[sizes > 0]  # a client without samples has no labels to speak of
    shares = labels / labels.sum(1, keepdims=True)
    whole = counts.sum(0) / counts.sum()
    return found | {
        "classes_per_client": _summary((labels > 0).sum(1)),
        "entropy": _summary(entropy(shares)),
        "divergence": _summary(entropy((shares + whole) / 2) - (entropy(shares) + entropy(whole)) / 2),
    }


def entropy(shares: np.ndarray) -> np.ndarray:
    """Return the entropy of label proportions (..., N) in nats, (...)."""
    safe = np.where(shares > 0, shares, 1)
    result: np.ndarray = -(safe * np.log(safe)).sum(-1)
    return result


def _summary(values: np.ndarray) -> dict[str, float]:
    return {"min": float(values.min()), "mean": round(float(values.mean()), 6), "max": float(values.max())}
