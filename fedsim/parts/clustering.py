"""Groups of clients from the column spaces of their adapters (HiLoRA, arXiv 2603.02785, section 3.2)."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.parts.aggregation import leading_singular

BLOCK, GPU_BLOCK = 32, 512
"""Clients that are compared at once with as many others: their products stay in a core's cache; or they fill a GPU."""
DECOMPOSED = 500
"""Rows up to which a symmetric matrix is decomposed as a whole."""


class Clusters(NamedTuple):
    """Labels (n,) numbered by first appearance, how many, and what decided it."""

    labels: Tensor
    n_clusters: int
    scores: dict[int, float]
    """What the rule compared, by number of clusters: eigengaps, silhouettes, …; the largest was chosen."""
    eigenvalues: list[float]
    """The start of the spectrum, where the rule looked at it."""

    @property
    def margin(self) -> float:
        """By how much the best score exceeds the second; near zero the choice is arbitrary."""
        best, *others = sorted(self.scores.values(), reverse=True)
        return best - max(others, default=0.0)


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
    squares = (left @ right.mT).square_()
    by_left = squares.view(-1, rank, len(right)).sum(1)  # one axis after the other: faster than both at once
    return by_left.view(len(by_left), -1, rank).sum(2) / rank


def subspace_distances(bases: Iterable[Tensor], device: torch.device | str = "cpu", block: int | None = None) -> Tensor:
    """Return d_ij = 1 − mean cos² θ averaged over sites (steps 4 and 5): one basis (n, O, R) per site, to (n, n).

    Takes one site after another and each pair of clients once, in blocks of `block` clients, so beside one site's bases
    memory stays at n² + block² · R² numbers. 1,000 clients of ViT-B take half a second per site and core, of which
    nearly all is the product itself. It is formed on `device`; the distances come back to the CPU.
    """
    size = block or (BLOCK if torch.device(device).type == "cpu" else GPU_BLOCK)
    similarity, n_sites = torch.zeros(0), 0
    for basis in bases:
        n, columns, rank = len(basis), _columns(basis).to(device), basis.shape[-1]
        similarity = similarity if n_sites else torch.zeros(n, n, dtype=torch.float64, device=device)
        n_sites += 1
        blocks = [(start, columns[start * rank : (start + size) * rank]) for start in range(0, n, size)]
        for index, (i, left) in enumerate(blocks):
            for j, right in blocks[index:]:
                similarity[i : i + size, j : j + size] += _similarities(left, right, rank)
    distances = similarity.cpu().div_(-n_sites).add_(1).clamp_(0, 1).fill_diagonal_(0)
    for i, row in enumerate(distances):
        distances[i + 1 :, i] = row[i + 1 :]
    return distances


def gaussian_affinity(distances: Tensor) -> Tensor:
    """exp(−d²/2σ²) with σ the median off-diagonal distance (step 6), (n, n)."""
    pairs = torch.cat([row[i + 1 :] for i, row in enumerate(distances)]).numpy()
    sigma = max(float(np.median(pairs, overwrite_input=True)), 1e-12)  # torch.median takes the lower of two middle ones
    return distances.square().div_(-2 * sigma**2).exp_()


def normalised_laplacian_spectrum(affinity: Tensor, k: int) -> Tensor:
    """The k smallest eigenvalues of I − D^−½ S D^−½, ascending, (k,)."""
    normalised, _ = _normalised(affinity.clone())
    return 1 - largest_eigenpairs(normalised, k)[0]


def _normalised(affinity: Tensor) -> tuple[Tensor, Tensor]:
    """Turn S into D^−½ S D^−½ in place; return it and the diagonal of D^−½, in which a client without weight has 1."""
    degrees = affinity.sum(1)
    scale = torch.where(degrees > 0, degrees, 1.0).rsqrt()
    return affinity.mul_(scale).mul_(scale[:, None]), scale


