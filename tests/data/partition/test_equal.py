"""Clients that are alike in their labels: IID, and with unequal sizes."""

import numpy as np
from pools import TEST, TRAIN, check_disjoint_and_complete, counts, rng

from fedsim.data.partition.dealing import Pools
from fedsim.data.partition.equal import iid, mixed, quantity_skew


def test_iid_clients_have_equal_sizes_and_the_labels_of_the_whole():
    for targets, tables in zip((TRAIN, TEST), iid(Pools(TRAIN, TEST, 7), rng()), strict=True):
        check_disjoint_and_complete(tables, len(targets))
        sizes = counts(targets, tables).sum(1)
        assert sizes.max() - sizes.min() <= 1
        assert np.abs(counts(targets, tables) - len(targets) / 20 / 7).max() < 3


def test_a_thousand_samples_go_to_a_thousand_clients_one_each():
    targets = np.arange(100).repeat(10)
    train, test = iid(Pools(targets, targets, 1000, 1, 1), rng())
    assert {len(rows) for rows in (*train, *test)} == {1}


def test_quantity_skew_is_in_the_sizes_and_not_in_the_labels():
    train, test = quantity_skew(Pools(TRAIN, TEST, 10, 40, 10), 0.5, rng(1))
    check_disjoint_and_complete(train, len(TRAIN))
    check_disjoint_and_complete(test, len(TEST))
    shares = np.array([len(rows) / len(TRAIN) for rows in train])
    assert shares.max() > 4 * shares.min()
    assert np.abs(shares - [len(rows) / len(TEST) for rows in test]).max() <= 1 / len(TRAIN) + 1 / len(TEST)
    assert np.abs(counts(TRAIN, train) - shares[:, None] * 60).max() < 3


def test_a_smaller_alpha_makes_sizes_more_unequal():
    def spread(alpha: float) -> float:
        return float(np.std([len(rows) for rows in quantity_skew(Pools(TRAIN, TEST, 10, 0, 0), alpha, rng())[0]]))

    assert spread(0.2) > spread(2.0) > spread(200.0)


def test_every_stretch_of_mixed_rows_has_the_labels_of_the_whole():
    targets = np.repeat([0, 1, 2], [600, 300, 100])
    for stretch in mixed(targets, rng()).reshape(10, 100):
        assert np.abs(np.bincount(targets[stretch], minlength=3) - [60, 30, 10]).max() <= 2
