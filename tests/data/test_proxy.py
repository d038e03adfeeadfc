"""The server's own samples: stratified, nobody else's, and no client in the eyes of the rest."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_data

import fedsim
from fedsim.data.builtin.digits import DigitStyles, digit_styles
from fedsim.data.protocols import Domains, Skew, domain_clients, skewed_clients
from fedsim.data.proxy import with_drawn_proxy
from fedsim.data.sources.labelled import Labelled
from fedsim.run_spec import population_of
from fedsim.server.cohort import sample_cohort


def labelled(counts: list[int]) -> Labelled:
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    domains = torch.arange(len(targets)) % 2
    names = tuple(str(label) for label in range(len(counts)))
    return Labelled(torch.arange(len(targets))[:, None].float(), targets, names, domains, ("even", "odd"))


@pytest.mark.parametrize(("n", "expected"), [(10, [5, 3, 2]), (20, [10, 6, 4]), (1, [1, 0, 0]), (0, [0, 0, 0])])
def test_the_server_keeps_samples_in_the_proportions_of_their_classes(n, expected):
    targets = np.repeat([0, 1, 2], [50, 30, 20])
    proxy, rest = fedsim.split_off_proxy(targets, n, np.random.default_rng(0))
    assert np.bincount(targets[proxy.numpy()], minlength=3).tolist() == expected
    assert sorted([*proxy.tolist(), *rest.tolist()]) == list(range(100))


def test_chance_decides_between_classes_of_which_there_are_more_than_samples():
    targets, rng = np.repeat(np.arange(10), 5), np.random.default_rng(0)
    found = {int(targets[int(fedsim.split_off_proxy(targets, 1, rng)[0])]) for _ in range(100)}
    assert found == set(range(10))


@pytest.mark.parametrize("n", [-1, 50])
def test_the_server_cannot_keep_everything(n):
    with pytest.raises(ValueError, match=rf"proxy_samples is {n}.*50 training samples.*--data.proxy-samples"):
        fedsim.split_off_proxy(np.zeros(50, int), n, np.random.default_rng(0))


SKEW = {"n_clients": 6, "alpha": 10.0, "proxy_samples": 12, "unseen_fraction": 0.2}
FEDERATIONS = {
    "gl-dir": lambda train, test, rng: skewed_clients(Skew(**SKEW), (train, test), rng),
    "patho": lambda train, test, rng: skewed_clients(
        Skew(**SKEW, partition="patho", classes_per_client=2), (train, test), rng
    ),
    "domains": lambda train, test, rng: domain_clients(
        Domains(clients_per_domain=3, alpha=10.0, proxy_samples=12), (train, test), rng
    ),
    "digits": lambda train, test, rng: digit_styles(DigitStyles(proxy_samples=12, unseen_fraction=0.25), rng),
}


@pytest.mark.parametrize("name", FEDERATIONS)
def test_the_proxy_is_the_last_client_and_every_sample_is_someones(name):
    train, test = labelled([120, 80, 40]), labelled([30, 20, 10])
    data = FEDERATIONS[name](train, test, np.random.default_rng(0))
    assert data.proxy == data.n_clients - 1
    assert (data.train_size(data.proxy), data.test_size(data.proxy)) == (12, 0)
    rows = torch.cat(list(data.train))
    assert len(rows.unique()) == len(rows)
    if name != "digits":
        assert data.targets[data.train[data.proxy]].bincount().tolist() == [6, 4, 2]
        assert rows.sort().values.tolist() == list(range(240))
    population = population_of(data)
    assert population.n_participants == data.n_clients - 1 == len(population.seen) + len(population.unseen)
    assert data.proxy not in {*population.seen, *population.unseen}
    cohorts = [sample_cohort(population, len(population.seen), 0, index) for index in range(3)]
    assert all(tuple(cohort) == population.seen for cohort in cohorts)


def test_samples_of_clients_can_be_given_to_the_server():
    data = fedsim.with_proxy(tiny_data(), torch.tensor([0, 1, 17]))
    assert data.proxy == 6
    assert [data.train_size(client) for client in range(7)] == [10, 11, 12, 12, 12, 12, 3]
    assert fedsim.with_proxy(tiny_data(), torch.empty(0, dtype=torch.long)).proxy is None
    with pytest.raises(ValueError, match="have a proxy client already, 6"):
        fedsim.with_proxy(data, torch.tensor([3]))


def test_a_drawn_proxy_takes_training_samples_of_seen_clients_only():
    data = replace(tiny_data(), unseen=frozenset({1, 4}))
    drawn = with_drawn_proxy(data, 9, np.random.default_rng(0))
    rows = set(drawn.train[6].tolist())
    assert (drawn.proxy, len(rows), drawn.test_size(6)) == (6, 9, 0)
    assert drawn.train[6].tolist() == sorted(rows)
    assert not rows & {int(row) for client in (1, 4) for row in data.train[client]}
    for client in range(6):
        left = [row for row in data.train[client].tolist() if row not in rows]
        assert drawn.train[client].tolist() == left
        assert torch.equal(drawn.test[client], data.test[client])
    assert drawn.train_size(1) == data.train_size(1)
    again, other = (with_drawn_proxy(data, 9, np.random.default_rng(seed)).train[6] for seed in (0, 1))
    assert torch.equal(drawn.train[6], again)
    assert not torch.equal(drawn.train[6], other)


def test_a_drawn_proxy_of_no_sample_is_none_and_not_all_samples_can_be_drawn():
    data = replace(tiny_data(), unseen=frozenset({1, 4}))
    assert with_drawn_proxy(data, 0, np.random.default_rng(0)).proxy is None
    seen = sum(data.train_size(client) for client in (0, 2, 3, 5))
    assert with_drawn_proxy(data, seen - 1, np.random.default_rng(0)).train_size(6) == seen - 1
    for n in (-1, seen):
        with pytest.raises(ValueError, match=rf"proxy_samples is {n}.*{seen} training samples.*--data.proxy-samples"):
            with_drawn_proxy(data, n, np.random.default_rng(0))


def test_a_proxy_that_is_not_the_last_client_is_refused():
    data = tiny_data()
    with pytest.raises(ValueError, match="the proxy client 2 must be the last of 6 clients"):
        fedsim.FederatedData(data.inputs, data.targets, data.train, data.test, data.class_names, proxy=2)
