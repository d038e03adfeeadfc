"""The statistics of a comparison, against explicit loops, full enumeration and SciPy."""

import numpy as np
import pytest
from scipy import stats

from fedsim.report.paired import (
    best_of_the_others,
    corrected,
    difference,
    differences_of,
    holm,
    mean_and_sd,
    seeds_to_decide,
    sequential,
    spending,
)


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


def test_the_p_and_the_interval_are_those_of_a_paired_t_test_on_means_of_seeds():
    rng = np.random.default_rng(1)
    ours, theirs = ([rng.random(20) for _ in range(6)] for _ in range(2))
    found = difference([a - b for a, b in zip(ours, theirs, strict=True)])
    test = stats.ttest_rel([seed.mean() for seed in ours], [seed.mean() for seed in theirs])
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_equivalence_is_two_one_sided_tests():
    means = np.array([0.002, -0.001, 0.003, 0.0, 0.001])
    found = difference([np.full(4, mean) for mean in means])
    above = stats.ttest_1samp(means, -0.01, alternative="greater").pvalue
    below = stats.ttest_1samp(means, 0.01, alternative="less").pvalue
    assert found.p_same == pytest.approx(max(above, below))
    assert found.verdict == "no difference (±0.01)"


def test_one_seed_has_an_interval_over_clients_and_no_test():
    values = np.random.default_rng(1).normal(0.1, 1, 80)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=2).confidence_interval
    found = difference([values])
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=0.02)
    assert np.isnan(found.p)
    assert not found.is_significant


@pytest.mark.parametrize(("n_seeds", "seed_deviation"), [(3, 0.04), (10, 0.02)])
def test_of_methods_that_do_not_differ_at_most_seven_in_a_hundred_are_told_apart(n_seeds, seed_deviation):
    """Twenty clients; both methods vary by seed as a whole, which tests over clients x seeds take for a difference."""
    rng, wrong, n_draws = np.random.default_rng(7), 0, 600
    for _ in range(n_draws):
        level = rng.uniform(0.4, 0.8, 20)
        scores = {
            name: [level + rng.normal(0, seed_deviation) + rng.normal(0, 0.05, 20) for _ in range(n_seeds)]
            for name in ("a", "b", "c")
        }
        wrong += any(gap.is_significant for gap in differences_of(scores).values())
    assert wrong / n_draws <= 0.07


def test_accuracies_of_few_samples_are_not_told_apart_by_chance():
    """With two seeds, differences of rounded accuracies are often equal, whose deviation is zero."""
    rng, wrong = np.random.default_rng(8), 0
    for _ in range(1500):
        gaps = [(rng.binomial(10, 0.5, 4) - rng.binomial(10, 0.5, 4)) / 10 for _ in range(2)]
        wrong += difference(gaps).p < 0.05
    assert wrong / 1500 <= 0.07


def test_a_shift_of_the_whole_table_is_within_the_interval_nineteen_times_in_twenty():
    rng = np.random.default_rng(9)
    inside = 0
    for _ in range(1000):
        found = difference([0.03 + rng.normal(0, 0.03) + rng.normal(0, 0.05, 20) for _ in range(5)])
        inside += found.low <= 0.03 <= found.high
    assert 0.93 <= inside / 1000 <= 0.97


@pytest.mark.parametrize(("mean", "sd"), [(0.03, 0.03), (0.012, 0.02), (0.0, 0.02), (0.002, 0.01)])
def test_the_seeds_that_would_decide_decide_in_four_of_five(mean, sd):
    n = seeds_to_decide(mean, sd)
    draws = np.random.default_rng(10).normal(mean, sd, (4000, n))
    error, centre = draws.std(1, ddof=1) / n**0.5, draws.mean(1)
    differs = np.abs(centre) / error > stats.t.ppf(0.975, n - 1)
    same = (0.01 - np.abs(centre)) / error > stats.t.ppf(0.95, n - 1)
    assert max(differs.mean(), same.mean()) == pytest.approx(0.8, abs=0.06)


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
    assert found["better"].low > 0.08
    assert not found["noise"].is_significant
    assert found["noise"].low < 0 < found["noise"].high
    assert found["better"].mean == pytest.approx(np.mean(np.concatenate(better)) - np.mean(np.concatenate(base)))


