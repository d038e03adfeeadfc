"""How the results inside one group become one adapter. Pairs (B, A) are merged; the mean of factors is the plain case.

A p×q product is never formed unless the stacked factors are themselves wider than p and q.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.adapters.bank import Bank
from fedsim.adapters.layout import Slot


class Merged(NamedTuple):
    """One group's adapter at one site: B (O, R), A (R, I), and the share of ‖ΔW‖_F² that truncation threw away.

    `by_rank` (R,) holds the shares that are thrown away when a client gets only 1, 2, … R leading directions.
    """

    B: Tensor
    A: Tensor
    discarded: float
    by_rank: Tensor | None = None


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return Σ w_i v_i over the first axis, (n, *shape) to (*shape); weights (n,) sum to 1."""
    return torch.tensordot(weights.to(values.dtype), values, dims=1)


def mean_factors(B: Tensor, A: Tensor, weights: Tensor) -> Merged:
    """FedAvg on each factor alone: B (n, O, R), A (n, R, I), weights (n,). Its product is not the mean product."""
    return Merged(weighted_mean(B, weights), weighted_mean(A, weights), 0.0)


def product_svd(B: Tensor, A: Tensor, weights: Tensor) -> Merged:
    """Return the best rank-R adapter of the mean product Σ w_i B_i A_i, as B := U and A := S Vᵀ.

    HiLoRA, arXiv 2603.02785, root and cluster aggregation. B (n, O, R), A (n, R, I), weights (n,) summing to 1. The
    factors are stacked and reduced by QR, and only the small core is decomposed, so the result is exact for the sum.
    Signs are fixed (the largest entry of every column of B is positive), since an SVD leaves them to the library.
    """
    n, outputs, rank = B.shape
    stacked_B = B.permute(1, 0, 2).reshape(outputs, n * rank)
    stacked_A = (weights.to(A.dtype)[:, None, None] * A).reshape(n * rank, -1)
    left, core_left = _reduce(stacked_B)
    right, core_right = _reduce(stacked_A.mT)
    core = core_left @ core_right.mT
    U, S, V = leading_singular(core, rank)
    new_B, new_A = left @ U if left is not None else U, (right @ V if right is not None else V).mT
    signs = fixed_signs(new_B)
    by_rank = discarded_by_rank(S.double().square(), core.double().square().sum())
    return Merged(new_B * signs, signs[:, None] * S[:, None] * new_A, float(by_rank[-1]), by_rank)


