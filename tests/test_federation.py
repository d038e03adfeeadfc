"""Who takes part in a round, and which worker trains whom."""

import itertools

import numpy as np
import pytest
import torch

from fedsim.data.federated import FederatedData
from fedsim.federation import check_cohort_size, deal, form_blocks, population_of, sample_cohort
from fedsim.round import Population

POPULATION = Population(10, (0, 1, 3, 4, 5, 7, 8), (2, 6, 9), (10,) * 10)


def data(train_sizes, unseen=()) -> FederatedData:
    edges = np.cumsum([0, *train_sizes])
    tables = [torch.arange(start, stop) for start, stop in itertools.pairwise(edges)]
    inputs, targets = torch.zeros(edges[-1], 2), torch.zeros(edges[-1], dtype=torch.long)
    return FederatedData(inputs, targets, tables, tables, ["only"], unseen=frozenset(unseen))


# dealing


def test_the_heaviest_block_goes_first_and_always_to_the_least_busy_worker():
    hands, utilisation = deal("abcde", [2, 7, 5, 4, 3], 2)
    assert hands == [["b", "e"], ["c", "d", "a"]]
    assert utilisation == pytest.approx(11 / 10.5)


def test_ties_go_to_the_earlier_block_and_the_earlier_worker():
    assert deal("abcdef", [1, 1, 1, 1, 1, 1], 3) == ([["a", "d"], ["b", "e"], ["c", "f"]], 1)


def test_one_worker_gets_everything_and_more_workers_than_blocks_leave_some_idle():
    assert deal("abc", [1, 3, 2], 1) == ([["b", "c", "a"]], 1)
    assert deal("ab", [1, 2], 4) == ([["b"], ["a"], [], []], pytest.approx(2 / 0.75))
    assert deal([], [], 2) == ([[], []], 1)


def test_blocks_without_work_are_dealt_too():
    assert sorted(itertools.chain(*deal("abc", [0, 0, 5], 2)[0])) == ["a", "b", "c"]


@pytest.mark.parametrize("n_workers", [2, 3])
def test_the_busiest_worker_is_within_grahams_bound_of_the_best_deal_there_is(n_workers):
    """LPT is at most 4/3 − 1/(3m) times the optimum (Graham 1969), here found by trying every deal."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        loads = rng.integers(1, 30, size=7).tolist()
        hands, _ = deal(range(7), loads, n_workers)
        assert sorted(itertools.chain(*hands)) == list(range(7))
        ours = max(sum(loads[block] for block in hand) for hand in hands)
        best = min(
            max(sum(load for load, owner in zip(loads, owners, strict=True) if owner == w) for w in range(n_workers))
            for owners in itertools.product(range(n_workers), repeat=7)
        )
        assert ours <= best * (4 / 3 - 1 / (3 * n_workers))


# blocks


def test_blocks_are_even_and_hold_neighbours_in_the_order_of_their_keys():
    keys = {client: (0, -amount) for client, amount in enumerate([1, 9, 5, 7, 2, 8, 3])}
    assert form_blocks(keys, 3) == [[1, 5], [3, 2], [6, 4, 0]]
    assert form_blocks(keys, 7) == [[1, 5, 3, 2, 6, 4, 0]]
    assert form_blocks(keys, 1) == [[1], [5], [3], [2], [6], [4], [0]]


def test_clients_that_train_from_the_same_depth_up_share_a_block():
    lowest = [0, 2, 0, 2, 1, 0]
    keys = {client: (depth, 0) for client, depth in enumerate(lowest)}
    assert form_blocks(keys, 3) == [[0, 2, 5], [4, 1, 3]]


def test_nobody_makes_no_block():
    assert form_blocks({}, 4) == []


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