def test_the_best_and_its_runner_up_are_one_hypothesis():
    base = [np.arange(9) / 9 + seed for seed in range(3)]
    scores = {"a": base, "b": [seed + gap for seed, gap in zip(base, (0.01, 0.1, 0.04), strict=True)]}
    found = differences_of(scores)
    assert found["a"].mean == -found["b"].mean
    assert found["a"].p == found["a"].p_holm == found["b"].p_holm


def test_clients_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="unequal numbers of clients"):
        differences_of({"a": [np.zeros(3)], "b": [np.zeros(4)]})


def test_a_single_seed_has_no_deviation():
    assert np.isnan(mean_and_sd([0.5])[1])
    assert mean_and_sd([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))


# several looks


def null_gaps(rng: np.random.Generator, n_seeds: int, seed_deviation: float) -> list[np.ndarray]:
    """Differences of twenty clients; both methods vary by seed as a whole, and nothing else is between them."""
    return [rng.normal(0, seed_deviation * 2**0.5) + rng.normal(0, 0.07, 20) for _ in range(n_seeds)]


@pytest.mark.parametrize(("looks", "n_gates"), [((2, 3, 4, 5, 6), 1), ((4, 8, 12), 4)])
def test_of_orderings_that_are_not_there_at_most_seven_in_a_hundred_are_found_at_any_look(looks, n_gates):
    rng, wrong, n_draws = np.random.default_rng(11), 0, 200
    for _ in range(n_draws):
        gaps = [null_gaps(rng, looks[-1], 0.03) for _ in range(n_gates)]
        judged = [corrected([sequential(of[:n], looks) for of in gaps]) for n in looks]
        wrong += any(found.is_significant for of_look in judged for found in of_look)
    assert wrong / n_draws <= 0.07


def test_looking_again_and_again_without_spending_would_find_too_much():
    """The test above can fail: it would, of plain tests at every look."""
    rng, wrong = np.random.default_rng(11), 0
    for _ in range(200):
        gaps = null_gaps(rng, 6, 0.03)
        wrong += any(difference(gaps[:n]).p < 0.05 for n in range(2, 7))
    assert wrong / 200 > 0.07


def test_two_methods_that_differ_by_the_margin_are_rarely_called_equal_at_any_look():
    rng, wrong, looks = np.random.default_rng(12), 0, (4, 8, 12)
    for _ in range(200):
        gaps = [0.01 + gap for gap in null_gaps(rng, 12, 0.004)]
        wrong += any(sequential(gaps[:n], looks).p_same < 0.05 for n in looks)
    assert wrong / 200 <= 0.07


def test_the_level_is_spent_by_the_square_of_the_seeds_and_all_of_it():
    assert spending((4, 8, 12)) == pytest.approx([1 / 9, 3 / 9, 5 / 9])
    assert spending((5,)) == [1.0]
    assert spending((2, 4), rho=1) == pytest.approx([0.5, 0.5])
    for looks in ((), (1, 4), (4, 4), (8, 4)):
        with pytest.raises(ValueError, match="looks are"):
            spending(looks)


def test_with_one_look_the_test_is_the_plain_one_and_before_it_there_is_none():
    gaps = [np.full(4, 0.03 + 0.01 * k) for k in range(5)]
    assert sequential(gaps, (5,)).p == difference(gaps).p
    early = sequential(gaps[:4], (5,))
    assert (early.p, early.seeds, early.is_significant) == (1.0, 4, False)
    assert sequential(gaps, (4, 8)).mean == pytest.approx(0.045), "the fifth seed waits for its look"


def test_what_an_early_look_found_still_holds_at_a_later_one():
    rng = np.random.default_rng(13)
    gaps = [shift + rng.normal(0, 0.01, 20) for shift in (0.1, 0.1, 0.1, 0.1, -0.09, -0.09, -0.09, -0.09)]
    assert sequential(gaps[:4], (4, 8)).is_significant
    assert difference(gaps).p > 0.05
    assert sequential(gaps, (4, 8)).is_significant
    turned = [*gaps[:4], *(gap - 0.05 for gap in gaps[4:])]
    assert not sequential(turned, (4, 8)).is_significant, "its sign is another one by now"
