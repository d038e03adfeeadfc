"""All tiers of one client as a single LoRA for each linear map, exactly. Tensors only, no files.

    Σ_t w_t s_t B_t A_t  =  [w_1 s_1 B_1 … w_n s_n B_n] [A_1; …; A_n]

A middle factor H_t is taken into B_t. A row slice of a fused map writes its B into its rows; the A of its slices are
stacked.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedsim.adapters.layout import Mixing, Site, Slot, group_slots, left_factor
from fedsim.adapters.mixing import Mixed


class LowRankChange(NamedTuple):
    """ΔW = B A of a linear map: A (R, I) and B (O, R)."""

    A: Tensor
    B: Tensor

    def product(self) -> Tensor:
        """ΔW (O, I), computed in double precision."""
        return (self.B.double() @ self.A.double()).to(self.B.dtype)


class HeadChange(NamedTuple):
    """What a client adds to a linear map of the classifier: weight (O, I), bias (O,) or None."""

    weight: Tensor
    bias: Tensor | None


def single_adapter(
    sites: Iterable[Site],
    out_features: Mapping[str, int],
    tensors: Mapping[Slot, Tensor],
    scales: Mapping[str, float],
    mixing: Mixing | None = None,
) -> dict[str, LowRankChange]:
    """Return the one change of every module that carries adapters, from a client's tensors and its tiers' scales.

    `out_features` are the outputs of each module, which may be more than a site's. Raises ValueError when tiers
    are weighed token by token or sample by sample, which no LoRA does.
    """
    by_module: dict[str, list[LowRankChange]] = {}
    grouped = group_slots(tensors)
    for site in [site for site in sites if not site.is_head and site.name in grouped]:
        change = _site_change(site, grouped[site.name], tensors, scales, mixing)
        start, stop = site.rows or (0, out_features[site.module])
        B = change.B.new_zeros(out_features[site.module], change.B.shape[1])
        B[start:stop] = change.B
        by_module.setdefault(site.module, []).append(LowRankChange(change.A, B))
    return {module: joined(changes) for module, changes in by_module.items()}


def head_changes(sites: Iterable[Site], tensors: Mapping[Slot, Tensor]) -> dict[str, HeadChange]:
    """Return the sum of all tiers' changes of every linear map of the classifier that a client changes."""
    changes = {}
    for site in sites:
        weights = [t for slot, t in tensors.items() if slot.site == site.name and slot.factor == "W"]
        biases = [t for slot, t in tensors.items() if slot.site == site.name and slot.factor == "b"]
        if site.is_head and weights:
            changes[site.module] = HeadChange(
                torch.stack(weights).sum(0), torch.stack(biases).sum(0) if biases else None
            )
    return changes


def joined(changes: Iterable[LowRankChange]) -> LowRankChange:
    """Return the sum of changes of one map, with as few directions as that takes without any rounding but the last.

    Directions that are zero go (one stays); where there are more than the map is wide, the product takes their place.
    """
    changes = list(changes)
    A, B = torch.cat([change.A for change in changes]), torch.cat([change.B for change in changes], dim=1)
    is_used = (A != 0).any(1) & (B != 0).any(0)
    if not bool(is_used.any()):
        is_used[0] = True
    A, B = A[is_used].contiguous(), B[:, is_used].contiguous()
    if len(A) <= min(A.shape[1], B.shape[0]):
        return LowRankChange(A, B)
    product = LowRankChange(A, B).product()
    if product.shape[0] < product.shape[1]:
        return LowRankChange(product, torch.eye(product.shape[0]))
    return LowRankChange(torch.eye(product.shape[1]), product)


def _site_change(
    site: Site,
    tiers: Mapping[str, Mapping[str, Slot]],
    tensors: Mapping[Slot, Tensor],
    scales: Mapping[str, float],
    mixing: Mixing | None,
) -> LowRankChange:
    factors = {tier: {factor: tensors[slot] for factor, slot in slots.items()} for tier, slots in tiers.items()}
    A = [of_tier["A"] for of_tier in factors.values()]
    B = torch.cat([left_factor(of_tier) * scales.get(tier, 1.0) for tier, of_tier in factors.items()], dim=1)
    if mixing is not None and (value := tensors.get(mixing.slot(site))) is not None:
        if mixing.is_tokenwise:
            raise ValueError(
                f"The tiers {', '.join(mixing.tiers)} are weighed token by token or sample by sample (first at "
                f"'{site.name}'). No LoRA adapter and no merged weight can say that, so this model cannot leave the "
                "program."
            )
        B = B * Mixed(mixing, value, tuple(tiers)).columns(A[0], [len(factor) for factor in A])
    return LowRankChange(torch.cat(A), B)
