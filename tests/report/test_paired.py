"""The statistics of a comparison, against explicit loops, full enumeration and SciPy."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from fedsim.report.paired import (
    best_of_the_others,
    bootstrap_interval,
    differences_of,
    holm,
    mean_and_sd,
    signed_rank_p,
)


def test_the_signed_rank_p_is_the_share_of_sign_patterns_at_least_as_extreme():
    differences = np.array([0.31, -0.04, 0.22, 0.17, 0.08, -0.11, 0.4])
    ranks = stats.rankdata(np.abs(differences))
    sums = [sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign) for signs in product((0, 1), repeat=7)]
    observed, middle = ranks[differences > 0].sum(), ranks.sum() / 2
    expected = np.mean([abs(total - middle) >= abs(observed - middle) for total in sums])
    assert signed_rank_p(differences) == pytest.approx(expected)


def test_equal_scores_have_p_one():
    assert signed_rank_p(np.zeros(5)) == 1.0


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p_values, level = rng.random(6) ** 3, 0.05
        rejected, ordered = set(), sorted(range(6), key=lambda index: p_values[index])
        for step, index in enumerate(ordered):
            if p_values[index] >= level / (6 - step):
                break
            rejected.add(index)
        assert {index for index, p in enumerate(holm(p_values)) if p < level} == rejected


def test_holm_of_a_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_with_one_seed_the_bootstrap_is_scipys():
    values = np.random.default_rng(1).normal(0.1, 1, 80)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=2).confidence_interval
    assert bootstrap_interval([values], np.random.default_rng(3)) == pytest.approx(tuple(theirs), abs=0.02)


def test_the_bootstrap_draws_seeds_and_then_their_clients():
    rng = np.random.default_rng(4)
    differences = [rng.normal(centre, 0.1, size) for centre, size in ((0.0, 5), (0.3, 8), (0.5, 13))]
    means = []
    for _ in range(4000):
        seeds = rng.integers(3, size=3)
        means.append(np.mean([rng.choice(differences[seed], len(differences[seed])).mean() for seed in seeds]))
    expected = np.percentile(means, [2.5, 97.5])
    assert bootstrap_interval(differences, np.random.default_rng(5)) == pytest.approx(tuple(expected), abs=0.02)


def test_the_reference_is_the_best_of_the_others_by_mean():
    scores = {"a": [np.array([0.5, 0.7])], "b": [np.array([0.9, 0.9])], "c": [np.array([0.6, 0.7])]}
    assert best_of_the_others(scores) == {"a": "b", "b": "c", "c": "b"}


def test_a_real_gap_is_marked_and_noise_is_not():
    rng = np.random.default_rng(6)
    base = [rng.random(30) for _ in range(3)]
    better = [seed + 0.1 + rng.normal(0, 0.02, 30) for seed in base]
    noise = [seed + rng.normal(0, 0.02, 30) for seed in base]
    found = differences_of({"base": base, "better": better, "noise": noise}, "base")
    assert set(found) == {"better", "noise"}
    assert found["better"].is_significant
    assert found["better"].low > 0.09
    assert not found["noise"].is_significant
    assert found["noise"].low < 0 < found["noise"].high
    assert found["better"].mean == pytest.approx(np.mean(np.concatenate(better)) - np.mean(np.concatenate(base)))


def test_the_best_and_its_runner_up_are_one_hypothesis():
    scores = {"a": [np.arange(9) / 9], "b": [np.arange(9) / 9 + np.linspace(0.01, 0.1, 9)]}
    found = differences_of(scores)
    assert found["a"].mean == -found["b"].mean
    assert found["a"].p == found["a"].p_holm == found["b"].p_holm


def test_clients_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="unequal numbers of clients"):
        differences_of({"a": [np.zeros(3)], "b": [np.zeros(4)]})


def test_a_single_seed_has_no_deviation():
    assert np.isnan(mean_and_sd([0.5])[1])
    assert mean_and_sd([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))


def test_equal_differences_of_accuracies_are_ties_though_their_last_bits_differ():
    ours, theirs = np.array([3, 2, 4, 5, 9, 1]) / 10, np.array([2, 1, 3, 4, 8, 2]) / 10
    assert len(set(np.abs(ours - theirs))) > 1
    ranks = np.full(6, 3.5)
    sums = [sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign) for signs in product((0, 1), repeat=6)]
    expected = np.mean([abs(total - 10.5) >= abs(17.5 - 10.5) for total in sums])
    assert signed_rank_p(ours - theirs) == pytest.approx(expected)
    assert signed_rank_p(np.array([0.1 + 0.2 - 0.3, 0.0])) == 1.0, "no difference at all"
