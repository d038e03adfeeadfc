"""How many clusters: every rule on planted groups, on one group, and against scikit-learn and the printed formulas."""

import numpy as np
import pytest
import torch
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.neighbors import kneighbors_graph
from test_clustering import planted_bases

from fedsim.parts.cluster_count import (
    LEAST,
    ONE_BY_SILHOUETTE,
    RULES,
    clusters_by,
    neighbour_affinity,
    self_tuning_affinity,
)
from fedsim.parts.clustering import gaussian_affinity, normalised_laplacian_spectrum, subspace_distances


def planted_distances(labels, noise: float = 0.6, n_sites: int = 3):
    return subspace_distances(planted_bases(labels, 64, 4, noise, n_sites))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_finds_five_clear_groups_and_leaves_the_distances_as_they_were(rule):
    labels = torch.randperm(30, generator=torch.Generator().manual_seed(0)) % 5
    distances = planted_distances(labels)
    before = distances.clone()
    clusters = clusters_by(rule, distances, None, 10)
    assert clusters.n_clusters == 5
    assert adjusted_rand_score(labels, clusters.labels) == 1
    assert clusters.scores[5] == max(clusters.scores.values())
    assert clusters.margin == pytest.approx(np.diff(sorted(clusters.scores.values()))[-1])
    assert torch.equal(distances, before)


@pytest.mark.parametrize("rule", LEAST)
@pytest.mark.parametrize("noise", [0.5, 1.5])
def test_rules_that_can_tell_one_cluster_do_so_where_there_is_one(rule, noise):
    clusters = clusters_by(rule, planted_distances([0] * 30, noise, n_sites=12), None, 8)
    assert clusters.n_clusters == 1
    assert not clusters.labels.any()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_given_number_of_clusters_is_taken_by_every_rule(rule, k):
    clusters = clusters_by(rule, planted_distances(torch.arange(12) % 3), k, k)
    assert clusters.n_clusters == k
    assert list(clusters.scores) == [k]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("k_min", "k_max", "n"), [(4, 3, 6), (6, 10, 6), (None, 10, 2)])
def test_a_range_without_a_choice_is_refused_by_every_rule(rule, k_min, k_max, n):
    with pytest.raises(ValueError, match=rf"{n} clients.*--method"):
        clusters_by(rule, torch.ones(n, n, dtype=torch.float64).fill_diagonal_(0), k_min, k_max)


@pytest.mark.parametrize("rule", RULES)
def test_permuting_clients_permutes_the_labels_of_every_rule_that_draws_none(rule):
    labels = torch.arange(24) % 4
    distances, order = planted_distances(labels), torch.randperm(24, generator=torch.Generator().manual_seed(1))
    found = clusters_by(rule, distances[order][:, order], None, 8).labels
    assert adjusted_rand_score(clusters_by(rule, distances, None, 8).labels[order], found) == 1


def test_silhouettes_are_scikit_learns_of_its_own_spectral_labels():
    distances = planted_distances(torch.arange(20) % 4, noise=1.5)
    clusters = clusters_by("silhouette", distances, 1, 6)
    assert clusters.scores.pop(1) == ONE_BY_SILHOUETTE
    affinity = gaussian_affinity(distances).numpy()
    for k, score in clusters.scores.items():
        labels = SpectralClustering(k, affinity="precomputed", assign_labels="cluster_qr").fit_predict(affinity)
        assert score == pytest.approx(silhouette_score(distances.numpy(), labels, metric="precomputed")), k
    assert clusters.n_clusters == max(clusters.scores, key=lambda k: clusters.scores[k])


def test_the_relative_gap_compares_the_eigenvalues_of_the_normalised_affinity():
    distances = planted_distances(torch.arange(12) % 3)
    scores = clusters_by("relative-gap", distances, 2, 5).scores
    eigenvalues = 1 - normalised_laplacian_spectrum(gaussian_affinity(distances), 6).numpy()
    np.testing.assert_allclose(list(scores.values()), eigenvalues[1:5] / eigenvalues[2:6])


def test_the_self_tuning_kernel_has_the_distance_to_the_seventh_neighbour_of_each_client_as_its_scale():
    distances = planted_distances(torch.arange(12) % 3)
    d = distances.numpy()
    scale = np.array([np.sort(np.delete(row, i))[6] for i, row in enumerate(d)])
    np.testing.assert_allclose(self_tuning_affinity(distances).numpy(), np.exp(-(d**2) / np.outer(scale, scale)))
    few = distances[:4, :4]
    farthest = few.numpy().max(1)
    np.testing.assert_allclose(
        self_tuning_affinity(few).numpy(), np.exp(-(few.numpy() ** 2) / np.outer(farthest, farthest))
    )


def test_the_graph_of_neighbours_is_scikit_learns_made_symmetric():
    distances = planted_distances(torch.arange(20) % 4, noise=1.5)
    one_way = kneighbors_graph(distances.numpy(), 5, metric="precomputed", include_self=False).toarray()
    expected = (one_way + one_way.T) / 2
    found = neighbour_affinity(distances).numpy()
    np.testing.assert_array_equal(found - np.diag(np.diag(found)), expected)
    np.testing.assert_array_equal(np.diag(found), 1)


def test_a_division_of_the_same_clients_is_as_stable_whatever_else_is_asked_for():
    distances = planted_distances(torch.arange(24) % 4, noise=1.5)
    wide, narrow = (clusters_by("stability", distances, 2, k_max).scores for k_max in (8, 5))
    assert {k: wide[k] for k in narrow} == narrow
