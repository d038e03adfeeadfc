"""Groups of clients from the column spaces of their adapters (HiLoRA, arXiv 2603.02785, section 3.2)."""

import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.parts.aggregation import leading_singular


class Clusters(NamedTuple):
    """Labels (n,) numbered by first appearance, how many, and the spectrum that decided it."""

    labels: Tensor
    n_clusters: int
    eigenvalues: list[float]
    gap: float
    margin: float
    """By how much the chosen eigengap exceeds the second largest in the range; near zero the choice is arbitrary."""


def unit_direction(B: Tensor) -> Tensor:
    """B / ‖B‖_F over the last two axes (step 1); a zero B stays zero."""
    norm = torch.linalg.matrix_norm(B, keepdim=True)
    return B / torch.where(norm > 0, norm, 1.0)


def smoothed_direction(average: Tensor, B: Tensor, decay: float) -> Tensor:
    """Return λ·B̄ + (1−λ)·B̂ Q (step 2) with Q the rotation that brings B̂ closest to B̄ (orthogonal Procrustes).

    B̄ and B are (..., O, R). Only the product BA of a client is defined, not the basis of its B: without Q the average
    mixes bases that differ by the arbitrary signs and order of an SVD. B̄ starts from zero, so early rounds weigh alike;
    its scale does not matter, since only its column space is used.
    """
    direction = unit_direction(B)
    U, _, Vh = torch.linalg.svd(direction.mT @ average)
    return decay * average + (1 - decay) * direction @ (U @ Vh)


def column_basis(B: Tensor) -> Tensor:
    """Return an orthonormal basis of B's column space (..., O, R), its left singular vectors up to a rotation."""
    return torch.linalg.qr(B)[0]


def common_basis(bases: Tensor) -> Tensor:
    """Return the R directions that n subspaces (n, O, R) have most in common: top-R left singular vectors, (O, R)."""
    n, outputs, rank = bases.shape
    return leading_singular(bases.permute(1, 0, 2).reshape(outputs, n * rank), rank)[0]


def subspace_similarities(left: Tensor, right: Tensor) -> Tensor:
    """Mean cos² of the principal angles, ‖U_iᵀ V_j‖_F² / R: bases (n, O, R) and (m, O, R) to (n, m)."""
    return _similarities(_columns(left), _columns(right), left.shape[-1])


def _columns(bases: Tensor) -> Tensor:
    """All columns of bases (n, O, R) below each other as rows, (n · R, O)."""
    return bases.mT.reshape(-1, bases.shape[-2])


