"""Clusters of clients by subspaces, against SciPy, scikit-learn, the printed formulas and planted groups."""

import warnings

import numpy as np
import pytest
import scipy
import torch
from scipy.sparse.csgraph import laplacian
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score, silhouette_score

from fedsim.parts.clustering import (
    column_basis,
    common_basis,
    first_appearance,
    gaussian_affinity,
    group_similarities,
    kmeans_clusters,
    largest_eigenpairs,
    mean_overlap,
    normalised_laplacian_spectrum,
    smoothed_direction,
    spectral_clusters,
    spectral_labels,
    subspace_distances,
    subspace_similarities,
    unit_direction,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted_bases(labels, outputs: int, rank: int, noise: float, n_sites: int = 3, shared: float = 0.0, seed: int = 0):
    """One (n, O, R) stack of bases per site: each group's own subspace, one that all share, and noise."""
    labels = torch.as_tensor(labels)
    bases = []
    for site in range(n_sites):
        centres = column_basis(random(int(labels.max()) + 1, outputs, rank, seed=seed + 3 * site))
        common = column_basis(random(outputs, rank, seed=seed + 3 * site + 1))
        spread = noise * random(len(labels), outputs, rank, seed=seed + 3 * site + 2) / outputs**0.5
        bases.append(column_basis(centres[labels] + shared * common + spread))
    return bases


def clusters_of(bases, k_min: int = 2, k_max: int = 10):
    return spectral_clusters(gaussian_affinity(subspace_distances(bases)), k_min, k_max)


# distances


@pytest.mark.parametrize("block", [1, 4, 128])
def test_distance_is_one_minus_mean_squared_cosine_of_scipy_subspace_angles(block):
    factors = [random(9, 20, 3, seed=1), random(9, 32, 3, seed=2)]
    found = subspace_distances([column_basis(B) for B in factors], block=block)
    for i in range(9):
        for j in range(9):
            angles = [scipy.linalg.subspace_angles(B[i].numpy(), B[j].numpy()) for B in factors]
            assert float(found[i, j]) == pytest.approx(1 - np.mean(np.cos(angles) ** 2), abs=1e-12)


def test_distances_are_symmetric_zero_on_the_diagonal_and_one_between_orthogonal_subspaces():
    basis = torch.eye(12, dtype=torch.float64).view(12, 4, 3).permute(1, 0, 2)
    torch.testing.assert_close(subspace_distances([basis]), 1 - torch.eye(4, dtype=torch.float64))


def test_distances_do_not_depend_on_the_basis_of_a_subspace():
    B = random(6, 20, 3)
    mixed = B @ random(6, 3, 3, seed=5)
    left, right = subspace_distances([column_basis(B)]), subspace_distances([column_basis(mixed)])
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


def test_distances_take_sites_one_at_a_time_from_a_generator():
    bases = planted_bases([0, 0, 1, 1], 16, 2, 0.1)
    torch.testing.assert_close(subspace_distances(iter(bases)), subspace_distances(bases))


def test_similarities_are_rectangular_between_two_sets_of_subspaces():
    left, right = column_basis(random(3, 20, 2)), column_basis(random(5, 20, 2, seed=1))
    found = subspace_similarities(left, right)
    angles = scipy.linalg.subspace_angles(left[2].numpy(), right[4].numpy())
    assert found.shape == (3, 5)
    assert float(found[2, 4]) == pytest.approx(np.mean(np.cos(angles) ** 2), abs=1e-12)


# the moving average


def permutations(n: int, size: int, seed: int) -> torch.Tensor:
    random_order = torch.Generator().manual_seed(seed)
    return torch.stack([torch.eye(size).double()[torch.randperm(size, generator=random_order)] for _ in range(n)])


GAUGES = {
    "signs": lambda n, size: torch.diag_embed(torch.where(random(n, size) > 0, 1.0, -1.0).double()),
    "permutations": lambda n, size: permutations(n, size, 0),
    "rotations": lambda n, size: torch.linalg.qr(random(n, size, size))[0],
}


def subspace_error(average: torch.Tensor, truth: torch.Tensor) -> float:
    """The 1 − ‖UᵀU0‖²/R of the notes on the gauge."""
    return 1 - float((column_basis(average).T @ truth).square().sum()) / truth.shape[1]


@pytest.mark.parametrize("gauge", GAUGES.values(), ids=GAUGES)
def test_the_average_is_blind_to_the_gauge_of_b_where_the_printed_one_is_not(gauge):
    rounds, outputs, rank, decay = 15, 256, 8, 0.9
    truth = column_basis(random(outputs, rank, seed=9))
    B = truth + 0.1 * random(rounds, outputs, rank, seed=10) / outputs**0.5
    ours, fixed, printed = torch.zeros(3, outputs, rank, dtype=torch.float64).unbind()
    for this, Q in zip(B, gauge(rounds, rank), strict=True):
        ours = smoothed_direction(ours, this @ Q, decay)
        fixed = smoothed_direction(fixed, this, decay)
        printed = decay * printed + (1 - decay) * unit_direction(this @ Q)
    torch.testing.assert_close(ours @ ours.T, fixed @ fixed.T, rtol=0, atol=1e-12)
    assert subspace_error(ours, truth) < 0.02
    assert subspace_error(printed, truth) > 0.05


def test_the_average_is_the_printed_formula_when_the_basis_is_the_same():
    average = 0.4 * column_basis(random(3, 32, 4))
    stretch = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64))
    B = average @ stretch  # same columns, so the best rotation is none
    expected = 0.9 * average + 0.1 * B / torch.linalg.matrix_norm(B, keepdim=True)
    torch.testing.assert_close(smoothed_direction(average, B, 0.9), expected)


