"""flwr-datasets' own split, index for index."""

import json
from pathlib import Path

import numpy as np
import pytest
from pools import TEST, TRAIN, check_disjoint_and_complete, counts, rng

from fedsim.data.partition.dealing import Pools
from fedsim.data.partition.flower import flower_dirichlet

GOLDEN = json.loads((Path(__file__).parent / "golden" / "flower_dirichlet.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['n_clients']} clients")
def test_the_flower_split_is_that_of_flwr_datasets_index_for_index(case: dict):
    targets = np.array(case["targets"])
    least = case["min_train"]
    train, _ = flower_dirichlet(Pools(targets, targets, case["n_clients"], least, 0), case["alpha"], rng(case["seed"]))
    assert [rows.tolist() for rows in train] == case["tables"]


def test_the_flower_split_cuts_the_test_pool_by_the_same_shares():
    train, test = flower_dirichlet(Pools(TRAIN, TEST, 8, 10, 0), 0.5, rng())
    check_disjoint_and_complete(test, len(TEST))
    assert np.abs(counts(TRAIN, train) / 60 - counts(TEST, test) / 15).max() <= 1 / 60 + 1 / 15
