"""Is one method better than another, and is it real? Statistics with the seed as the unit; pure functions of arrays.

Scores of a method are one array (C,) a seed, clients in the same order for every method. Clients of one seed share a
split and a model, so they are not independent: what is tested is the difference of the methods' means by seed, (S,).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import isnan, nan, sqrt

import numpy as np
from numpy.typing import NDArray

from fedsim.randomness import numpy_generator

Scores = Sequence[NDArray[np.float64]]
"""A method's score of every client, (C,) for each seed."""

RESAMPLES = 10_000
LEVEL = 0.05
"""Where a difference counts as significant, over all methods of a table together."""
MARGIN = 0.01
"""Up to which difference two methods count as equal."""
POWER = 0.8
MOST_SEEDS = 1000
"""Where the search for the number of seeds that would decide ends."""
SPENDING = 2.0
"""ρ of the spending function α t^ρ (Kim and DeMets 1987): 1 is near Pocock's rule, 3 near O'Brien and Fleming's."""


@dataclass(frozen=True)
class Difference:
    """A method minus its reference, over seeds: mean, 95 % interval, p of the paired t-test and of equivalence.

    `p` is of no difference, `p_same` of one beyond the margin (two one-sided tests). Both are NaN for one seed, whose
    interval is over its clients and says nothing about other seeds. `sd` is the deviation over seeds (ddof 1), `pairs`
    over how many differences p is corrected, `level` that of the last look where there are several.
    """

    reference: str
    mean: float
    low: float
    high: float
    p: float
    p_holm: float
    p_same: float
    seeds: int
    sd: float
    pairs: int = 1
    margin: float = MARGIN
    level: float = LEVEL

    @property
    def is_significant(self) -> bool:
        """Whether p stays under 5 % after Holm's correction."""
        return self.p_holm < LEVEL

    @property
    def verdict(self) -> str:
        """What the test says: better, worse, no difference, or undecided with the seeds that would decide."""
        if self.is_significant:
            return "better" if self.mean > 0 else "worse"
        if self.p_same < LEVEL:
            return f"no difference (±{self.margin:g})"
        needed = self.needed
        return f"undecided ({needed} seeds)" if needed else "undecided"

    @property
    def needed(self) -> int:
        """With how many seeds an undecided difference would be decided, more than there are; 0 beyond 1000."""
        needed = seeds_to_decide(self.mean, self.sd, self.margin, self.level / self.pairs)
        return max(needed, self.seeds + 1) if needed else 0


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (ddof 1) over seeds; of a single seed the deviation is NaN."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else nan


def difference(gaps: Scores, reference: str = "", margin: float = MARGIN) -> Difference:
    """Return what the differences by client, (C,) for each seed, say of the difference of two methods.

    The test is Student's, paired by seed: means of seeds are the sample. It says nothing before the second seed.
    """
    means = np.round([seed.mean() for seed in gaps], 12)  # equal accuracies differ in their last bits
    mean, sd = mean_and_sd(means.tolist())
    n = len(means)
    if n < 2:
        low, high = client_interval(gaps[0], numpy_generator(0, "bootstrap"))
        return Difference(reference, mean, low, high, nan, nan, nan, n, nan, margin=margin)
    from scipy.stats import t

    error, df = sd / sqrt(n), n - 1
    half = float(t.ppf(1 - LEVEL / 2, df)) * error
    if error:
        p, p_same = 2 * float(t.sf(abs(mean) / error, df)), float(t.sf((margin - abs(mean)) / error, df))
    else:  # equal in every seed, which rounded accuracies may be by chance: the sign test
        p, p_same = (0.5 ** (n - 1), 0.5**n if abs(mean) < margin else 1.0) if mean else (1.0, 0.0)
    return Difference(reference, mean, mean - half, mean + half, p, p, p_same, n, sd, margin=margin)


def spending(looks: Sequence[int], rho: float = SPENDING) -> list[float]:
    """Return the share of the level that each look gets, summing to 1: t_k^ρ − t_{k−1}^ρ, t_k = n_k / n_K.

    `looks` are the numbers of seeds at which differences are judged, written down before the runs; the last is the most
    there will be. Raises ValueError unless they are 2 or more and rise.
    """
    if not looks or min(looks) < 2 or list(looks) != sorted(set(looks)):
        raise ValueError(
            f"looks are {list(looks)}; they must be numbers of seeds, 2 or more, each above the one before."
        )
    spent = [(n / looks[-1]) ** rho for n in looks]
    return [now - before for now, before in zip(spent, [0.0, *spent], strict=False)]