def test_the_average_rotates_by_scipys_orthogonal_procrustes_solution():
    average, B = random(32, 4), random(32, 4, seed=1)
    direction = (B / B.norm()).numpy()
    rotation, _ = scipy.linalg.orthogonal_procrustes(direction, average.numpy())
    expected = 0.7 * average.numpy() + 0.3 * direction @ rotation
    np.testing.assert_allclose(smoothed_direction(average, B, 0.7).numpy(), expected, atol=1e-12)


def test_the_average_starts_from_zero_and_each_client_of_a_stack_is_on_its_own():
    average, B = random(2, 32, 4), random(2, 32, 4, seed=1)
    average[0] = 0
    found = smoothed_direction(average, B, 0.9)
    torch.testing.assert_close(found[0] @ found[0].mT, 0.1**2 * B[0] @ B[0].mT / B[0].norm() ** 2)
    torch.testing.assert_close(found[1], smoothed_direction(average[1], B[1], 0.9))


def test_a_direction_of_zero_stays_zero():
    assert not unit_direction(torch.zeros(2, 8, 3)).any()
    average = column_basis(random(8, 3))
    torch.testing.assert_close(smoothed_direction(average, torch.zeros_like(average), 0.9), 0.9 * average)


# affinity and spectrum


@pytest.mark.parametrize("n", [4, 5, 6, 9])
def test_affinity_is_the_gaussian_kernel_with_numpys_median_of_the_off_diagonal(n):
    distances = subspace_distances([column_basis(random(n, 20, 3))])
    d, off = distances.numpy(), ~np.eye(n, dtype=bool)
    expected = np.exp(-(d**2) / (2 * np.median(d[off]) ** 2))
    np.testing.assert_allclose(gaussian_affinity(distances).numpy(), expected, rtol=1e-12)


def test_affinity_does_not_depend_on_the_scale_of_the_distances():
    distances = subspace_distances([column_basis(random(7, 20, 3))])
    torch.testing.assert_close(gaussian_affinity(distances), gaussian_affinity(distances / 100))


def test_affinity_leaves_the_distances_as_they_were():
    distances = subspace_distances([column_basis(random(5, 20, 3))])
    before = distances.clone()
    gaussian_affinity(distances)
    assert torch.equal(distances, before)


def test_spectrum_is_scipys_normalised_laplacian_where_no_client_is_its_own_neighbour():
    affinity = gaussian_affinity(subspace_distances([column_basis(random(8, 20, 3))])).fill_diagonal_(0)
    expected = np.linalg.eigvalsh(laplacian(affinity.numpy(), normed=True))
    np.testing.assert_allclose(normalised_laplacian_spectrum(affinity, 8).numpy(), expected, atol=1e-12)


