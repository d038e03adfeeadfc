"""Ways to split labelled samples over clients. Train and test of a client share its label proportions."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Split = tuple[list[Tensor], list[Tensor]]
"""Train and test index tables, one of each per client."""


def dirichlet(
    train_targets: np.ndarray,
    test_targets: np.ndarray,
    n_clients: int,
    alpha: float,
    rng: np.random.Generator,
    min_train: int = 4,
    min_test: int = 2,
) -> Split:
    """Deal every class over the clients by proportions drawn from Dir(α), the same for train and test.

    Draws again until every client has the minimum sizes; raises ValueError when a thousand draws did not give that.
    """
    if alpha <= 0:
        raise ValueError(f"The Dirichlet concentration is {alpha}; it must be positive (--data.alpha).")
    n_classes = int(max(train_targets.max(), test_targets.max())) + 1
    for _ in range(1000):
        shares = rng.dirichlet(np.full(n_clients, alpha), size=n_classes)
        train = deal_by_shares(train_targets, shares, rng)
        test = deal_by_shares(test_targets, shares, rng)
        if min(map(len, train)) >= min_train and min(map(len, test)) >= min_test:
            return train, test
    raise ValueError(
        f"No Dirichlet({alpha}) split of {len(train_targets)} train and {len(test_targets)} test samples over "
        f"{n_clients} clients leaves each at least {min_train} and {min_test}; raise --data.alpha or lower the number "
        "of clients."
    )


def pathological(
    train_targets: np.ndarray,
    test_targets: np.ndarray,
    n_clients: int,
    classes_per_client: int,
    rng: np.random.Generator,
) -> Split:
    """Give each client `classes_per_client` classes, the least held first, each split evenly among its holders."""
    n_classes = int(max(train_targets.max(), test_targets.max())) + 1
    if not 1 <= classes_per_client <= n_classes:
        raise ValueError(
            f"classes_per_client is {classes_per_client}; it must lie in 1 … {n_classes} (--data.classes-per-client)."
        )
    if n_clients * classes_per_client < n_classes:
        raise ValueError(f"{n_clients} clients with {classes_per_client} classes each cannot hold {n_classes} classes.")
    shares = np.zeros((n_classes, n_clients))
    for client in range(n_clients):
        load = (shares > 0).sum(1) + rng.random(n_classes)
        shares[np.argsort(load)[:classes_per_client], client] = 1
    shares /= shares.sum(1, keepdims=True)
    return deal_by_shares(train_targets, shares, rng), deal_by_shares(test_targets, shares, rng)


def superclass_dirichlet(
    train_targets: np.ndarray,
    test_targets: np.ndarray,
    superclass: Sequence[int],
    n_clients: int,
    alpha: float,
    rng: np.random.Generator,
) -> Split:
    """SC-Dir(α): each client has one or two super-classes, whose fine classes are split over their holders by Dir(α).

    HiLoRA (arXiv 2603.02785) describes this in words only; the construction is ours. `superclass` maps a class to its
    super-class.
    """
    groups = np.asarray(superclass)
    shares = np.zeros((len(groups), n_clients))
    deck = rng.permutation(np.arange(n_clients) % (groups.max() + 1))
    second = np.where(rng.random(n_clients) < 0.5, rng.integers(groups.max() + 1, size=n_clients), deck)
    for label, group in enumerate(groups):
        holders = np.flatnonzero((deck == group) | (second == group))
        if not len(holders):
            raise ValueError(f"{n_clients} clients cannot hold {groups.max() + 1} super-classes; ask for more clients.")
        shares[label, holders] = rng.dirichlet(np.full(len(holders), alpha))
    return deal_by_shares(train_targets, shares, rng), deal_by_shares(test_targets, shares, rng)


def by_group(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    clients_per_group: int,
    alpha: float,
    rng: np.random.Generator,
) -> tuple[list[Tensor], list[Tensor], tuple[int, ...]]:
    """Give every natural group (domain) its own clients and split inside it by Dir(α) over labels.

    `train` and `test` are (targets, group numbers) of the two pools. Returns the tables and each client's group.
    """
    tables: Split = ([], [])
    groups: list[int] = []
    for group in range(int(train[1].max()) + 1):
        rows = [np.flatnonzero(pool[1] == group) for pool in (train, test)]
        split = dirichlet(train[0][rows[0]], test[0][rows[1]], clients_per_group, alpha, rng)
        for table, inside, pool_rows in zip(tables, split, rows, strict=True):
            table += [torch.from_numpy(pool_rows)[index] for index in inside]
        groups += [group] * clients_per_group
    return *tables, tuple(groups)


def deal_by_shares(targets: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> list[Tensor]:
    """Cut each class, shuffled, at the cumulated shares (N, clients); a client's rows are in ascending order."""
    tables: list[list[np.ndarray]] = [[] for _ in range(shares.shape[1])]
    for label in range(int(targets.max()) + 1 if len(targets) else 0):
        rows = rng.permutation(np.flatnonzero(targets == label))
        cuts = np.rint(np.cumsum(shares[label])[:-1] * len(rows)).astype(int)
        for table, part in zip(tables, np.split(rows, cuts), strict=True):
            table.append(part)
    return [torch.from_numpy(np.sort(np.concatenate(table)) if table else np.empty(0, int)) for table in tables]


def choose_unseen(groups: Sequence[int], fraction: float, rng: np.random.Generator) -> frozenset[int]:
    """Hold out a fraction of the clients, spread over the natural groups as evenly as the number allows."""
    if not 0 <= fraction < 1:
        raise ValueError(f"unseen_fraction is {fraction}; it must lie in [0, 1) (--data.unseen-fraction).")
    wanted = round(fraction * len(groups))
    chosen: list[int] = []
    left = {group: list(rng.permutation(np.flatnonzero(np.asarray(groups) == group))) for group in set(groups)}
    order = list(rng.permutation(sorted(left)))
    while len(chosen) < wanted:
        for group in order:
            if left[group] and len(chosen) < wanted:
                chosen.append(int(left[group].pop()))
    return frozenset(chosen)
