"""Concatenated-QR aggregation: the exact sum of unequal adapters, cut to a rank (ILoRA, arXiv 2511.16069, section 5.2).

    B_c = [B_1 … B_S]   A_c = [p_1 A_1; …; p_S A_S]   ΔW = B_c A_c = Σ p_k B_k A_k   Q R = QR(ΔW)
    B ← first r columns of Q      A ← first r rows of R

ΔW (O, I) is never formed: with Q_b R_b = QR(B_c) and Q_c R_c = QR(R_b A_c), (Q_b Q_c) R_c is a QR of ΔW. Cutting an
unpivoted QR projects ΔW onto its own first r columns, so these alone are decomposed where r is less than Σ r_k; nothing
orders them by energy. `qr_pivot` and `svd` do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fedsim.adapters.bank import Bank
from fedsim.adapters.layout import RANK_AXIS, Slot, fit_rank, pad_rank
from fedsim.parts.aggregation import Merged, discarded_by_rank, product_norm, product_svd
from fedsim.round import ClientUpdate

Core = Literal["qr", "qr_pivot", "svd"]


def concatenated(B: Tensor, A: Tensor, weights: Tensor, *, core: Core = "qr", lora_rank: int | None = None) -> Merged:
    """Return the rank-R adapter of Σ w_k B_k A_k, with orthonormal B; its leading columns serve smaller LoRA ranks.

    B (n, O, R), A (n, R, I) zero-padded to the largest rank, weights (n,); `lora_rank` asks for another rank than that.
    Computed in float64, the discarded shares to 1e-6. Signs are fixed (the diagonal of R is not negative), so the
    result does not depend on the library.
    """
    outputs, rank = B.shape[1], lora_rank or B.shape[2]
    if core == "svd":
        widest = max(rank, B.shape[2])
        merged = product_svd(pad_rank(B, "B", widest), pad_rank(A, "A", widest), weights)
        assert merged.by_rank is not None
        kept, by_rank = slice(rank), merged.by_rank[:rank]
        return Merged(merged.B[:, kept], merged.A[kept], float(by_rank[-1]), by_rank)
    stacked_B, stacked_A = stacked(B, A, weights)
    total = product_norm(stacked_B.float(), stacked_A.float()).double()  # for the log: a fifth of the time in float64
    if core == "qr" and rank < stacked_B.shape[1]:  # the first columns of Q depend on the first columns of ΔW only
        kept_B, _ = _decomposed(stacked_B @ stacked_A[:, :rank], core)
        kept_A = (kept_B.mT @ stacked_B) @ stacked_A
    else:
        left, upper = torch.linalg.qr(stacked_B)
        inner, new_A = _decomposed(upper @ stacked_A, core)
        kept_B, kept_A = (left @ inner)[:, :rank], new_A[:rank]
    if (missing := rank - kept_B.shape[1]) > 0:
        # Householder's Q is orthonormal whatever it decomposes: zeros become a completion of the basis.
        completion = torch.linalg.qr(torch.cat((kept_B, kept_B.new_zeros(outputs, missing)), dim=1))[0]
        kept_B = torch.cat((kept_B, completion[:, -missing:]), dim=1)
        kept_A = torch.cat((kept_A, kept_A.new_zeros(missing, kept_A.shape[1])))
    by_rank = discarded_by_rank(kept_A.square().sum(1), total)
    return Merged(kept_B.to(B.dtype), kept_A.to(A.dtype), float(by_rank[-1]), by_rank)


def stacked(B: Tensor, A: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return B_c (O, Σr) and A_c (Σr, I) in float64, the weights on A, without the rows that only pad."""
    outputs, inputs = B.shape[1], A.shape[2]
    wide_B = B.double().permute(1, 0, 2).reshape(outputs, -1)
    tall_A = (weights.double()[:, None, None] * A.double()).reshape(-1, inputs)
    largest = partial(torch.linalg.vector_norm, ord=torch.inf)
    is_used = (largest(tall_A, dim=1) > 0) & (largest(wide_B, dim=0) > 0)
    return (wide_B, tall_A) if bool(is_used.all()) else (wide_B[:, is_used], tall_A[is_used])


def _decomposed(core: Tensor, kind: Core) -> tuple[Tensor, Tensor]:
    """QR of a core (m, n) to (m, k), (k, n), with a non-negative diagonal; columns back in place if pivoted."""
    if kind == "qr":
        inner, upper = torch.linalg.qr(core)
        diagonal = upper.diagonal()
    else:
        from scipy.linalg import qr

        Q, R, order = qr(core.numpy(), mode="economic", pivoting=True)
        inner, in_order = torch.from_numpy(Q), torch.from_numpy(R)
        diagonal = in_order.diagonal()
        upper = torch.empty_like(in_order)
        upper[:, torch.from_numpy(order).long()] = in_order
    signs = torch.ones(len(upper), dtype=upper.dtype)
    signs[: len(diagonal)] = torch.where(diagonal < 0, -1.0, 1.0).to(upper.dtype)
    return inner * signs, signs[:, None] * upper


def untrained(bank: Bank, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    """Return the updates as they would be if nobody had trained: the leading part of what the bank holds."""
    only = torch.tensor([0])
    return [
        replace(
            update,
            tensors={
                slot: fit_rank(bank.read(slot, only)[0], slot.factor, value.shape[RANK_AXIS[slot.factor]])
                for slot, value in update.tensors.items()
                if slot.factor in RANK_AXIS
            },
        )
        for update in updates
    ]


def as_change(update: ClientUpdate, initial: Mapping[Slot, Tensor]) -> ClientUpdate:
    """Return an update whose every product is the initial one at full rank plus what the client changed of its own.

    B_k A_k becomes B⁰A⁰ + (B_k A_k − B⁰_k A⁰_k) by stacking factors. A weighted mean of such products leaves directions
    that only clients of a large LoRA rank hold as they were; that of the bare products would shrink them.
    """
    tensors = dict(update.tensors)
    for slot, value in update.tensors.items():
        start, axis = initial[slot], RANK_AXIS.get(slot.factor)
        if axis is not None:
            own = fit_rank(start, slot.factor, value.shape[axis])
            tensors[slot] = torch.cat((value, own if slot.factor == "A" else -own, start), dim=axis)
    return replace(update, tensors=tensors)
