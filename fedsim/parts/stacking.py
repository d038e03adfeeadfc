"""A frozen tier that grows: products are added to the backbone by stacking their factors, exactly and never dense."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.adapters.bank import Bank
from fedsim.adapters.layout import Slot
from fedsim.parts.aggregation import normalised_weights
from fedsim.round import ClientUpdate


def stacked_sum(updates: Sequence[ClientUpdate], slot: Slot) -> tuple[Tensor, Tensor]:
    """Return B (O, Σr) and A (Σr, I) whose product is Σ p_k B_k A_k exactly; `slot` is that of B, weights are on A.

    FLoRA's stacking (arXiv 2409.05976, equations 5 and 6); p_k are shares of training samples.
    """
    weights = normalised_weights([update.n_samples for update in updates]).tolist()
    B = [update.tensors[slot] for update in updates]
    A = [w * u.tensors[slot._replace(factor="A")] for w, u in zip(weights, updates, strict=True)]
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
