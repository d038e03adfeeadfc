"""Natural clients: who has what, the largest owners, and owners without enough."""

import numpy as np
import pytest

from fedsim.data.partition.by_owner import by_owner


def test_every_owner_is_a_client_the_largest_where_there_are_too_many():
    train, test = np.array([3, 1, 1, 0, 3, 1, 2, 2]), np.array([0, 1, 2, 3, 3])
    tables, owners = by_owner(train, test)
    assert owners == (0, 1, 2, 3)
    assert [rows.tolist() for rows in tables[0]] == [[3], [1, 2, 5], [6, 7], [0, 4]]
    assert [rows.tolist() for rows in tables[1]] == [[0], [1], [2], [3, 4]]
    assert by_owner(train, test, largest=2)[1] == (1, 2)
    assert by_owner(train, test, min_train=2, min_test=2)[1] == (3,)


def test_owners_without_enough_samples_are_refused_when_none_is_left():
    with pytest.raises(
        ValueError, match=r"None of 2 owners has at least 3 training and 1 test samples .*--data.min-train"
    ):
        by_owner(np.array([0, 1, 1]), np.array([0, 1]), min_train=3)
