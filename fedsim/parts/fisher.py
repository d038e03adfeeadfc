"""FIM-HLA: probabilities over depths from Fisher scores (Fed-HeLLo, arXiv 2506.12213).

F_i = E_proxy[(∂ log p(y|x) / ∂θ_i)²],  score of a depth = Σ F_i over its adapters;
3-means of the scores, clusters in order;  p(depth) ∝ 1, 2 or 3
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.adapters.layout import RANK_AXIS
from fedsim.randomness import numpy_generator
from fedsim.round import ClientUpdate, ServerState

DepthScore = Literal["trace", "frobenius"]
"""What becomes of a depth's Fisher diagonals: their sum, or the sum of each tensor's Frobenius norm."""


@dataclass(frozen=True, kw_only=True)
class FisherAllocation:
    """When the proxy set is measured, and what follows from it."""

    warmup_rounds: int = 50
    """Rounds before the first scores have effect; 0 is as 1, since a round must have measured them."""
    period: int = 50
    """Rounds from then on between scorings."""
    lasting: int | None = None
    """Rounds for which a scoring has effect; None: until the next."""
    measures: Literal["fisher", "fisher_logit"] = "fisher"
    """What is differentiated: log p(y|x), or the raw logit of y."""
    score: DepthScore = "trace"
    """A depth's score from its Fisher diagonals: their sum, or the sum of each tensor's Frobenius norm."""
    weights: tuple[float, ...] = (1, 2, 3)
    """Weight of a depth in each cluster, that of the lowest scores first; as many clusters as weights."""
    ordered: bool = True
    """Whether clusters are ordered by their scores; else the weights go to them at random."""

    def __post_init__(self) -> None:
        if self.warmup_rounds < 0 or self.period < 1 or (self.lasting is not None and self.lasting < 1):
            given = f"warmup_rounds is {self.warmup_rounds}, period {self.period} and lasting {self.lasting}"
            raise ValueError(f"{given}; the first must be 0 or more, the others 1 or more (--method.fim.*).")
        if not self.weights or min(self.weights) <= 0:
            raise ValueError(f"weights are {self.weights}; all must be positive (--method.fim.weights).")

    def is_scoring(self, state: ServerState) -> bool:
        """Whether the proxy set is measured in this round, for the next to go by."""
        rounds_since = state.round_index + 1 - max(self.warmup_rounds, 1)
        return rounds_since >= 0 and rounds_since % self.period == 0 and not state.is_last

    def probabilities(self, state: ServerState) -> list[float] | None:
        """Return the weights (D,) of the scoring that has effect in this round; None where none has."""
        if "weights" not in state.learnt:
            return None
        age = state.round_index - int(state.learnt["since"])
        return state.learnt["weights"].tolist() if self.lasting is None or age < self.lasting else None

    def learn(
        self, state: ServerState, measured: Sequence[ClientUpdate]
    ) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Return what is learnt from what the proxy set measured, and what to log."""
        scores = depth_scores(measured, state.depths, self.score)
        rng = None if self.ordered else numpy_generator(state.seed, "clusters", state.round_index)
        weights = cluster_weights(scores, self.weights, rng)
        learnt = {**state.learnt, "weights": weights, "since": torch.tensor(state.round_index + 1)}
        return learnt, {"fisher_scores": scores.tolist(), "depth_weights": weights.tolist()}


def depth_scores(updates: Sequence[ClientUpdate], depths: Mapping[str, int], score: DepthScore = "trace") -> Tensor:
    """Return the Fisher score (D,) of every depth from the squared gradients that clients measured, in float64.

    Several clients' means over samples become one; heads do not count.
    """
    total = sum(update.n_samples for update in updates)
    adapters = [slot for slot in updates[0].measured if slot.factor in RANK_AXIS]
    scores = dict.fromkeys(sorted({depths[slot.site] for slot in adapters}), 0.0)
    for slot in adapters:
        diagonal = sum(update.measured[slot].double() * (update.n_samples / total) for update in updates)
        assert isinstance(diagonal, Tensor)
        scores[depths[slot.site]] += float(diagonal.sum() if score == "trace" else diagonal.norm())
    return torch.tensor(list(scores.values()), dtype=torch.float64)


def ordered_clusters(scores: Tensor, n_clusters: int) -> Tensor:
    """Return labels (D,) of the best 1-D k-means of scores (D,): 0 for the cluster of the smallest scores.

    Exact: clusters of numbers are runs of the sorted ones, so all cuts between unequal ones are tried. Fewer distinct
    scores than clusters are clusters of their own.
    """
    values, order = scores.double().sort(stable=True)
    places = (values.diff() > 0).nonzero().flatten().add(1).tolist()
    n_cuts = min(n_clusters - 1, len(places))
    best = min(combinations(places, n_cuts), key=lambda cuts: _spread(values, cuts))
    labels = torch.zeros_like(order)
    labels[order] = torch.bucketize(torch.arange(len(values)), torch.tensor(best, dtype=torch.long), right=True)
    return labels


def cluster_weights(scores: Tensor, weights: Sequence[float], rng: np.random.Generator | None = None) -> Tensor:
    """Return the weight (D,) of every depth by the cluster of its score, lowest scores first.

    With a generator the weights go to the clusters in a random order.
    """
    by_cluster = np.asarray(weights, dtype=np.float64)
    labels = ordered_clusters(scores, len(weights))
    return torch.from_numpy(by_cluster if rng is None else rng.permutation(by_cluster))[labels]


def _spread(values: Tensor, cuts: tuple[int, ...]) -> float:
    """The sum of squared distances to the means of the runs between cuts."""
    return sum(float((run - run.mean()).square().sum()) for run in values.tensor_split(cuts))
