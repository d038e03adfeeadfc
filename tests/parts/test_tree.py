"""The tree of clients and its cuts: against SciPy, scikit-learn and loops, and on structure that was planted."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cut_tree, fcluster, linkage
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import silhouette_score

from fedsim.adapters.layout import Slot
from fedsim.parts.tree import (
    TreeCuts,
    cut_into,
    depth_distances,
    global_distance,
    merge_tree,
    pairwise_distances,
    silhouette,
    staircase,
)
from fedsim.round import ClientUpdate

N = 9


def random_distances(seed: int, n: int = N) -> torch.Tensor:
    points = np.random.default_rng(seed).normal(size=(n, 4))
    return torch.from_numpy(squareform(pdist(points)))


def partition(labels) -> set[frozenset[int]]:
    labels = np.asarray(labels).ravel()
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


def refines(fine, coarse) -> bool:
    return all(any(group <= other for other in partition(coarse)) for group in partition(fine))


@pytest.mark.parametrize("seed", range(5))
def test_the_tree_and_all_its_cuts_are_scipys(seed):
    distances = random_distances(seed)
    expected = linkage(squareform(distances.numpy()), method="average")
    tree = merge_tree(distances)
    np.testing.assert_allclose(tree, expected)
    for count in range(1, N + 1):
        labels = cut_into(tree, count)
        assert partition(labels) == partition(cut_tree(expected, count))
        assert partition(labels) == partition(fcluster(expected, count, "maxclust"))
        assert list(dict.fromkeys(labels.tolist())) == list(range(count)), "numbered by first appearance"


@pytest.mark.parametrize(
    "distances", [random_distances(0), torch.ones(N, N) - torch.eye(N)], ids=["random", "all ties"]
)
def test_every_cut_refines_the_one_before_even_where_distances_tie(distances):
    tree = merge_tree(distances.double())
    cuts = [cut_into(tree, count) for count in range(1, N + 1)]
    assert [len(partition(labels)) for labels in cuts] == list(range(1, N + 1))
    assert all(refines(fine, coarse) for coarse, fine in pairwise(cuts))


@pytest.mark.parametrize("kind", ["frobenius", "cosine"])
def test_distances_are_scipys_on_the_matrices_as_vectors(kind):
    B = torch.randn(N, 6, 3, generator=torch.Generator().manual_seed(0))
    found = pairwise_distances(B, kind)
    metric = {"frobenius": "euclidean", "cosine": "cosine"}[kind]
    np.testing.assert_allclose(found.numpy(), squareform(pdist(B.flatten(1).double().numpy(), metric)), atol=1e-12)
    assert not found.diagonal().any()
    zero = pairwise_distances(torch.cat([B, torch.zeros(1, 6, 3)]), kind)[-1, :-1]
    expected = B.flatten(1).norm(dim=1) if kind == "frobenius" else torch.ones(N)
    torch.testing.assert_close(zero, expected.double())


def updates_of(by_site: dict[str, torch.Tensor]) -> list[ClientUpdate]:
    """One update for each client from stacks of B (n, O, R) by site; clients are 10, 11, …"""
    n = len(next(iter(by_site.values())))
    return [
        ClientUpdate(
            10 + k,
            1,
            {Slot("cluster", site, "B"): B[k] for site, B in by_site.items()}
            | {Slot("cluster", site, "A"): 100 * torch.randn(2, 3) for site in by_site},
        )
        for k in range(n)
    ]


def test_a_depths_distance_is_the_mean_over_its_sites_of_b_alone():
    random = torch.Generator().manual_seed(0)
    by_site = {name: torch.randn(4, 5, 2, generator=random) for name in ("1.q", "1.v", "0.q", "0.v")}
    depths = {"1.q": 1, "1.v": 1, "0.q": 0, "0.v": 0, "head": 2}
    found = depth_distances(updates_of(by_site), depths, "frobenius")
    assert list(found) == [0, 1]
    for depth, matrix in found.items():
        for i in range(4):
            for j in range(4):
                norms = [(by_site[f"{depth}.{s}"][i] - by_site[f"{depth}.{s}"][j]).norm() for s in "qv"]
                assert float(matrix[i, j]) == pytest.approx(float(sum(norms)) / 2, abs=1e-5)


def test_depths_with_large_b_decide():
    small, large = random_distances(1), 1000 * random_distances(2)
    assert partition(cut_into(merge_tree(global_distance([small, large])), 3)) == partition(
        cut_into(merge_tree(large), 3)
    )
    torch.testing.assert_close(global_distance([small, large]), (small + large) / 2)


def silhouette_by_hand(distances: torch.Tensor, labels: torch.Tensor) -> float:
    """(b − a) / max(a, b) in loops, 0 for a singleton."""
    values = []
    for i in range(len(labels)):
        own = [j for j in range(len(labels)) if labels[j] == labels[i] and j != i]
        if not own:
            values.append(0.0)
            continue
        a = float(np.mean([distances[i, j] for j in own]))
        others = {int(label) for label in labels} - {int(labels[i])}
        b = min(float(distances[i][labels == label].mean()) for label in others)
        values.append((b - a) / max(a, b))
    return float(np.mean(values))


@pytest.mark.parametrize("count", range(2, N))
def test_silhouettes_are_scikit_learns_and_those_of_the_formula(count):
    distances = random_distances(3)
    labels = cut_into(merge_tree(random_distances(4)), count)
    expected = silhouette_score(distances.numpy(), labels.numpy(), metric="precomputed")
    assert silhouette(distances, labels) == pytest.approx(expected)
    assert silhouette(distances, labels) == pytest.approx(silhouette_by_hand(distances, labels))


@pytest.mark.parametrize("window", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(4))
def test_the_staircase_is_the_best_score_in_each_window_and_never_falls(seed, window):
    distances, tau = [random_distances(10 * seed + depth) for depth in range(5)], 0.05
    tree = merge_tree(global_distance(distances))
    counts, scores = staircase([tree] * 5, distances, tau, window)
    before = 1
    for matrix, count, score in zip(distances, counts, scores, strict=True):
        candidates = [c for c in range(1, N) if before <= c < before + window]
        expected = [tau if c == 1 else silhouette_by_hand(matrix, cut_into(tree, c)) for c in candidates]
        assert list(score) == candidates
        assert list(score.values()) == pytest.approx(expected)
        assert count == candidates[int(np.argmax(expected))]
        assert before <= count < min(N, before + window)
        before = count


def test_of_equal_scores_the_fewest_groups_win():
    alike = (torch.ones(N, N) - torch.eye(N)).double()  # every silhouette is 0
    assert TreeCuts(tau=0.0).cut([alike] * 3).counts == [1, 1, 1]
    assert TreeCuts(tau=-1.0).cut([alike] * 3).counts == [2, 2, 2]


def test_a_window_of_one_never_splits():
    assert TreeCuts(window=1, tau=-1.0).cut([random_distances(0)] * 4).counts == [1] * 4


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_clients_for_a_silhouette_are_one_group(n):
    cuts = TreeCuts(tau=-1.0).cut([random_distances(0, n)] * 2)
    assert cuts.counts == [1, 1]
    assert [labels.tolist() for labels in cuts.labels] == [[0] * n] * 2


@pytest.mark.parametrize("clusters", [1, 4, 8, 100])
def test_a_fixed_number_of_groups_is_the_same_cut_at_every_depth(clusters):
    distances = [random_distances(depth) for depth in range(3)]
    cuts = TreeCuts(clusters=clusters).cut(distances)
    assert cuts.counts == [min(clusters, N)] * 3
    expected = cut_tree(linkage(squareform(torch.stack(distances).mean(0).numpy()), "average"), min(clusters, N))
    assert all(partition(labels) == partition(expected) for labels in cuts.labels)


def test_without_one_tree_every_depth_cuts_its_own():
    distances = [random_distances(depth) for depth in range(4)]
    cuts = TreeCuts(one_tree=False, clusters=3).cut(distances)
    assert len(cuts.trees) == 4
    for matrix, labels in zip(distances, cuts.labels, strict=True):
        assert partition(labels) == partition(cut_tree(linkage(squareform(matrix.numpy()), "average"), 3))
    assert not all(refines(fine, coarse) for coarse, fine in pairwise(cuts.labels)), "the groups are not nested"


def planted(order, noise: float = 0.05, seed: int = 0) -> list[ClientUpdate]:
    """Sixteen clients: B is shared at depths 0 and 1, of two kinds at 2 and 3, of four kinds, nested, at 4 and 5."""
    random = torch.Generator().manual_seed(seed)
    kinds = [[0] * 16, [0] * 16, [k // 8 for k in range(16)]]
    kinds = [*kinds, kinds[-1], *[[k // 4 for k in range(16)]] * 2]
    by_site = {}
    for depth, of_client in enumerate(kinds):
        for name in "qv":
            centres = torch.randn(4, 12, 2, generator=random)
            B = centres[torch.tensor(of_client)] + noise * torch.randn(16, 12, 2, generator=random)
            by_site[f"{depth}.{name}"] = B[torch.tensor(order)]
    return updates_of(by_site)


DEPTHS = {f"{depth}.{name}": depth for depth in range(6) for name in "qv"} | {"head": 6}


@pytest.mark.parametrize("distance", ["frobenius", "cosine"])
def test_a_planted_staircase_is_found(distance):
    learnt, log = TreeCuts(distance=distance).group(planted(range(16)), DEPTHS, n_clients=30)
    assert log["cuts"] == [1, 1, 2, 2, 4, 4]
    assert not learnt["groups.0"].any()
    assert partition(learnt["groups.2"][10:26]) == {frozenset(range(8)), frozenset(range(8, 16))}
    assert learnt["groups.4"].tolist() == [0] * 10 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [0] * 4
    assert torch.equal(learnt["groups.6"], learnt["groups.5"]), "the classifier goes with the deepest adapters"
    assert learnt["labels"].tolist() == [-1] * 10 + [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [-1] * 4
    assert log["tree_clients"] == list(range(10, 26))
    assert np.shape(log["trees"]) == (1, 15, 4)
    assert [score[0][0] for score in log["silhouettes"]] == [1, 1, 1, 2, 2, 4]


def test_renumbering_clients_renumbers_their_groups_and_nothing_else():
    order = np.random.default_rng(0).permutation(16)
    straight, _ = TreeCuts().group(planted(range(16), noise=0.5), DEPTHS, 26)
    shuffled, _ = TreeCuts().group(planted(order.tolist(), noise=0.5), DEPTHS, 26)
    for name, groups in straight.items():
        assert partition(groups[10:][torch.from_numpy(order)]) == partition(shuffled[name][10:]), name


@pytest.mark.parametrize(("settings", "message"), [({"window": 0}, "window is 0"), ({"clusters": 0}, "clusters is 0")])
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TreeCuts(**settings)