def largest_eigenpairs(matrix: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest eigenvalues (k,) of a symmetric matrix (n, n), descending, and their eigenvectors (n, k).

    A large matrix goes to ARPACK (to machine precision, from a fixed starting vector): 11 eigenpairs of 4,000 clients
    take 2 s instead of 6, of 10,000 12 s.
    """
    if len(matrix) <= max(DECOMPOSED, 8 * k):
        values, vectors = torch.linalg.eigh(matrix)
    else:
        from scipy.sparse.linalg import eigsh

        start = np.random.default_rng(0).standard_normal(len(matrix)).astype(matrix.numpy().dtype)
        values, vectors = map(torch.from_numpy, eigsh(matrix.numpy(), k=k, which="LA", v0=start))
        order = values.argsort()
        values, vectors = values[order], vectors[:, order]
    return values.flip(0)[:k], vectors.flip(1)[:, :k]


def check_range(n: int, k_min: int, k_max: int) -> int:
    """Return k_max, or n − 1 where that is less: the last K that has a gap.

    Raises ValueError when the range is then empty or n < 3.
    """
    k_max = min(k_max, n - 1)
    if n < 3 or not 1 <= k_min <= k_max:
        raise ValueError(
            f"Cannot choose between {k_min} and {k_max} clusters of {n} clients; "
            "the range must lie in 1 … clients − 1 (--method.clustering.k-min, --method.clustering.k-max)."
        )
    return k_max


def spectral_clusters(
    affinity: Tensor, k_min: int, k_max: int, gaps: Callable[[Tensor], Tensor] = torch.diff
) -> Clusters:
    """Spectral clustering with K* = argmax_K (λ_{K+1} − λ_K) over k_min … k_max (step 7), or of other `gaps`.

    `k_max` is lowered to n − 1. Raises ValueError when the range is empty or n < 3.
    """
    k_max = check_range(len(affinity), k_min, k_max)
    eigenvalues = normalised_laplacian_spectrum(affinity, k_max + 1)
    found = gaps(eigenvalues)[k_min - 1 :]
    labels = first_appearance(spectral_labels(affinity, k_min + int(found.argmax())))
    scores = dict(enumerate(found.tolist(), k_min))
    return Clusters(labels, int(labels.max()) + 1, scores, eigenvalues.tolist())


def spectral_labels(affinity: Tensor, k: int) -> Tensor:
    """Return labels (n,) of spectral clustering into k groups: scikit-learn's with `assign_labels="cluster_qr"`.

    Written out since that makes four copies of (n, n) and an LU decomposition. As there, no client is its own
    neighbour; the assignment is that of Damle, Minden and Ying (2019), which needs no initial guess.
    """
    return embedded_labels(spectral_embedding(affinity, k))


def spectral_embedding(affinity: Tensor, k: int) -> Tensor:
    """Return each client's k coordinates (n, k): the leading eigenvectors of D^−½ S D^−½, times D^−½."""
    normalised, scale = _normalised(affinity.clone().fill_diagonal_(0))
    return largest_eigenpairs(normalised, k)[1] * scale[:, None]


def embedded_labels(maps: Tensor) -> Tensor:
    """Return the labels (n,) of clients at these coordinates (n, k), one group a coordinate."""
    from scipy.linalg import qr

    k = maps.shape[1]
    pivots = torch.from_numpy(qr(maps.mT.numpy(), pivoting=True, mode="r")[1][:k].astype(np.int64))
    U, _, Vh = torch.linalg.svd(maps[pivots].mT)
    return (maps @ (U @ Vh)).abs().argmax(1)


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


def group_similarities(bases: Sequence[Tensor], prototypes: Sequence[Tensor]) -> Tensor:
    """Return the sum over sites of mean cos² Θ(U_u, U_c,j), (n, G), whose largest in a row is HiLoRA's route.

    One (n, O, R) and one (G, O, R) tensor per site. A prototype of zeros is unlike everyone.
    """
    found = [subspace_similarities(basis, group) for basis, group in zip(bases, prototypes, strict=True)]
    return torch.stack(found).sum(0)


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
