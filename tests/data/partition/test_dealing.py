"""What holds of every split that is dealt: it ends, says what to change, and does without an empty class."""

import time

import numpy as np
import pytest
from pools import TEST, TRAIN, check_disjoint_and_complete, rng

from fedsim.data.partition.dealing import Pools
from fedsim.data.partition.dirichlet import dirichlet, pathological, superclass_of
from fedsim.data.partition.equal import iid


@pytest.mark.parametrize(
    "split", [iid, lambda pools, rng: dirichlet(pools, 0.3, rng), lambda pools, rng: pathological(pools, 2, rng)]
)
def test_too_many_clients_for_the_samples_are_refused_at_once_with_what_to_change(split):
    targets = np.arange(100).repeat(10)
    start = time.perf_counter()
    with pytest.raises(
        ValueError, match=r"1000 clients leaves each at least 4 and 2: that takes 4000 and 2000; .*min-train"
    ):
        split(Pools(targets, targets, 1000), rng())
    assert time.perf_counter() - start < 1


def test_a_split_that_no_draw_gives_ends_and_says_what_to_change():
    with pytest.raises(ValueError, match=r"in 1000 draws; raise --data.alpha.*--data.min-train"):
        dirichlet(Pools(TRAIN, TEST, 100), 0.01, rng())


def test_a_class_without_samples_leaves_every_other_split_as_it_should_be():
    train, test = TRAIN[TRAIN != 4], TEST[TEST != 4]
    for tables in (
        pathological(Pools(train, test, 19), 2, rng()),
        dirichlet(Pools(train, test, 10), 0.5, rng()),
        iid(Pools(train, test, 9), rng()),
    ):
        check_disjoint_and_complete(tables[0], len(train))
        check_disjoint_and_complete(tables[1], len(test))
    held = [set(train[rows]) for rows in pathological(Pools(train, test, 19), 2, rng())[0]]
    assert {len(classes) for classes in held} == {2}
    assert superclass_of(train, train % 5, 6)[3:] == (3, -1, 0)
