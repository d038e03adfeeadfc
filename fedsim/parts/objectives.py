"""What a client minimises. Every function returns one loss per client: no leading axis, or the leading axis K."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.adapters.layout import MIX_TIER, RANK_AXIS, Slot
from fedsim.options import IGNORED

Held = Mapping[Slot, Tensor]
"""A client's tensors, or of a block's clients (K, *shape)."""
Objective = Callable[[Tensor, Tensor, Held, Held], Tensor]


def cross_entropy(logits: Tensor, targets: Tensor, tensors: Held, received: Held) -> Tensor:
    """Mean cross-entropy of logits (..., B, N) against class indices (..., B), shape (...).

    A target that is `IGNORED` stands for no sample: clients of one block may have unequal batches.
    """
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=IGNORED)
    return losses.view(targets.shape).sum(-1) / (targets != IGNORED).sum(-1).clamp(min=1)


def label_logit(logits: Tensor, targets: Tensor, tensors: Held, received: Held) -> Tensor:
    """Mean raw logit of the label, of logits (..., B, N) and class indices (..., B), shape (...)."""
    is_there = targets != IGNORED
    chosen = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1) * is_there
    return chosen.sum(-1) / is_there.sum(-1).clamp(min=1)


def with_small_weights(penalty: float, logits: Tensor, targets: Tensor, tensors: Held, received: Held) -> Tensor:
    """Cross-entropy plus `penalty` times the sum of the magnitudes of what weighs the tiers, shape (...)."""
    (weights,) = [tensor for slot, tensor in tensors.items() if slot.tier == MIX_TIER]
    return cross_entropy(logits, targets, tensors, received) + penalty * weights.abs().sum(-1)


def proximal(mu: float, logits: Tensor, targets: Tensor, tensors: Held, received: Held) -> Tensor:
    """Cross-entropy plus μ/2 ‖w − w_received‖², shape (...) (FedProx, arXiv 1812.06127, equation 2)."""
    moved = [tensor - received[slot] for slot, tensor in tensors.items()]
    return cross_entropy(logits, targets, tensors, received) + mu / 2 * _squared_norm(moved, targets)


def near_tier(
    mu: float, tiers: tuple[str, str], logits: Tensor, targets: Tensor, tensors: Held, received: Held
) -> Tensor:
    """Cross-entropy plus μ/2 ‖v − w_received‖² between two tiers, v's first, shape (...) (Ditto, arXiv 2012.04221).

    A classifier's changes add up over tiers, so v's own is the difference.
    """
    apart = [
        tensor - received[slot._replace(tier=tiers[1])] if slot.factor in RANK_AXIS else tensor
        for slot, tensor in tensors.items()
        if slot.tier == tiers[0]
    ]
    return cross_entropy(logits, targets, tensors, received) + mu / 2 * _squared_norm(apart, targets)


def _squared_norm(values: Sequence[Tensor], targets: Tensor) -> Tensor:
    """‖·‖² of these tensors as one vector for each client, shape (...)."""
    flat = [value.square().reshape(*targets.shape[:-1], -1) for value in values]
    return torch.cat(flat, dim=-1).sum(-1)


def column_overlap(frozen: Tensor, trained: Tensor) -> Tensor:
    """‖B_frozenᵀ B_trained‖_F² (HiLoRA, arXiv 2603.02785, stage losses): (..., O, R) twice to (...)."""
    return (frozen.mT @ trained).square().sum((-2, -1))


def tier_overlap(tensors: Held, frozen: str, trained: str) -> Tensor:
    """The sum over sites of `column_overlap` between two tiers' B; shape (...).

    Raises ValueError when no site carries both tiers.
    """
    terms = [
        column_overlap(tensors[slot._replace(tier=frozen)], factor)
        for slot, factor in tensors.items()
        if slot.tier == trained and slot.factor == "B" and slot._replace(tier=frozen) in tensors
    ]
    if not terms:
        raise ValueError(f"No site carries both the tiers '{frozen}' and '{trained}'.")
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
