"""IID, quantity skew, natural clients, and flwr-datasets' own split."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.data.partition.by_owner import by_owner
from fedsim.data.partition.dealing import Pools
from fedsim.data.partition.dirichlet import dirichlet, pathological, superclass_of
from fedsim.data.partition.equal import iid, mixed, quantity_skew
from fedsim.data.partition.flower import flower_dirichlet
from fedsim.data.protocols import Skew, skewed_clients
from fedsim.data.sources.labelled import Labelled

GOLDEN = json.loads((Path(__file__).parent / "golden" / "flower_dirichlet.json").read_text())
TRAIN, TEST = np.arange(20).repeat(60), np.arange(20).repeat(15)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def check_disjoint_and_complete(tables: list[torch.Tensor], size: int) -> None:
    assert torch.equal(torch.cat(tables).sort().values, torch.arange(size))


def counts(targets: np.ndarray, tables: list[torch.Tensor]) -> np.ndarray:
    return np.stack([np.bincount(targets[rows], minlength=20) for rows in tables])


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


def splits(domains: np.ndarray | None = None) -> tuple[Labelled, Labelled]:
    names = tuple(map(str, range(20)))

    def one(targets: np.ndarray) -> Labelled:
        owners = None if domains is None else torch.from_numpy(domains[targets])
        return Labelled(torch.zeros(len(targets), 1), torch.from_numpy(targets), names, owners, tuple("abcde"))

    return one(TRAIN), one(TEST)


@pytest.mark.parametrize("name", ["iid", "quantity", "flower-dir"])
def test_options_name_a_partition_and_its_least_sizes(name: str):
    data = skewed_clients(Skew(partition=name, n_clients=10, min_train=30, min_test=5), splits(), rng())
    check_disjoint_and_complete(data.train, len(TRAIN))
    assert min(map(len, data.train)) >= 30
    assert min(map(len, data.test)) >= 5
    assert len(data.unseen) == 2


def test_the_seed_of_flower_is_its_own_where_it_is_given():
    golden = flower_dirichlet(Pools(TRAIN, TEST, 10, 10, 0), 0.5, rng(42))[0]
    options = Skew(partition="flower-dir", n_clients=10, flower_seed=42)
    for seed in (0, 1):
        data = skewed_clients(options, splits(), rng(seed))
        assert [rows.tolist() for rows in data.train] == [rows.tolist() for rows in golden]


def test_owners_become_clients_with_their_names_as_groups():
    data = skewed_clients(Skew(partition="owner", n_clients=3), splits(np.arange(20) % 5), rng())
    assert [data.domain_names[domain] for domain in data.domains] == ["a", "b", "c"]
    assert all(set(data.targets[rows].tolist()) <= set(range(k, 20, 5)) for k, rows in enumerate(data.train))
    with pytest.raises(ValueError, match=r"no owners.*--data.domain-column"):
        skewed_clients(Skew(partition="owner"), splits(), rng())
