"""Is one method better than another, and is it real? Statistics paired by client and seed; pure functions of arrays.

Scores of a method are one array (C,) a seed, clients in the same order for every method. A mean is that over seeds of
the mean over clients, so a difference of two rows of a table is the difference of their means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from fedsim.randomness import numpy_generator

Scores = Sequence[NDArray[np.float64]]
"""A method's score of every client, (C,) for each seed."""

RESAMPLES = 10_000
LEVEL = 0.05
"""Where a difference counts as significant, over all methods of a table together."""


@dataclass(frozen=True)
class Difference:
    """A method minus its reference: the mean, its bootstrap interval, and Wilcoxon's p, before and after Holm."""

    reference: str
    mean: float
    low: float
    high: float
    p: float
    p_holm: float

    @property
    def is_significant(self) -> bool:
        """Whether p stays under 5 % after Holm's correction."""
        return self.p_holm < LEVEL


def mean_score(scores: Scores) -> float:
    """Return the mean over seeds of the mean over clients."""
    return float(np.mean([seed.mean() for seed in scores]))


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (ddof 1) over seeds; of a single seed the deviation is NaN."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def signed_rank_p(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test, differences of zero left out; 1 when all are zero.

    Differences of accuracies are fractions, and equal ones differ in their last bits: they are ties all the same.
    """
    rounded = np.round(differences, 12)
    return float(wilcoxon(rounded).pvalue) if np.any(rounded) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values: the k-th smallest of m times m-k+1, never falling, at most 1."""
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def bootstrap_interval(
    differences: Scores, rng: np.random.Generator, resamples: int = RESAMPLES, coverage: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of the mean difference: seeds are drawn again, and in each its clients.

    With one seed only clients are drawn, and the interval says nothing about other seeds.
    """
    drawn = rng.integers(len(differences), size=(resamples, len(differences)))
    means = np.empty(drawn.shape)
    for seed, values in enumerate(differences):
        places = drawn == seed
        for chunk in np.array_split(np.flatnonzero(places), max(1, places.sum() * len(values) // 2_000_000)):
            clients = rng.integers(len(values), size=(len(chunk), len(values)))
            means.flat[chunk] = values[clients].mean(1)
    tail = 50 * (1 - coverage)
    low, high = np.percentile(means.mean(1), [tail, 100 - tail])
    return float(low), float(high)


def best_of_the_others(scores: Mapping[str, Scores]) -> dict[str, str]:
    """Return for every method the one with the best mean among the others; the earlier one of equals."""
    means = {name: mean_score(of_method) for name, of_method in scores.items()}
    return {name: max((other for other in means if other != name), key=means.__getitem__) for name in means}


def differences_of(scores: Mapping[str, Scores], reference: str | None = None) -> dict[str, Difference]:
    """Return every method's difference from `reference`, which has none, or else from the best of the others.

    Holm's correction is over the distinct pairs: the best method and its runner-up are one. Choosing the best by the
    same scores favours it a little; a reference named beforehand does not.

    Raises ValueError when two methods were not scored on the same clients.
    """
    if len(scores) < 2:
        return {}
    shapes = {name: [len(seed) for seed in of_method] for name, of_method in scores.items()}
    if len(set(map(tuple, shapes.values()))) > 1:
        raise ValueError(f"Methods were scored on unequal numbers of clients: {shapes}.")
    against = dict.fromkeys(scores, reference) if reference else best_of_the_others(scores)
    gaps = {
        name: [ours - theirs for ours, theirs in zip(scores[name], scores[other], strict=True)]
        for name, other in against.items()
        if other is not None and name != other
    }
    p = {name: signed_rank_p(np.concatenate(gap)) for name, gap in gaps.items()}
    pairs = {frozenset((name, str(against[name]))): value for name, value in p.items()}
    corrected = dict(zip(pairs, holm(list(pairs.values())), strict=True))
    found = {}
    for name, gap in gaps.items():
        low, high = bootstrap_interval(gap, numpy_generator(0, "bootstrap"))
        other = str(against[name])
        found[name] = Difference(other, mean_score(gap), low, high, p[name], corrected[frozenset((name, other))])
    return found
