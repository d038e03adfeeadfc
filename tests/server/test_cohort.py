"""Who takes part in a round."""

import numpy as np

from fedsim.round import Population
from fedsim.server.cohort import sample_cohort

POPULATION = Population(10, (0, 1, 3, 4, 5, 7, 8), (2, 6, 9), (10,) * 10)


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
