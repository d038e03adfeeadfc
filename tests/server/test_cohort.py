"""Who takes part in a round."""

import numpy as np

from fedsim.parts.privacy import Privacy
from fedsim.parts.privacy_loss import Mechanism, epsilon
from fedsim.round import Population
from fedsim.server.cohort import sample_cohort
from fedsim.server.ledger import Ledger

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


def test_under_poisson_sampling_each_client_joins_by_itself_and_nobody_may():
    rounds = 3000
    cohorts = [sample_cohort(POPULATION, 2, 0, r, sampling="poisson") for r in range(rounds)]
    sizes, members = np.array(list(map(len, cohorts))), np.array([[c in k for c in POPULATION.seen] for k in cohorts])
    p = 2 / 7
    assert all(cohort == sorted(set(cohort) & set(POPULATION.seen)) for cohort in cohorts)
    assert np.abs(members.mean(0) - p).max() < 5 * (p * (1 - p) / rounds) ** 0.5
    assert abs(sizes.var() - 7 * p * (1 - p)) < 0.15, "binomial"
    assert (sizes == 0).mean() > 0.5 * (1 - p) ** 7
    assert sample_cohort(POPULATION, 7, 0, 3, sampling="poisson") == list(POPULATION.seen)


def test_with_local_noise_the_busiest_client_counts():
    """A ledger's ε is that of as many releases as any client had, in whatever order rounds are asked for."""
    privacy = Privacy(clip=1.0, noise_multiplier=2.0, local=True)
    mechanism = Mechanism(7, 2, "fixed", is_local=True)
    ledger = Ledger(privacy, mechanism, POPULATION, seed=3, rounds=9)
    taken = np.zeros(10, int)
    for rounds in range(1, 10):
        taken[sample_cohort(POPULATION, 2, 3, rounds - 1)] += 1
        assert ledger.epsilon(rounds) == epsilon(mechanism, 2.0, 1e-5, taken.max())
    assert taken.max() < 9
    assert ledger.epsilon(1) == epsilon(mechanism, 2.0, 1e-5, 1)
    assert ledger.deviation == 2.0
