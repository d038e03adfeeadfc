"""Ravan: several heads, each a fixed pair of factors with a trained H_i and a trained scale s_i (arXiv 2506.05568).

    ΔW = Σ_i s_i B_i H_i A_i,   H_i ← Σ_k p_k s_i,k H_i,k,   s_i ← 1

With A_i and B_i the same for all, the mean is exact for the mean of the products, and the rank of ΔW is up to h R for
h R² trained numbers. The rows of all A_i are orthonormal together, and so are the columns of all B_i (Gram–Schmidt on
random ones), so that heads do not overlap. The scales let a client say which heads are of use; they are of a site and a
head. H_i = 0 at the start, where nothing is trained yet that s_i could scale.

From the paper's abstract and public summaries, which give the sum, what is trained, that products s_i H_i are uploaded
and averaged, and the orthogonal start. Left open or done otherwise: here s_i,k goes up beside H_i,k, h numbers a site,
and the server multiplies, so that an encoding acts on what a client trained. That s_i starts every round at 1, once the
product has taken it in, is our reading. The mean is by training samples. Clients train all heads (the paper also lets
weak ones train some).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fedsim.adapters.layout import MIDDLE, MIX_TIER, HeadPolicy, Layout, Slot
from fedsim.adapters.mixing import TierWeights
from fedsim.parts.initialisation import orthonormal_initial
from fedsim.parts.sharing import one_copy
from fedsim.plan import Plan, merge_groups
from fedsim.round import ClientUpdate, Outcome, Population, ServerState


@dataclass(frozen=True, kw_only=True)
class Ravan:
    """Several adapters for all, of which the H and the scales are trained."""

    n_heads: int = 4
    """Adapters h at every site (nothing to do with attention heads or classifiers)."""
    lora_rank: int = 8
    """Width R of each of them."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "global"
    """Who trains the classifier."""
    train_scales: bool = True
    """Whether s_i are trained; else they stay 1."""

    scaled_factor = "H"

    def __post_init__(self) -> None:
        if self.n_heads < 1:
            raise ValueError(f"n_heads is {self.n_heads}; it must be 1 or more (--method.n-heads).")

    @property
    def tiers(self) -> tuple[str, ...]:
        """One tier for each head."""
        return tuple(f"head{index + 1}" for index in range(self.n_heads))

    @property
    def middle_tiers(self) -> tuple[str, ...]:
        """All of them have an H."""
        return self.tiers

    @property
    def mixing(self) -> TierWeights:
        """s_i at every site."""
        return TierWeights(self.tiers, (1.0,) * self.n_heads, by_site=True)

    def initial(self, layout: Layout, generator: torch.Generator, weights: Mapping[str, Tensor]) -> dict[Slot, Tensor]:
        """Orthonormal over all heads, around H = 0."""
        return orthonormal_initial(layout, generator)

    def plan(self, state: ServerState, population: Population) -> Plan:
        """Train H and s; merge their products."""
        return Plan(
            population=population,
            sharing=partial(one_copy, self.head_policy),
            trains=lambda slot: slot.factor not in ("A", "B") and (self.train_scales or slot.tier != MIX_TIER),
            server_update=partial(_server_update, self.tiers),
        )


def _server_update(tiers: tuple[str, ...], state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
    """Merge s H; s itself is never written, and so starts the next round at its initial value, 1."""
    return merge_groups(plan, [replace(update, tensors=_products(tiers, update.tensors)) for update in updates])


def _products(tiers: tuple[str, ...], tensors: Mapping[Slot, Tensor]) -> dict[Slot, Tensor]:
    scales = {slot.site: value for slot, value in tensors.items() if slot.tier == MIX_TIER}
    return {
        slot: scales[slot.site][tiers.index(slot.tier)] * value
        if slot.factor == MIDDLE and slot.site in scales
        else value
        for slot, value in tensors.items()
        if slot.tier != MIX_TIER
    }
