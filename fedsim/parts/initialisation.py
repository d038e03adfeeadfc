"""How a fresh adapter starts."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedsim.adapters.layout import MIDDLE, Layout, Slot


def lora_initial(
    layout: Layout, generator: torch.Generator, weights: Mapping[str, Tensor] | None = None
) -> dict[Slot, Tensor]:
    """Return the shared start of every slot: A uniform in ±1/√I, as in LoRA (arXiv 2106.09685); B, W and b zero; H = I.

    So every tier starts as the identity, and all clients of a tier start alike; what mixes tiers starts as it says
    itself. The pretrained `weights` play no part.
    """
    initial = {}
    for slot, shape in layout.shapes.items():
        if layout.mixing is not None and slot in layout.mixed:
            initial[slot] = layout.mixing.start(layout.mixed[slot], generator)
        elif slot.factor == "A":
            bound = 1 / math.sqrt(shape[-1])
            initial[slot] = torch.rand(shape, generator=generator).mul_(2 * bound).sub_(bound)
        else:
            initial[slot] = torch.eye(shape[0]) if slot.factor == MIDDLE else torch.zeros(shape)
    return initial


def orthonormal_initial(layout: Layout, generator: torch.Generator) -> dict[Slot, Tensor]:
    """Return a random start in which the rows of A of all tiers at a site are orthonormal, and so are columns of B.

    That is Gram–Schmidt over the tiers. H is 0, so that ΔW is; all else is as in `lora_initial`. Raises ValueError
    where a site is not as wide as its tiers' LoRA ranks together.
    """
    initial, width = lora_initial(layout, generator), layout.lora_rank * len(layout.tiers)
    for site in [site for site in layout.sites if not site.is_head]:
        if width > min(site.in_features, site.out_features):
            raise ValueError(
                f"{len(layout.tiers)} adapters of LoRA rank {layout.lora_rank} are to be orthogonal, and site "
                f"'{site.name}' is {min(site.in_features, site.out_features)} wide (--method.lora-rank)."
            )
        for factor, features in (("A", site.in_features), ("B", site.out_features)):
            Q, upper = torch.linalg.qr(torch.randn(features, width, generator=generator, dtype=torch.float64))
            columns = (Q * upper.diagonal().sign()).float().split(layout.lora_rank, dim=1)
            for tier, own in zip(layout.tiers, columns, strict=True):
                initial[Slot(tier, site.name, factor)] = (own.mT if factor == "A" else own).contiguous()
    return {slot: 0 * value if slot.factor == MIDDLE else value for slot, value in initial.items()}


def qr_factors(weight: Tensor, lora_rank: int, rms: float | None) -> tuple[Tensor, Tensor]:
    """Return B (O, R) and A (R, I): the first R columns of Q and rows of R of the pretrained weight (O, I).

    ILoRA, arXiv 2511.16069, section 5.1, without pivoting; the diagonal of R is not negative. Factors of smaller LoRA
    ranks are their leading parts. With `rms` both are scaled alike so that the entries of B A have this root mean
    square; the columns of B are then orthogonal and of one length. None leaves them as they are.
    """
    Q, upper = torch.linalg.qr(weight.detach().double().cpu())
    signs = torch.where(upper.diagonal() < 0, -1.0, 1.0).to(Q.dtype)
    B = (Q[:, : len(signs)] * signs)[:, :lora_rank]
    A = (signs[:, None] * upper[: len(signs)])[:lora_rank]
    # B is orthonormal, so ‖B A‖ = ‖A‖.
    scale = 1.0 if rms is None else math.sqrt(rms * math.sqrt(weight.numel()) / float(A.norm().clamp(min=1e-30)))
    return (scale * B).float(), (scale * A).float()
