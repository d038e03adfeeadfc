"""Clients of given sizes have disjoint samples, and the same label proportions for training and testing."""

import numpy as np
import pytest

from fedsim.data.partition.dealing import Pools
from fedsim.data.partition.sized import counts_by_shares, sized_dirichlet


def split(n_clients=20, alpha=0.5, sizes=(100, 20), n_train=4000, n_test=900, seed=0, n_classes=3):
    rng = np.random.default_rng(seed)
    targets = rng.integers(n_classes, size=n_train), rng.integers(n_classes, size=n_test)
    return targets, sized_dirichlet(Pools(*targets, n_clients, *sizes), alpha, rng)


@pytest.mark.parametrize("seed", range(3))
def test_every_client_has_its_sizes_and_no_sample_is_drawn_twice(seed):
    _, tables = split(seed=seed)
    for part, size in zip(tables, (100, 20), strict=True):
        assert [len(rows) for rows in part] == [size] * 20
        rows = np.concatenate(part)
        assert len(np.unique(rows)) == len(rows)


def test_train_and_test_share_their_label_proportions_while_classes_last():
    (train, test), (train_tables, test_tables) = split(n_train=40_000, n_test=9_000, sizes=(400, 80))
    for rows, test_rows in zip(train_tables, test_tables, strict=True):
        shares, test_shares = (np.bincount(t[r], minlength=3) / len(r) for t, r in ((train, rows), (test, test_rows)))
        assert np.abs(shares - test_shares).max() <= 1 / 80
        assert shares.min() >= 0.009


def test_a_small_concentration_means_skewed_clients():
    def purity(alpha):
        (train, _), (tables, _) = split(alpha=alpha)
        return np.mean([np.bincount(train[rows], minlength=3).max() / len(rows) for rows in tables])

    assert purity(0.1) > purity(1.0) > purity(100.0)
    assert purity(100.0) < 0.4


def test_where_a_class_has_run_out_the_others_are_taken():
    targets = np.array([0] * 30 + [1] * 270)
    tables, _ = sized_dirichlet(Pools(targets, targets, 3, 100, 50), 1e6, np.random.default_rng(0))
    assert sorted(np.concatenate(tables).tolist()) == list(range(300))


@pytest.mark.parametrize(
    ("shares", "size", "available", "expected"),
    [
        ([0.5, 0.3, 0.2], 10, [9, 9, 9], [5, 3, 2]),
        ([0.5, 0.25, 0.25], 3, [9, 9, 9], [1, 1, 1]),
        ([0.9, 0.05, 0.05], 10, [2, 9, 9], [2, 5, 3]),
        ([0.9, 0.1], 5, [0, 5], [0, 5]),
    ],
)
def test_counts_follow_shares_as_far_as_samples_last(shares, size, available, expected):
    assert counts_by_shares(np.array(shares), size, np.array(available)).tolist() == expected


def test_too_few_samples_are_named_with_what_would_help():
    with pytest.raises(
        ValueError, match=r"20 clients of 60 test samples need 1200, and there are 900 .*--data.test-split"
    ):
        split(sizes=(100, 60))
    with pytest.raises(ValueError, match="must be positive"):
        split(alpha=0.0)
