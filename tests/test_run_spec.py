"""What a run's parts must be, checked before anything starts."""

import itertools

import numpy as np
import pytest
import torch
from conftest import TinyAttention, tiny_data

from fedsim.data.federated import FederatedData
from fedsim.methods import FedIT
from fedsim.round import Population
from fedsim.run_spec import RunSpec, check_cohort_size, population_of

POPULATION = Population(10, (0, 1, 3, 4, 5, 7, 8), (2, 6, 9), (10,) * 10)


def data(train_sizes, unseen=()) -> FederatedData:
    edges = np.cumsum([0, *train_sizes])
    tables = [torch.arange(start, stop) for start, stop in itertools.pairwise(edges)]
    inputs, targets = torch.zeros(edges[-1], 2), torch.zeros(edges[-1], dtype=torch.long)
    return FederatedData(inputs, targets, tables, tables, ["only"], unseen=frozenset(unseen))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 1.5}, r"rounds is 1.5; it must be a whole number \(--rounds\)"),
        ({"method": "fedit"}, "method is 'fedit'; it must be an object"),
        ({"method": FedIT}, "it must be an object"),
        ({"engine": "foo"}, "engine is 'foo'"),
    ],
)
def test_unsuitable_arguments_of_a_simulation_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RunSpec(**{"method": FedIT(), "backbone": TinyAttention(), "data": tiny_data(), "rounds": 1} | changes)


@pytest.mark.parametrize("given", [None, 1, 7])
def test_a_cohort_of_anyone_up_to_everyone_who_takes_part_is_fine(given):
    check_cohort_size(given, POPULATION)


@pytest.mark.parametrize("given", [0, -1, 8, 10])
def test_a_cohort_that_the_population_cannot_fill_is_refused(given):
    with pytest.raises(ValueError, match=rf"cohort_size is {given}; it must lie in 1 … 7, .*\(3 of 10 .*--cohort-size"):
        check_cohort_size(given, POPULATION)


def test_the_population_tells_seen_from_unseen_and_counts_training_samples():
    population = population_of(data([4, 0, 2, 1], unseen=[2, 1]))
    assert population == Population(4, (0, 3), (1, 2), (4, 0, 2, 1), None)


def test_a_population_without_training_samples_is_refused():
    with pytest.raises(ValueError, match="training sample"):
        population_of(data([0, 5], unseen=[1]))