def test_spectrum_counts_s_ii_as_printed_and_solves_the_generalised_problem_of_the_plain_laplacian():
    affinity = gaussian_affinity(subspace_distances([column_basis(random(8, 20, 3))])).numpy()
    expected = scipy.linalg.eigvalsh(laplacian(affinity), np.diag(affinity.sum(1)))
    np.testing.assert_allclose(
        normalised_laplacian_spectrum(torch.from_numpy(affinity), 8).numpy(), expected, atol=1e-12
    )


@pytest.mark.parametrize("n", [40, 700])
def test_the_largest_eigenpairs_are_scipys_from_small_matrices_and_large_ones(n):
    factors, noise = random(n, 9), random(n, n, seed=1)
    matrix = factors @ factors.mT + 0.1 * (noise + noise.mT)
    values, vectors = largest_eigenpairs(matrix, 7)
    expected = scipy.linalg.eigh(matrix.numpy(), subset_by_index=[n - 7, n - 1])
    np.testing.assert_allclose(values.numpy(), expected[0][::-1], atol=1e-10)
    np.testing.assert_allclose(np.abs(vectors.mT.numpy() @ expected[1][:, ::-1]), np.eye(7), atol=1e-7)


def test_the_spectrum_of_many_clients_counts_equal_eigenvalues():
    groups = torch.arange(700) % 5
    found = normalised_laplacian_spectrum((groups[:, None] == groups).double(), 7)
    np.testing.assert_allclose(found.numpy(), [0, 0, 0, 0, 0, 1, 1], atol=1e-12)


# clusters


def test_two_clusters_are_found_when_subspaces_are_orthogonal():
    identity = torch.eye(64, dtype=torch.float64)
    first, second = identity[:, :4], identity[:, 4:8]
    clusters = clusters_of([torch.stack([first, second, first, second, second, first])])
    assert clusters.labels.tolist() == [0, 1, 0, 1, 1, 0]
    assert clusters.n_clusters == 2


PLANTED = {
    "clean": dict(outputs=64, noise=0.3),
    "noisy": dict(outputs=128, noise=0.8),
    "wide": dict(outputs=256, noise=1.0),
    "close_together": dict(outputs=128, noise=0.4, shared=5.0),
}


@pytest.mark.parametrize("setting", PLANTED.values(), ids=PLANTED)
def test_five_planted_groups_are_recovered_exactly(setting):
    labels = torch.randperm(40, generator=torch.Generator().manual_seed(0)) % 5
    clusters = clusters_of(planted_bases(labels, rank=4, **setting))
    assert clusters.n_clusters == 5
    assert adjusted_rand_score(labels, clusters.labels) == 1
    assert torch.equal(clusters.labels, first_appearance(labels))
    gaps = np.diff(clusters.eigenvalues)
    assert clusters.scores[5] == pytest.approx(gaps[4])
    assert clusters.margin == pytest.approx(gaps[4] - np.delete(gaps[1:10], 3).max())


def test_groups_close_together_have_distances_in_a_narrow_band_far_from_zero_and_one():
    """The case above would be lost to any fixed σ or threshold on d."""
    labels = torch.arange(40) % 5
    distances = subspace_distances(planted_bases(labels, rank=4, **PLANTED["close_together"]))
    off_diagonal = distances[~torch.eye(40, dtype=torch.bool)]
    assert float(off_diagonal.max()) < 0.15


def test_the_eigengap_can_choose_one_cluster_where_that_is_allowed():
    clusters = clusters_of(planted_bases([0] * 12, 64, 4, 0.5), k_min=1)
    assert clusters.n_clusters == 1
    assert not clusters.labels.any()


def test_the_number_of_clusters_is_what_the_range_leaves():
    bases = planted_bases(torch.arange(20) % 5, 64, 4, 0.3)
    assert clusters_of(bases, 3, 3).n_clusters == 3
    assert clusters_of(bases, 2, 1000).n_clusters == 5


def test_permuting_clients_permutes_the_labels():
    labels = torch.arange(30) % 5
    bases = planted_bases(labels, 64, 4, 0.5)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(4))
    found, permuted = clusters_of(bases), clusters_of([basis[order] for basis in bases])
    assert torch.equal(permuted.labels, first_appearance(found.labels[order]))
    np.testing.assert_allclose(permuted.eigenvalues, found.eigenvalues, atol=1e-12)


def weak_ties(n: int) -> torch.Tensor:
    """A symmetric affinity in which groups are hardly more alike than others, and one client is nobody's neighbour."""
    groups = torch.arange(n) % 4
    affinity = random(n, n).abs() * (1 + (groups[:, None] == groups))
    affinity = affinity + affinity.mT
    affinity[0, :] = affinity[:, 0] = 0
    return affinity.fill_diagonal_(1)


