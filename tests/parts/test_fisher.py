"""From squared gradients to probabilities: scores by depth, ordered clusters, weights; when scores have effect."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from fedsim.adapters.layout import Slot
from fedsim.parts.fisher import FisherAllocation, cluster_weights, depth_scores, ordered_clusters
from fedsim.round import ClientUpdate, Horizon, ServerState

DEPTHS = {"b0.q": 0, "b0.v": 0, "b2.q": 2, "head": 3}


def measured(value: float, client: int = 0, n_samples: int = 1) -> ClientUpdate:
    tensors = {
        Slot("adapter", site, factor): torch.full(shape, value * (1 + DEPTHS[site]))
        for site in ("b0.q", "b0.v", "b2.q")
        for factor, shape in (("A", (2, 3)), ("B", (4, 2)))
    }
    return ClientUpdate(client, n_samples, measured=tensors | {Slot("head", "head", "W"): torch.full((5, 3), 99.0)})


def test_a_depths_score_is_the_trace_of_its_adapters_or_the_sum_of_frobenius_norms():
    assert depth_scores([measured(1.0)], DEPTHS).tolist() == [2 * (6 + 8), 3 * (6 + 8)]
    root = 6**0.5 + 8**0.5
    assert depth_scores([measured(1.0)], DEPTHS, "frobenius").tolist() == pytest.approx([2 * root, 3 * root])


def test_several_clients_count_by_their_samples():
    scores = depth_scores([measured(1.0, 0, 30), measured(5.0, 1, 10)], DEPTHS)
    assert scores.tolist() == pytest.approx([28 * 2, 42 * 2])


def spread(scores: np.ndarray, labels: np.ndarray) -> float:
    return sum(part.var() * len(part) for part in (scores[labels == k] for k in range(3)))


def test_clusters_are_those_of_k_means_in_the_order_of_their_scores():
    random = np.random.default_rng(0)
    for _ in range(20):
        scores = random.lognormal(sigma=1.5, size=12)
        best = KMeans(3, n_init=20, random_state=0).fit(scores[:, None])
        expected = best.cluster_centers_[:, 0].argsort().argsort()[best.labels_]
        found = ordered_clusters(torch.from_numpy(scores), 3).numpy()
        assert spread(scores, found) <= spread(scores, expected) * (1 + 1e-9)
        assert (found == expected).all() or spread(scores, found) < spread(scores, expected)
        assert (
            scores[found == 0].max() < scores[found == 1].min() <= scores[found == 1].max() < scores[found == 2].min()
        )


def test_equal_scores_are_never_parted():
    assert ordered_clusters(torch.ones(6), 3).tolist() == [0] * 6
    assert ordered_clusters(torch.tensor([2.0, 1, 1, 2]), 3).tolist() == [1, 0, 0, 1]
    assert ordered_clusters(torch.tensor([5.0, 1.0]), 3).tolist() == [1, 0]


def test_weights_rise_with_the_scores_or_go_to_clusters_at_random():
    scores = torch.tensor([0.1, 9.0, 0.2, 5.0, 9.1])
    assert cluster_weights(scores, (1, 2, 3)).tolist() == [1, 3, 1, 2, 3]
    shuffled = [cluster_weights(scores, (1, 2, 3), np.random.default_rng(seed)).tolist() for seed in range(20)]
    assert {tuple(w) for w in shuffled} > {(1, 3, 1, 2, 3)}
    assert all(w[0] == w[2] and w[1] == w[4] for w in shuffled)


def rounds_of(fim: FisherAllocation, rounds: int = 200) -> tuple[list[int], list[int]]:
    """Rounds in which the proxy set is measured, and rounds that go by scores, when scores are learnt as they come."""
    learnt, scoring, scored = {}, [], []
    for index in range(rounds):
        state = ServerState(index, Horizon(rounds), learnt, depths=DEPTHS)
        if fim.probabilities(state):
            scored.append(index)
        if fim.is_scoring(state):
            scoring.append(index)
            learnt, log = fim.learn(state, [measured(1.0)])
            assert log["depth_weights"] == [1, 2]
    return scoring, scored


def test_scores_are_measured_the_round_before_they_have_effect_and_kept_until_the_next():
    assert rounds_of(FisherAllocation()) == ([49, 99, 149], list(range(50, 200)))
    assert rounds_of(FisherAllocation(warmup_rounds=3, period=90)) == ([2, 92, 182], list(range(3, 200)))
    assert rounds_of(FisherAllocation(warmup_rounds=0))[1] == list(range(1, 200))


def test_in_the_release_they_have_effect_in_nine_of_five_hundred_rounds():
    assert rounds_of(FisherAllocation(lasting=1), 500)[1] == list(range(50, 500, 50))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="period 0"):
        FisherAllocation(period=0)
    with pytest.raises(ValueError, match="must be positive"):
        FisherAllocation(weights=(0, 1))
