"""Every split is disjoint and complete, keeps label proportions, and is what its name says."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pools import check_disjoint_and_complete, rng

from fedsim.data.federated import FederatedData
from fedsim.data.images.images import ImageOptions, load_images
from fedsim.data.partition.dealing import Pools
from fedsim.data.partition.dirichlet import (
    by_domain,
    choose_unseen,
    dirichlet,
    pathological,
    superclass_dirichlet,
    superclass_of,
)
from fedsim.data.partition.equal import iid
from fedsim.data.protocols import Domains, Skew, domain_clients, skewed_clients
from fedsim.data.sources.labelled import Labelled

pytestmark = pytest.mark.usefixtures("own_cache")
DATA = os.environ.get("FEDSIM_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="FEDSIM_DATA does not name a folder of data sets")
CIFAR = {"path": Path("cifar100_8k"), "label_column": "fine_label", "domain_column": "coarse_label"}
PARTITIONS = ("gl-dir", "sc-dir", "patho")


def pools(n_classes: int = 20, train: int = 60, test: int = 15) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(n_classes).repeat(train), np.arange(n_classes).repeat(test)


def synthetic(n_classes: int = 20, n_domains: int = 5) -> tuple[Labelled, Labelled]:
    """Grey images whose domain is their class modulo the number of domains."""
    names = tuple(f"class {label}" for label in range(n_classes))
    domains = tuple(f"domain {domain}" for domain in range(n_domains))
    splits = (
        Labelled(torch.zeros(len(t), 3, 4, 4).byte(), torch.tensor(t), names, torch.tensor(t % n_domains), domains)
        for t in pools(n_classes)
    )
    return next(splits), next(splits)


def partition(name: str, seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    train, test = pools()
    if name == "gl-dir":
        return dirichlet(Pools(train, test, 12), 0.3, rng(seed))
    if name == "sc-dir":
        return superclass_dirichlet(Pools(train, test, 12), np.arange(20) % 5, 3.0, rng(seed))
    return pathological(Pools(train, test, 12), 4, rng(seed))


def check_federation(data: FederatedData, n_train: int, n_test: int, n_unseen: int) -> None:
    check_disjoint_and_complete(data.train, n_train)
    check_disjoint_and_complete([rows - n_train for rows in data.test], n_test)
    assert len(data.unseen) == n_unseen


def classes_of(data: FederatedData, client: int) -> set[int]:
    return set(data.targets[data.train[client]].tolist())


@pytest.mark.parametrize("name", PARTITIONS)
def test_every_sample_has_exactly_one_client(name: str):
    for table, pool in zip(partition(name), pools(), strict=True):
        check_disjoint_and_complete(table, len(pool))


@pytest.mark.parametrize("name", PARTITIONS)
def test_a_seed_repeats_a_split_and_another_seed_changes_it(name: str):
    first, again, other = (torch.cat(partition(name, seed)[0]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", PARTITIONS)
def test_train_and_test_of_a_client_have_the_same_label_proportions(name: str):
    train, test = pools()
    for rows, test_rows in zip(*partition(name), strict=True):
        of_class = np.bincount(train[rows], minlength=20) / 60, np.bincount(test[test_rows], minlength=20) / 15
        # Cuts are rounded to whole samples at both ends of a client's part, in each pool.
        assert np.abs(of_class[0] - of_class[1]).max() <= 1 / 60 + 1 / 15


def test_patho_gives_every_client_exactly_k_classes_and_every_class_as_many_holders():
    train, _ = pools()
    held = [set(train[rows]) for rows in partition("patho")[0]]
    assert {len(classes) for classes in held} == {4}
    holders = np.bincount([label for classes in held for label in classes], minlength=20)
    assert holders.max() - holders.min() <= 1


def test_patho_may_share_a_class_unevenly_with_a_least_share_for_each_of_its_holders():
    train, test = pools(train=500)
    tables, _ = pathological(Pools(train, test, 20), 5, rng(), alpha=1.0, min_share=0.02)
    counts = np.stack([np.bincount(train[rows], minlength=20) for rows in tables])
    assert ((counts > 0).sum(1) == 5).all()
    assert ((counts > 0).sum(0) == 5).all()
    assert counts[counts > 0].min() >= 9, "2 % of 500, but for rounding"
    assert counts[counts > 0].std() > 50, "even shares would be 100 each"
    assert counts.sum() == len(train)


def test_equal_random_parts_have_equal_sizes_and_nearly_the_mix_of_all():
    train, test = pools(train=500)
    tables, tests = iid(Pools(train, test, 9), rng())
    assert sorted(np.concatenate(tables).tolist()) == list(range(len(train)))
    assert sorted(np.concatenate(tests).tolist()) == list(range(len(test)))
    assert {len(rows) for rows in tables} == {1111, 1112}
    counts = np.stack([np.bincount(train[rows], minlength=20) for rows in tables])
    assert abs(counts - 55.6).max() < 30


def test_sc_dir_gives_every_client_one_or_two_super_classes_and_some_have_two():
    train, _ = pools()
    counts = {len(set(train[rows] % 5)) for rows in partition("sc-dir")[0]}
    assert counts == {1, 2}


def test_sc_dir_leaves_no_client_empty_when_super_class_numbers_have_gaps():
    train, test = pools(6)
    tables = superclass_dirichlet(Pools(train, test, 6), [2, 2, 7, 7, 9, 9], 3.0, rng())
    assert min(len(rows) for table in tables for rows in table) > 0


def test_a_smaller_alpha_concentrates_a_client_on_fewer_classes():
    train, test = pools(10, 200, 50)

    def largest_share(alpha: float) -> float:
        tables, _ = dirichlet(Pools(train, test, 10), alpha, rng())
        return float(np.mean([np.bincount(train[rows], minlength=10).max() / len(rows) for rows in tables]))

    assert largest_share(0.1) > largest_share(1.0) > largest_share(100.0)
    assert largest_share(1e6) == pytest.approx(0.1, abs=0.01)


def test_domains_keep_their_clients_apart():
    targets = np.tile(np.arange(4), 60)
    domains = np.arange(3).repeat(80)
    (train, _), of_client = by_domain(Pools(targets, targets, 5), (domains, domains), 0.6, rng())
    assert of_client == (0,) * 5 + (1,) * 5 + (2,) * 5
    assert all(set(domains[rows]) == {of_client[client]} for client, rows in enumerate(train))


def test_unseen_clients_are_a_fifth_and_spread_over_the_groups():
    domains = [0] * 10 + [1] * 10 + [2] * 10
    chosen = choose_unseen(domains, 0.2, rng())
    assert [sum(domains[client] == domain for client in chosen) for domain in range(3)] == [2, 2, 2]
    assert choose_unseen(domains, 0.2, rng()) == chosen != choose_unseen(domains, 0.2, rng(1))


def test_the_super_class_of_a_class_is_read_off_its_samples():
    assert superclass_of(np.array([0, 1, 2, 0]), np.array([3, 1, 3, 3]), 4) == (3, 1, 3, -1)


def test_a_class_with_two_super_classes_is_refused():
    with pytest.raises(ValueError, match=r"Class 0 has the super-classes \[1, 2\]"):
        superclass_of(np.array([0, 0]), np.array([1, 2]), 1)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (lambda t: dirichlet(Pools(*t, 12), 0.0, rng()), "concentration is 0.0"),
        (lambda t: dirichlet(Pools(*t, 0), 0.3, rng()), "0 clients"),
        (lambda t: dirichlet(Pools(*t, 400), 0.3, rng()), "No Dirichlet"),
        (lambda t: pathological(Pools(*t, 12), 21, rng()), "classes_per_client is 21"),
        (lambda t: pathological(Pools(*t, 4), 4, rng()), "cannot hold 20 classes"),
        (lambda t: superclass_dirichlet(Pools(*t, 12), np.arange(20), 3.0, rng()), "cannot hold 20 super-classes"),
        (lambda t: by_domain(Pools(*t, 3), (t[0] * 0, t[1] * 0 + 1), 0.6, rng()), "Domain 0 has 1200 training and 0"),
        (lambda t: choose_unseen([0, 0], 1.0, rng()), "unseen_fraction is 1.0"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(split, message: str):
    with pytest.raises(ValueError, match=message):
        split(pools())


@pytest.mark.parametrize("name", PARTITIONS)
def test_a_federation_of_images_is_disjoint_and_complete_with_a_fifth_unseen(name: str):
    options = Skew(partition=name, n_clients=20, classes_per_client=4)
    data = skewed_clients(options, synthetic(), rng())
    check_federation(data, 1200, 300, 4)
    assert (data.domains is not None) == (name == "sc-dir")


def test_super_class_skew_needs_super_classes():
    splits = [dataclasses.replace(split, domains=None) for split in synthetic()]
    with pytest.raises(ValueError, match=r"no super-classes.*--data.domain-column"):
        skewed_clients(Skew(partition="sc-dir"), (splits[0], splits[1]), rng())
    with pytest.raises(ValueError, match=r"no domains.*--data.domain-column"):
        domain_clients(Domains(), (splits[0], splits[1]), rng())


def test_batches_are_enlarged_and_normalised_and_training_batches_flipped_by_their_generator():
    presented = ImageOptions(image_size=8).presented()
    train, test = (dataclasses.replace(split, presented=presented) for split in synthetic())
    train.inputs[..., :2] = 255
    options = Skew(partition="patho", n_clients=20, classes_per_client=4)
    data = skewed_clients(options, (train, test), rng())
    inputs, _ = data.batch(*next(data.train_steps(0, 32, 1, torch.Generator().manual_seed(0))))
    again, _ = data.batch(*next(data.train_steps(0, 32, 1, torch.Generator().manual_seed(0))))
    assert inputs.shape[1:] == (3, 8, 8)
    assert torch.equal(inputs, again)
    assert set(inputs[:, 0, 0, 0].round().tolist()) == {-1.0, 1.0}, "some are mirrored, some are not"
    assert all((data.batch(rows)[0][:, 0, 0, 0] == -1).all() for rows in data.test_steps(0, 8))


@pytest.fixture(scope="module")
def cifar() -> tuple[Labelled, Labelled]:
    return load_images(ImageOptions(**CIFAR, image_size=8))


@needs_data
@pytest.mark.parametrize("name", PARTITIONS)
def test_cifar_100_is_split_over_100_clients(cifar: tuple[Labelled, Labelled], name: str):
    data = skewed_clients(Skew(partition=name), cifar, rng())
    assert data.n_clients == data.n_classes == 100
    check_federation(data, 8000, 2000, 20)
    held = [classes_of(data, client) for client in range(100)]
    if name == "patho":
        assert {len(classes) for classes in held} == {10}
    if name == "sc-dir":
        superclass = superclass_of(cifar[0].targets.numpy(), cifar[0].domains.numpy(), 100)
        assert {len({superclass[label] for label in classes}) for classes in held} == {1, 2}
        assert data.domains is not None
        assert set(data.domains) == set(range(20))


@needs_data
def test_pacs_gives_every_domain_its_own_clients():
    splits = load_images(ImageOptions(path=Path("pacs_1680_128px"), domain_column="domain", image_size=8))
    data = domain_clients(Domains(clients_per_domain=3), splits, rng())
    check_federation(data, 1680, 560, 2)
    assert data.domain_names == ("photo", "art_painting", "cartoon", "sketch")
    assert all(
        set(splits[0].domains[rows].tolist()) == {domain} for rows, domain in zip(data.train, data.domains, strict=True)
    )
