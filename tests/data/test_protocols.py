"""Options name a partition, and the clients that it makes of the data."""

import numpy as np
import pytest
import torch
from pools import TEST, TRAIN, check_disjoint_and_complete, rng

from fedsim.data.partition.dealing import Pools
from fedsim.data.partition.flower import flower_dirichlet
from fedsim.data.protocols import Skew, skewed_clients
from fedsim.data.sources.labelled import Labelled


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
