"""Concatenated-QR aggregation: the exact sum of unequal adapters, cut to a rank (ILoRA, arXiv 2511.16069, section 5.2).

    B_c = [B_1 … B_S]   A_c = [p_1 A_1; …; p_S A_S]   ΔW = B_c A_c = Σ p_k B_k A_k   Q R = QR(ΔW)
    B ← first r columns of Q      A ← first r rows of R

ΔW (O, I) is never formed: with Q_b R_b = QR(B_c) and Q_c R_c = QR(R_b A_c), (Q_b Q_c) R_c is a QR of ΔW. Cutting an
unpivoted QR projects ΔW onto its own first r columns; nothing orders them by energy. `qr_pivot` and `svd` do.
"""

from typing import Literal

import scipy.linalg
import torch
from torch import Tensor

from fedsim.parts.aggregation import Merged, product_svd

Core = Literal["qr", "qr_pivot", "svd"]


def concatenated(B: Tensor, A: Tensor, weights: Tensor, core: Core = "qr") -> Merged:
    """Return the rank-R adapter of Σ w_k B_k A_k, with orthonormal B; its leading columns serve smaller LoRA ranks.

    B (n, O, R), A (n, R, I) zero-padded to the largest rank, weights (n,). Computed in float64. Signs are fixed (the
    diagonal of R is not negative), so the result does not depend on the library.
    """
    if core == "svd":
        return product_svd(B, A, weights)
    outputs, rank = B.shape[1:]
    stacked_B, stacked_A = stacked(B, A, weights)
    left, upper = torch.linalg.qr(stacked_B)
    inner, new_A = _decomposed(upper @ stacked_A, core)
    new_B = left @ inner
    energy = float(new_A.square().sum())
    kept_B, kept_A = new_B[:, :rank], new_A[:rank]
    discarded = 1 - float(kept_A.square().sum()) / energy if energy > 0 else 0.0
    if (missing := rank - kept_B.shape[1]) > 0:
        # Householder's Q is orthonormal whatever it decomposes: zeros become a completion of the basis.
        completion = torch.linalg.qr(torch.cat((kept_B, kept_B.new_zeros(outputs, missing)), dim=1))[0]
        kept_B = torch.cat((kept_B, completion[:, -missing:]), dim=1)
        kept_A = torch.cat((kept_A, kept_A.new_zeros(missing, kept_A.shape[1])))
    return Merged(kept_B.to(B.dtype), kept_A.to(A.dtype), max(discarded, 0.0))


def stacked(B: Tensor, A: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return B_c (O, Σr) and A_c (Σr, I) in float64, the weights on A, without the rows that only pad."""
    outputs, inputs = B.shape[1], A.shape[2]
    wide_B = B.double().permute(1, 0, 2).reshape(outputs, -1)
    tall_A = (weights.double()[:, None, None] * A.double()).reshape(-1, inputs)
    is_used = tall_A.any(dim=1) & wide_B.any(dim=0)
    return wide_B[:, is_used], tall_A[is_used]


def _decomposed(core: Tensor, kind: Core) -> tuple[Tensor, Tensor]:
    """QR of the small core (m, I) to (m, k), (k, I), with a non-negative diagonal; columns back in place if pivoted."""
    if kind == "qr":
        inner, upper = torch.linalg.qr(core)
        diagonal = upper.diagonal()
    else:
        Q, R, order = scipy.linalg.qr(core.numpy(), mode="economic", pivoting=True)
        inner, in_order = torch.from_numpy(Q), torch.from_numpy(R)
        diagonal = in_order.diagonal()
        upper = torch.empty_like(in_order)
        upper[:, torch.from_numpy(order).long()] = in_order
    signs = torch.ones(len(upper), dtype=upper.dtype)
    signs[: len(diagonal)] = torch.where(diagonal < 0, -1.0, 1.0).to(upper.dtype)
    return inner * signs, signs[:, None] * upper
