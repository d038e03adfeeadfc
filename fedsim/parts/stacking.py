"""A frozen tier that grows: products are added to the backbone by stacking their factors, exactly and never dense."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedsim.adapters.bank import Bank
from fedsim.adapters.layout import HEAD_TIER, Slot
from fedsim.parts.aggregation import normalised_weights
from fedsim.parts.ranks import LoraRanks, UnequalRanks
from fedsim.round import ClientUpdate, Population

ADAPTER, RESIDUAL = "adapter", "residual"


@dataclass(frozen=True, kw_only=True)
class OverResidual(UnequalRanks):
    """The options of a method with one adapter for all, over a frozen tier that grows by what merging leaves."""

    ranks: LoraRanks = field(default_factory=lambda: LoraRanks(values=(8,)))
    """Who has which LoRA rank."""

    tiers = (ADAPTER, RESIDUAL)

    def over_residual(self, population: Population) -> dict[str, Any]:
        """Return what `Plan` is told: as `own_ranks`, and train the adapter and the classifier only."""
        frozen = {"trains": lambda slot: slot.tier in (ADAPTER, HEAD_TIER), "whole_tiers": frozenset({RESIDUAL})}
        return self.own_ranks(population) | frozen


def stacked_sum(updates: Sequence[ClientUpdate], slot: Slot, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return B (O, Σr) and A (Σr, I) whose product is Σ p_k B_k A_k exactly; `slot` is that of B, p_k are on A.

    FLoRA's stacking (arXiv 2409.05976, equations 5 and 6); p_k are the weights (n,), or shares of training samples.
    """
    weights = normalised_weights([update.n_samples for update in updates]) if weights is None else weights
    B = [update.tensors[slot] for update in updates]
    A = [w * u.tensors[slot._replace(factor="A")] for w, u in zip(weights.tolist(), updates, strict=True)]
    return torch.cat(B, dim=1), torch.cat(A)


def grown(bank: Bank, slot: Slot, B: Tensor, A: Tensor) -> dict[Slot, dict[int, Tensor]]:
    """Return the new copies of a tier with one group after B (O, m) A (m, I) has been added; `slot` is that of B.

    Once the stack is wider than the matrix it stands for, a QR brings it back to that width without loss.
    """
    pair, only = slot._replace(factor="A"), torch.tensor([0])
    wide = torch.cat((bank.read(slot, only)[0], B), dim=1)
    tall = torch.cat((bank.read(pair, only)[0], A))
    is_used = wide.any(dim=0) & tall.any(dim=1)
    wide, tall = wide[:, is_used], tall[is_used]
    if wide.shape[1] > min(wide.shape[0], tall.shape[1]):
        if wide.shape[0] <= tall.shape[1]:
            left, upper = torch.linalg.qr(wide.double())
            wide, tall = left.to(wide.dtype), (upper @ tall.double()).to(tall.dtype)
        else:
            left, upper = torch.linalg.qr(tall.mT.double())
            wide, tall = (wide.double() @ upper.mT).to(wide.dtype), left.mT.to(tall.dtype)
    return {slot: {0: wide.contiguous()}, pair: {0: tall.contiguous()}}