def orthonormal_rows(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of the same product B A with orthonormal rows of A: U S and Vᵀ of its SVD.

    FedSVD, arXiv 2505.12805. B (O, R), A (R, I). Signs are fixed as in `product_svd`.
    """
    turned = product_svd(A.mT.double()[None], B.mT.double()[None], torch.ones(1))
    return turned.A.mT.to(B.dtype).contiguous(), turned.B.mT.to(A.dtype).contiguous()


def aligned(B: Tensor, A: Tensor, reference: Tensor, factor: str, strength: float) -> tuple[Tensor, Tensor]:
    """Return B R and Rᵀ A with the orthogonal R that brings one of them nearest to a reference of its shape.

    FedRot-LoRA, arXiv 2602.23638: the orthogonal Procrustes problem of the `factor` "A" or "B". With a `strength` λ
    below 1, R is a proper rotation, and the one nearest to (1 − λ) I + λ R is taken. B (O, R), A (R, I).
    """
    correlation = A.double() @ reference.double().mT if factor == "A" else B.double().mT @ reference.double()
    turn = _nearest_orthogonal(correlation, is_proper=strength < 1)
    if strength < 1:
        identity = torch.eye(len(turn), dtype=turn.dtype)
        turn = _nearest_orthogonal((1 - strength) * identity + strength * turn, is_proper=True)
    return (B.double() @ turn).to(B.dtype), (turn.mT @ A.double()).to(A.dtype)


def _nearest_orthogonal(matrix: Tensor, is_proper: bool) -> Tensor:
    """The orthogonal matrix nearest to (R, R); the rotation nearest to it where that must not be a reflection."""
    U, _, Vh = torch.linalg.svd(matrix)
    if is_proper and torch.linalg.det(U @ Vh) < 0:
        U = torch.cat((U[:, :-1], -U[:, -1:]), dim=1)
    return U @ Vh


def split_svd(B: Tensor, A: Tensor, rank: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the product B A as two pairs of factors: its leading `rank` directions, and the rest.

    FedMomentum, arXiv 2603.08014. B (O, m), A (m, I) to (U √S, √S Vᵀ) twice, with fixed signs; never dense.
    """
    left, upper = torch.linalg.qr(B.double())
    right, lower = torch.linalg.qr(A.mT.double())
    U, S, Vh = torch.linalg.svd(upper @ lower.mT, full_matrices=False)
    U, V = left @ U, right @ Vh.mT
    whole_B, whole_A = (U * fixed_signs(U) * S.sqrt()).to(B.dtype), (V * fixed_signs(U) * S.sqrt()).mT.to(A.dtype)
    return (whole_B[:, :rank], whole_A[:rank]), (whole_B[:, rank:], whole_A[rank:])


def discarded_by_rank(energies: Tensor, total: Tensor) -> Tensor:
    """Return the shares of `total` that are left out by the first 1, 2, … R directions of these energies (R,)."""
    return (1 - energies.cumsum(0) / total).clamp(min=0) if total > 0 else torch.zeros_like(energies)


def discarded_energy(cuts: Sequence[Merged]) -> dict[str, object]:
    """Return what is logged of truncations: means over sites and groups."""
    log: dict[str, object] = {"discarded_energy": sum(cut.discarded for cut in cuts) / len(cuts)} if cuts else {}
    by_rank = [cut.by_rank for cut in cuts if cut.by_rank is not None]
    if by_rank:
        log["discarded_energy_by_lora_rank"] = torch.stack(by_rank).mean(0).tolist()
    return log


def _reduce(stacked: Tensor) -> tuple[Tensor | None, Tensor]:
    """QR of a tall matrix; a wide one is already its own core (and is returned with no left factor)."""
    if stacked.shape[0] <= stacked.shape[1]:
        return None, stacked
    return torch.linalg.qr(stacked)


def leading_singular(core: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (m, rank), S (rank,), V (n, rank) of the largest singular values of core (m, n).

    A core much wider than `rank` goes to ARPACK (to machine precision, from a fixed starting vector): 8 of 768 singular
    triplets take 8 ms against 300 ms for all of them. ARPACK squares the core, so its entries are brought to 1 first.
    """
    largest = core.abs().max()
    if min(core.shape) >= 8 * rank and bool(largest > 0):
        from scipy.sparse.linalg import svds

        start = np.random.default_rng(0).standard_normal(min(core.shape)).astype(core.numpy().dtype)
        U, S, Vh = (torch.from_numpy(part.copy()) for part in svds((core / largest).numpy(), k=rank, v0=start))
        return U.flip(1), S.flip(0) * largest, Vh.flip(0).mT
    U, S, Vh = torch.linalg.svd(core, full_matrices=False)
    return U[:, :rank], S[:rank], Vh[:rank].mT


def fixed_signs(columns: Tensor) -> Tensor:
    """Return ±1 for each column of (O, R) so that its entry of largest magnitude becomes positive."""
    largest = columns.gather(0, columns.abs().argmax(0, keepdim=True))[0]
    return torch.where(largest < 0, -1.0, 1.0).to(columns.dtype)


def product_norm(B: Tensor, A: Tensor) -> Tensor:
    """‖B A‖_F² from the factors alone, tr(BᵀB · AAᵀ): B (..., O, R), A (..., R, I) to (...)."""
    return ((B.mT @ B) * (A @ A.mT)).sum((-2, -1))


def relative_change(bank: Bank, copies: Mapping[Slot, Mapping[int, Tensor]]) -> float:
    """Return ρ = ‖ΔW' − ΔW‖_F / ‖ΔW‖_F from the bank's copies to the new ones (HiLoRA's stopping rule).

    Infinite for the first change from ΔW = 0, where the paper's ε would give a number without meaning.

    All sites and groups count as one matrix. The difference of two products is itself a product of stacked factors, so
    no p×q matrix is formed.
    """
    difference, before = 0.0, 0.0
    for slot in [slot for slot in copies if slot.factor == "B"]:
        pair = slot._replace(factor="A")
        for group in copies[slot]:
            old_B, old_A = (bank.read(place, torch.tensor([group]))[0].double() for place in (slot, pair))
            stacked_B = torch.cat([copies[slot][group].double(), -old_B], dim=-1)
            stacked_A = torch.cat([copies[pair][group].double(), old_A], dim=-2)
            difference += float(product_norm(stacked_B, stacked_A))
            before += float(product_norm(old_B, old_A))
    return (max(difference, 0.0) / before) ** 0.5 if before > 0 else math.inf


def normalised_weights(samples: Sequence[int]) -> Tensor:
    """Return n_i / Σ n, (n,) in float64; equal shares when nobody has a sample."""
    counts = torch.tensor(samples, dtype=torch.float64)
    return counts / counts.sum() if counts.sum() > 0 else torch.full_like(counts, 1 / len(counts))