@pytest.mark.parametrize("k", [2, 4, 7])
@pytest.mark.parametrize("n", [30, 600])
def test_labels_are_those_of_scikit_learns_spectral_clustering_also_without_clear_groups(n, k):
    model = SpectralClustering(k, affinity="precomputed", assign_labels="cluster_qr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Graph is not fully connected"
        expected = model.fit_predict(weak_ties(n).numpy())
    found = spectral_labels(weak_ties(n), k)
    assert adjusted_rand_score(expected[1:], found[1:]) == 1  # who is nobody's neighbour may go anywhere


def test_clustering_leaves_the_affinity_as_it_was():
    affinity = weak_ties(12)
    spectral_clusters(affinity, 2, 5)
    assert torch.equal(affinity, weak_ties(12))


@pytest.mark.parametrize(("k_min", "k_max", "n"), [(0, 3, 6), (4, 3, 6), (6, 10, 6), (2, 10, 2), (1, 1, 1)])
def test_a_range_without_a_choice_is_refused(k_min, k_max, n):
    with pytest.raises(ValueError, match=rf"{n} clients.*--method"):
        spectral_clusters(torch.ones(n, n, dtype=torch.float64), k_min, k_max)


def test_labels_are_numbered_by_first_appearance():
    assert first_appearance(torch.tensor([7, 7, 2, 9, 2, 7])).tolist() == [0, 0, 1, 2, 1, 0]


# routing and overlaps


def test_members_are_routed_to_their_own_group():
    labels = torch.arange(40) % 5
    bases = planted_bases(labels, 128, 4, 0.8)
    prototypes = [torch.stack([common_basis(basis[labels == j]) for j in range(5)]) for basis in bases]
    assert torch.equal(group_similarities(bases, prototypes).argmax(1), labels)


def test_routing_sums_the_evidence_of_all_sites():
    identity = torch.eye(8, dtype=torch.float64)
    prototypes = [torch.stack([identity[:, :2], identity[:, 2:4]])] * 3
    first, second = identity[None, :, :2], identity[None, :, 2:4]
    assert group_similarities([first, second, second], prototypes).tolist() == [[1, 2]]
    assert group_similarities([first, second, first], prototypes).tolist() == [[2, 1]]


@pytest.mark.parametrize("n", [1, 3, 20])
def test_the_common_basis_is_spanned_by_the_leading_eigenvectors_of_the_mean_projector(n):
    bases = planted_bases([0] * n, 48, 4, 0.5, n_sites=1)[0]
    projector = np.mean([(U @ U.T).numpy() for U in bases], axis=0)
    expected = np.linalg.eigh(projector)[1][:, -4:]
    assert scipy.linalg.subspace_angles(common_basis(bases).numpy(), expected).max() < 1e-6


def test_mean_overlap_averages_pairs_and_is_blind_to_scale_and_zero_for_a_zero_b():
    identity = torch.eye(8, dtype=torch.float64)
    left = [5 * identity[:, :2], identity[:, :2], identity[:, :2]]
    right = [identity[:, :2], identity[:, 1:3], torch.zeros(8, 2, dtype=torch.float64)]
    assert mean_overlap(left, right) == pytest.approx((1 + 0.5 + 0) / 3)


def test_k_means_under_the_cosine_is_blind_to_length_and_takes_the_k_of_scikit_learns_best_silhouette():
    centres = torch.eye(3, 20)
    noise = 0.05 * torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    points = centres[torch.arange(12) % 3] + noise
    lengths = torch.linspace(0.1, 50, 12)[:, None]
    labels, scores = kmeans_clusters(points * lengths, 2, 6)
    assert labels.tolist() == [0, 1, 2] * 4
    assert list(scores) == [2, 3, 4, 5, 6]
    assert scores[3] == max(scores.values())
    assert scores[3] == pytest.approx(silhouette_score(points.double(), labels, metric="cosine"))


def test_k_means_leaves_equal_or_few_clients_together():
    assert kmeans_clusters(torch.ones(5, 4), 2, 4)[0].tolist() == [0] * 5
    assert kmeans_clusters(torch.eye(2), 2, 4)[0].tolist() == [0, 0]
