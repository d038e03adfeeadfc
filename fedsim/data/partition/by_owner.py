"""Natural clients: each writer, speaker or task of the data is a client and has what is its own, in both splits."""

import numpy as np
import torch

from fedsim.data.partition.dealing import Split


def by_owner(
    train_owners: np.ndarray,
    test_owners: np.ndarray,
    largest: int | None = None,
    min_train: int = 1,
    min_test: int = 1,
) -> tuple[Split, tuple[int, ...]]:
    """Return the tables of every owner with at least so many training and test samples, and the owners' numbers.

    `train_owners` and `test_owners` are each sample's owner, (S,). With `largest`, at most so many owners, those with
    the most training samples (ties: the lower number), are clients; the others' samples are nobody's. Clients are in
    the order of their owners' numbers. Raises ValueError when no owner is large enough.
    """
    n_owners = int(max(train_owners.max(initial=-1), test_owners.max(initial=-1))) + 1
    sizes = [np.bincount(owners, minlength=n_owners) for owners in (train_owners, test_owners)]
    enough = np.flatnonzero((sizes[0] >= min_train) & (sizes[1] >= min_test))
    if not len(enough):
        raise ValueError(
            f"None of {n_owners} owners has at least {min_train} training and {min_test} test samples "
            "(--data.min-train, --data.min-test; --data.domain-column says who owns what)."
        )
    kept = np.sort(enough[np.argsort(-sizes[0][enough], kind="stable")[:largest]])
    tables = [
        [torch.from_numpy(np.flatnonzero(owners == owner)) for owner in kept] for owners in (train_owners, test_owners)
    ]
    return (tables[0], tables[1]), tuple(int(owner) for owner in kept)
