"""How many groups of clients there are: HiLoRA's eigengap, and other rules on the same distances.

Every rule is a function of distances (n, n) and a range of K. All take the labels of spectral clustering; they differ
in what they compare between one K and the next. RESULTS.md says which of them finds planted and real groups and leaves
IID clients together (benchmarks/cluster_rules.py).
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.parts.clustering import (
    Clusters,
    check_range,
    embedded_labels,
    first_appearance,
    gaussian_affinity,
    spectral_clusters,
    spectral_embedding,
)

Rule = Literal["eigengap", "relative-gap", "self-tuning", "neighbours", "silhouette", "stability"]

ONE_BY_SILHOUETTE = 0.05
"""The score of leaving all clients together; a division needs a mean silhouette above it."""
ONE_BY_STABILITY = 0.75
"""The same of the mean adjusted Rand index between divisions of all clients and of a part of them: IID controls reach
0.67, federations with groups begin at 0.83 (RESULTS.md)."""
DRAWS, SHARE, MOST = 20, 0.8, 400
"""Parts drawn for the stability of a division, the clients of each, and how many they are at most."""
NEIGHBOUR = 7
"""The neighbour whose distance is a client's own scale (Zelnik-Manor and Perona's choice)."""


def clusters_by(rule: Rule, distances: Tensor, k_min: int | None, k_max: int) -> Clusters:
    """Return the clusters that a rule finds among k_min … k_max; None is the least number that the rule can tell.

    Raises ValueError where the range is empty or there are fewer than three clients.
    """
    least = LEAST.get(rule, 2) if k_min is None else k_min
    return RULES[rule](distances, least, check_range(len(distances), least, k_max))


def by_eigengap(distances: Tensor, k_min: int, k_max: int) -> Clusters:
    """HiLoRA's rule: argmax_K (λ_{K+1} − λ_K) of the Gaussian kernel's normalised Laplacian."""
    return spectral_clusters(gaussian_affinity(distances), k_min, k_max)


def by_relative_gap(distances: Tensor, k_min: int, k_max: int) -> Clusters:
    """Return argmax_K (1 − λ_K) / (1 − λ_{K+1}): the eigenvalue ratio of Ahn and Horenstein (2013).

    1 − λ are the eigenvalues of D^−½ S D^−½, whose tail of noise is flat whatever its level.
    """
    return spectral_clusters(gaussian_affinity(distances), k_min, k_max, _ratios)


def _ratios(eigenvalues: Tensor) -> Tensor:
    remaining = (1 - eigenvalues).clamp(min=1e-12)
    return remaining[:-1] / remaining[1:]


def by_self_tuning(distances: Tensor, k_min: int, k_max: int) -> Clusters:
    """Return the eigengap's clusters of the kernel whose scale is each client's own."""
    return spectral_clusters(self_tuning_affinity(distances), k_min, k_max)


def self_tuning_affinity(distances: Tensor, neighbour: int = NEIGHBOUR) -> Tensor:
    """exp(−d_ij² / σ_i σ_j), σ_i the distance of client i to its 7th neighbour (Zelnik-Manor and Perona, 2004), (n, n).

    Of fewer clients, to the farthest one.
    """
    scale = distances.kthvalue(min(neighbour + 1, len(distances)), dim=1).values.clamp(min=1e-12)  # 1st: itself
    return distances.square().div_(scale).div_(-scale[:, None]).exp_()


def by_neighbours(distances: Tensor, k_min: int, k_max: int) -> Clusters:
    """Return the eigengap's clusters of the graph of nearest neighbours."""
    return spectral_clusters(neighbour_affinity(distances), k_min, k_max)


def neighbour_affinity(distances: Tensor) -> Tensor:
    """Return 1 between clients that are each other's nearest log₂ n + 1 (½ where only one is the other's), (n, n).

    Their number is that of von Luxburg's tutorial (2007), rounded down.
    """
    n = len(distances)
    nearest = distances.clone().fill_diagonal_(-1).topk(min(n, int(np.log2(n)) + 2), largest=False).indices
    one_way = torch.zeros_like(distances).scatter_(1, nearest, 1.0)
    return one_way.add_(one_way.mT.clone()).div_(2)


def by_silhouette(distances: Tensor, k_min: int, k_max: int) -> Clusters:
    """Return the K whose labels have the largest mean silhouette (Rousseeuw, 1987) under the same distances.

    A silhouette never says one cluster; where that is allowed, it wins when no division is above `ONE_BY_SILHOUETTE`.
    """
    from sklearn.metrics import silhouette_score

    def score(labels: Tensor) -> float:
        if len(set(labels.tolist())) < 2:  # spectral clustering may leave some of its groups empty
            return -1.0
        return float(silhouette_score(distances.numpy(), labels.numpy(), metric="precomputed"))

    return _best(distances, k_min, k_max, score, ONE_BY_SILHOUETTE)


def by_stability(distances: Tensor, k_min: int, k_max: int) -> Clusters:
    """Return the K whose division changes least when four in five of the clients are divided again.

    Ben-Hur, Elisseeff and Guyon (2002), compared by the adjusted Rand index, which chance does not raise. Twenty parts,
    the same for every K, of at most `MOST` clients, so thousands of clients cost no more than hundreds. Groups of less
    than two clients on average are always stable and do not count.
    """
    from sklearn.metrics import adjusted_rand_score

    n, draw = len(distances), np.random.default_rng(0)
    size = max(min(int(SHARE * n), MOST), 2)
    parts = [torch.from_numpy(np.sort(draw.permutation(n)[:size])) for _ in range(DRAWS)]
    maps = [spectral_embedding(gaussian_affinity(distances[part][:, part]), min(k_max, size)) for part in parts]

    def score(labels: Tensor) -> float:
        if not 1 < (k := int(labels.max()) + 1) <= size // 2:
            return -1.0
        pairs = zip(parts, maps, strict=True)
        return float(np.mean([adjusted_rand_score(labels[part], embedded_labels(own[:, :k])) for part, own in pairs]))

    return _best(distances, k_min, k_max, score, ONE_BY_STABILITY)


def _best(distances: Tensor, k_min: int, k_max: int, score: Callable[[Tensor], float], one: float) -> Clusters:
    """The labels of the K with the highest score, of equals the smallest; one cluster, where allowed, scores `one`."""
    n = len(distances)
    maps = spectral_embedding(gaussian_affinity(distances), k_max)
    found, scores = {}, {}
    for k in range(k_min, k_max + 1):
        found[k] = first_appearance(embedded_labels(maps[:, :k])) if k > 1 else torch.zeros(n, dtype=torch.long)
        scores[k] = score(found[k]) if k > 1 else one
    best = max(scores, key=lambda k: (scores[k], -k))
    return Clusters(found[best], int(found[best].max()) + 1, scores, [])


RULES: dict[Rule, Callable[[Tensor, int, int], Clusters]] = {
    "eigengap": by_eigengap,
    "relative-gap": by_relative_gap,
    "self-tuning": by_self_tuning,
    "neighbours": by_neighbours,
    "silhouette": by_silhouette,
    "stability": by_stability,
}
LEAST: dict[Rule, int] = {"silhouette": 1, "stability": 1}
"""Rules that can tell one cluster. The eigengap from 0 to λ_2 nearly always is the largest: K = 1 says little there."""