def sequential(gaps: Scores, looks: Sequence[int], margin: float = MARGIN, reference: str = "") -> Difference:
    """Return what differences, (C,) for each seed, say that are judged again and again while seeds are added.

    Seeds count up to the last look that was reached. Its p is the least over the looks so far of p_k / w_k, with w_k of
    `spending`: a p of all looks together by the union bound, whatever their correlation, valid for few seeds since each
    p_k is Student's. Looks whose difference has another sign than the last do not count. Before the first look p is 1.
    The interval is that of the last look alone.
    """
    reached = [n for n in looks if n <= len(gaps)]
    if not reached:
        early = difference(gaps, reference, margin)
        return replace(early, p=1.0, p_holm=1.0, p_same=1.0, level=LEVEL * spending(looks)[-1])
    shares = spending(looks)
    at = [(difference(gaps[:n], reference, margin), share) for n, share in zip(reached, shares, strict=False)]
    last = at[-1][0]
    p = min(min(1.0, found.p / share) for found, share in at if found.mean * last.mean > 0 or found is last)
    p_same = min(min(1.0, found.p_same / share) for found, share in at)
    return replace(last, p=p, p_holm=p, p_same=p_same, level=LEVEL * shares[-1])


def seeds_to_decide(mean: float, sd: float, margin: float = MARGIN, level: float = LEVEL) -> int:
    """Return the seeds with which a mean difference and its deviation over seeds would be decided, 0 beyond 1000.

    Decided means that with a probability of 80 % the paired t-test finds the difference or, where that takes fewer
    seeds, both one-sided tests find it smaller than the margin. The power is that of the noncentral t distribution.
    """
    from scipy.stats import nct, t

    def is_decided(n: int) -> bool:
        root, two_sided, one_sided = sqrt(n) / sd, t.isf(level / 2, n - 1), t.isf(level, n - 1)
        same = [nct.sf(one_sided, n - 1, (margin + side * mean) * root) for side in (-1, 1)]
        return bool(max(nct.sf(two_sided, n - 1, abs(mean) * root), sum(same) - 1) >= POWER)

    if sd == 0 or is_decided(2):
        return 2
    low, high = 2, MOST_SEEDS
    if not is_decided(high):
        return 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_decided(middle) else (middle, high)
    return high


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values: the k-th smallest of m times m-k+1, never falling, at most 1."""
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def client_interval(
    differences: NDArray[np.float64], rng: np.random.Generator, resamples: int = RESAMPLES, coverage: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over the clients (C,) of one seed and split."""
    size = len(differences)
    chunks = np.array_split(np.arange(resamples), max(1, resamples * size // 2_000_000))
    means = [differences[rng.integers(size, size=(len(chunk), size))].mean(1) for chunk in chunks]
    tail = 50 * (1 - coverage)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)


def best_of_the_others(scores: Mapping[str, Scores]) -> dict[str, str]:
    """Return for every method the one with the best mean among the others; the earlier one of equals."""
    means = {name: float(np.mean([seed.mean() for seed in of_method])) for name, of_method in scores.items()}
    return {name: max((other for other in means if other != name), key=means.__getitem__) for name in means}


def differences_of(scores: Mapping[str, Scores], reference: str | None = None) -> dict[str, Difference]:
    """Return every method's difference from `reference`, which has none, or else from the best of the others.

    Holm's correction is over the pairs with the reference; without one over all pairs, since the scores themselves then
    choose which are looked at.

    Raises ValueError when two methods were not scored on the same clients.
    """
    if len(scores) < 2:
        return {}
    shapes = {name: [len(seed) for seed in of_method] for name, of_method in scores.items()}
    if len(set(map(tuple, shapes.values()))) > 1:
        raise ValueError(f"Methods were scored on unequal numbers of clients: {shapes}.")
    against = dict.fromkeys(scores, reference) if reference else best_of_the_others(scores)
    printed = {name: other for name, other in against.items() if other is not None and name != other}
    is_tested = len(next(iter(scores.values()))) > 1
    pairs = [
        (a, b)
        for a, b in combinations(scores, 2)
        if printed.get(a) == b or printed.get(b) == a or (is_tested and not reference)
    ]
    gaps = [difference([x - y for x, y in zip(scores[a], scores[b], strict=True)], b) for a, b in pairs]
    found = dict(zip(pairs, corrected(gaps), strict=True))
    return {name: found.get((name, b)) or turned_round(found[b, name], b) for name, b in printed.items()}


def turned_round(gap: Difference, reference: str) -> Difference:
    """Return the difference of the same two methods the other way round."""
    return replace(gap, reference=reference, mean=-gap.mean, low=-gap.high, high=-gap.low)


def corrected(gaps: Sequence[Difference]) -> list[Difference]:
    """Return the differences with both p-values Holm-corrected over all of them; those of one seed as they are."""
    if any(isnan(gap.p) for gap in gaps):
        return list(gaps)
    both = zip(gaps, holm([gap.p for gap in gaps]), holm([gap.p_same for gap in gaps]), strict=True)
    return [replace(gap, p_holm=p, p_same=p_same, pairs=len(gaps)) for gap, p, p_same in both]