def _similarities(left: Tensor, right: Tensor, rank: int) -> Tensor:
    products = (left @ right.mT).square_()
    return products.view(-1, rank, len(right) // rank, rank).sum((1, 3)) / rank


def subspace_distances(bases: Iterable[Tensor], block: int = 64) -> Tensor:
    """Return d_ij = 1 − mean cos² θ averaged over sites (steps 4 and 5): one basis (n, O, R) per site, to (n, n).

    Takes one site after another, in blocks of `block` clients over the upper triangle, so beside one site's bases
    memory stays at n² + block² · R² numbers. 1,000 clients of ViT-B take about a second per site and core.
    """
    similarity, n_sites = torch.zeros(0), 0
    for basis in bases:
        n, columns, rank = len(basis), _columns(basis), basis.shape[-1]
        similarity = similarity if n_sites else torch.zeros(n, n, dtype=torch.float64)
        n_sites += 1
        blocks = [(start, columns[start * rank : (start + block) * rank]) for start in range(0, n, block)]
        for index, (i, left) in enumerate(blocks):
            for j, right in blocks[index:]:
                similarity[i : i + block, j : j + block] += _similarities(left, right, rank)
    similarity = torch.triu(similarity) + torch.triu(similarity, 1).T
    distances = (1 - similarity / n_sites).clamp(0, 1)
    return distances.fill_diagonal_(0)


def gaussian_affinity(distances: Tensor) -> Tensor:
    """exp(−d²/2σ²) with σ the median off-diagonal distance (step 6), (n, n)."""
    off_diagonal = distances[~torch.eye(len(distances), dtype=torch.bool)]
    sigma = max(float(np.median(off_diagonal.numpy())), 1e-12)  # torch.median takes the lower of two middle values
    return torch.exp(-distances.square() / (2 * sigma**2))


def normalised_laplacian_spectrum(affinity: Tensor) -> Tensor:
    """Eigenvalues of I − D^−½ S D^−½, ascending, (n,)."""
    scale = affinity.sum(1).rsqrt()
    laplacian = torch.eye(len(affinity), dtype=affinity.dtype) - scale[:, None] * affinity * scale
    return torch.linalg.eigvalsh(laplacian)


def spectral_clusters(affinity: Tensor, k_min: int, k_max: int, seed: int = 0) -> Clusters:
    """Spectral clustering with K* = argmax_K (λ_{K+1} − λ_K) over k_min … k_max (step 7).

    `k_max` is lowered to n − 1, the last K that has a gap. Raises ValueError when the range is empty or n < 3.
    """
    n = len(affinity)
    k_max = min(k_max, n - 1)
    if n < 3 or not 1 <= k_min <= k_max:
        raise ValueError(
            f"Cannot choose between {k_min} and {k_max} clusters of {n} clients; "
            "the range must lie in 1 … clients − 1 (--method.clustering.k-min, --method.clustering.k-max)."
        )
    eigenvalues = normalised_laplacian_spectrum(affinity)
    gaps = eigenvalues[k_min : k_max + 1] - eigenvalues[k_min - 1 : k_max]
    ranked = gaps.sort(descending=True).values
    k = k_min + int(gaps.argmax())
    if k == 1:
        labels = torch.zeros(n, dtype=torch.long)
    else:
        from sklearn.cluster import SpectralClustering

        model = SpectralClustering(k, affinity="precomputed", assign_labels="cluster_qr", random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Graph is not fully connected" is a fine answer here: separate groups
            labels = first_appearance(torch.from_numpy(model.fit_predict(affinity.numpy()).astype(np.int64)))
    margin = float(ranked[0] - ranked[1]) if len(ranked) > 1 else float(ranked[0])
    return Clusters(labels, int(labels.max()) + 1, eigenvalues.tolist(), float(ranked[0]), margin)


def kmeans_clusters(vectors: Tensor, k_min: int, k_max: int, seed: int = 0) -> tuple[Tensor, dict[int, float]]:
    """Return the labels (n,) of vectors (n, P) by k-means under the cosine, and the silhouette of every K tried.

    K has the largest mean silhouette in k_min … k_max, but at least 2 and at most n − 1; the smallest of equals.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    points = torch.nn.functional.normalize(vectors.double(), dim=1).numpy()
    found, scores = {}, {}
    for k in range(max(k_min, 2), min(k_max, len(np.unique(points, axis=0)), len(points) - 1) + 1):
        found[k] = KMeans(k, n_init=10, random_state=seed).fit_predict(points).astype(np.int64)
        scores[k] = float(silhouette_score(points, found[k], metric="cosine"))
    best = max(scores, key=lambda k: (scores[k], -k), default=None)
    labels = torch.zeros(len(points), dtype=torch.long) if best is None else torch.from_numpy(found[best])
    return first_appearance(labels), scores


def first_appearance(labels: Tensor) -> Tensor:
    """Renumber labels (n,) 0, 1, … in the order in which they first occur."""
    order = dict.fromkeys(labels.tolist())
    position = {label: index for index, label in enumerate(order)}
    return torch.tensor([position[label] for label in labels.tolist()])


def mean_overlap(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Mean cos² of the principal angles between paired column spaces, averaged over pairs (HiLoRA, figure 4).

    In [0, 1] and, unlike the penalty, blind to the scale of B; a pair with a zero B counts as no overlap.
    """
    values = []
    for one, other in zip(left, right, strict=True):
        both = bool(one.any()) and bool(other.any())
        overlap = subspace_similarities(column_basis(one)[None], column_basis(other)[None])
        values.append(float(overlap) if both else 0.0)
    return sum(values) / len(values)


def nearest_group(bases: Sequence[Tensor], prototypes: Sequence[Tensor]) -> Tensor:
    """Return argmax_j of the mean over sites of cos² Θ(U_u, U_c,j) (HiLoRA's routing).

    One (n, O, R) and one (G, O, R) tensor per site, to group numbers (n,).
    """
    similarity = sum(subspace_similarities(basis, group) for basis, group in zip(bases, prototypes, strict=True))
    return torch.as_tensor(similarity).argmax(1)


def cosine_similarities(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the cosines (n, m) between n and m vectors, each cut into the same pieces (n, ...) and (m, ...).

    A vector of zeros has cosine 0 with all others.
    """
    products = sum(_flat(a) @ _flat(b).mT for a, b in zip(left, right, strict=True))
    norms = torch.outer(_norms(left), _norms(right))
    return torch.as_tensor(products) / torch.where(norms > 0, norms, 1.0)


def _flat(piece: Tensor) -> Tensor:
    return piece.flatten(1).double()


def _norms(pieces: Sequence[Tensor]) -> Tensor:
    return torch.as_tensor(sum(_flat(piece).square().sum(1) for piece in pieces)).sqrt()
