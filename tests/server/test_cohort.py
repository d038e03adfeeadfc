"""Who takes part in a round, and which worker trains whom."""

import itertools

import numpy as np
import pytest
import torch

from fedsim.data.federated import FederatedData
from fedsim.round import Population
from fedsim.server.cohort import check_cohort_size, population_of, sample_cohort

POPULATION = Population(10, (0, 1, 3, 4, 5, 7, 8), (2, 6, 9), (10,) * 10)


def data(train_sizes, unseen=()) -> FederatedData:
    edges = np.cumsum([0, *train_sizes])
    tables = [torch.arange(start, stop) for start, stop in itertools.pairwise(edges)]
    inputs, targets = torch.zeros(edges[-1], 2), torch.zeros(edges[-1], dtype=torch.long)
    return FederatedData(inputs, targets, tables, tables, ["only"], unseen=frozenset(unseen))


# cohorts


def test_a_cohort_has_distinct_seen_clients_in_ascending_order():
    for round_index in range(50):
        cohort = sample_cohort(POPULATION, 4, 0, round_index)
        assert len(cohort) == 4
        assert cohort == sorted(set(cohort))
        assert set(cohort) <= set(POPULATION.seen)


def test_a_cohort_is_a_function_of_seed_and_round_alone():
    one, other_round, other_seed = (sample_cohort(POPULATION, 4, *key) for key in ((0, 0), (0, 1), (1, 0)))
    np.random.seed(5)
    assert sample_cohort(POPULATION, 4, 0, 0) == one
    assert one not in (other_round, other_seed)


def test_a_cohort_of_everyone_is_everyone():
    assert sample_cohort(POPULATION, 7, 0, 3) == list(POPULATION.seen)


def test_clients_are_sampled_uniformly():
    rounds = 2000
    counts = np.zeros(10)
    for round_index in range(rounds):
        counts[sample_cohort(POPULATION, 2, 0, round_index)] += 1
    expected = rounds * 2 / 7
    assert not counts[list(POPULATION.unseen)].any()
    assert np.abs(counts[list(POPULATION.seen)] - expected).max() < 5 * expected**0.5


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
