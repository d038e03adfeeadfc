"""Ditto: FedIT, and for each client an adapter of its own that stays near the global one (arXiv 2012.04221).

    w ← Σ p_k w_k                                       every client trains w_k from w, as in FedIT
    v_k = argmin over v of  F_k(v) + λ/2 ‖v − w‖²        goes on from the client's last v_k, with the w that it received

The global adapter is FedIT's, bit for bit: v_k has no part in it and never leaves its client. λ = 0 is Local. A client
trains twice in a round, so it takes twice the steps at FedIT's bytes. Metrics are those of v_k.

Left open or done otherwise: both trainings take the recipe's local steps. A client that has not trained yet has the
global adapter in the place of v_k, where the paper has the first one of all. Where each adapter brings its own change
of the classifier (head policy `tier`), v_k holds by how much its own differs from w's, and moves on with w's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fedsim.adapters.layout import HEAD_TIER, HeadPolicy, Layout, Slot
from fedsim.parts.initialisation import lora_initial
from fedsim.parts.objectives import near_tier
from fedsim.parts.sharing import alone, everyone, with_head, with_newcomers
from fedsim.plan import Plan, merge_groups
from fedsim.round import ClientUpdate, Outcome, Population, ServerState

GLOBAL, PERSONAL = "global", "personal"


@dataclass(frozen=True, kw_only=True)
class Ditto:
    """One adapter for all, and one for each that is held near it."""

    lora_rank: int = 8
    """Width R of each adapter."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier; `tier` means: each adapter brings its own change of it."""
    penalty: float = 0.1
    """λ of the proximal term; 0 is Local. The default is ours: the best one depends on the data."""

    tiers = (GLOBAL, PERSONAL)
    keeps_means = only_merges = True

    def __post_init__(self) -> None:
        if not self.penalty >= 0:
            raise ValueError(f"penalty is {self.penalty}; it must be 0 or more (--method.penalty).")

    def initial(self, layout: Layout, generator: torch.Generator, weights: Mapping[str, Tensor]) -> dict[Slot, Tensor]:
        """LoRA's start, the same for both adapters."""
        start = lora_initial(layout, generator)
        return {s: start[s._replace(tier=GLOBAL)] if s.tier == PERSONAL else value for s, value in start.items()}

    def plan(self, state: ServerState, population: Population) -> Plan:
        """Train the personal adapter near the global one, then the global one as FedIT does."""
        shared = Plan(
            population=population,
            stage=GLOBAL,
            tiers=(GLOBAL,),
            trains=lambda slot: slot.tier == GLOBAL or (slot.tier == HEAD_TIER and self.head_policy != "local"),
            sharing=self._sharing,
        )
        return replace(
            shared,
            stage=PERSONAL,
            tiers=self.tiers,
            tier_scales={GLOBAL: 0.0},
            trains=lambda slot: slot.tier == PERSONAL or (slot.tier == HEAD_TIER and self.head_policy == "local"),
            objective=partial(near_tier, self.penalty, (PERSONAL, GLOBAL)),
            server_update=_server_update,
            second_pass=shared,
        )

    def _sharing(self, slot: Slot, population: Population) -> Tensor:
        holders = everyone(population) if slot.tier == GLOBAL else alone(population)
        return with_head(self.head_policy, slot, holders, population)


def _server_update(state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
    """Merge, and give the global adapter to those without one of their own."""
    merged = merge_groups(plan, updates)
    return with_newcomers(merged, state.learnt, plan.population, (GLOBAL, PERSONAL), updates)
