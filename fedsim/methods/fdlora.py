"""FDLoRA: a personal and a global adapter, a server that takes Nesterov steps, and learnt fusion (arXiv 2406.07925).

    personal    θ_p,k: every client alone.  θ_s ← Σ p_k θ_p,k
    global      θ_s,k: every client from θ_s;  Δ = θ_s − Σ p_k θ_s,k;  v ← μ v + Δ;  θ_s ← θ_s − η (Δ + μ v)
                every H rounds  θ_p,k ← θ_s,k
    fusion      h = W0 x + w_p,k B_p,k A_p,k x + w_s,k B_s A_s x;  w_k minimises f_k + λ (|w_p| + |w_s|)

Left open or done otherwise: the paper searches w without gradients on a few samples and fuses factors; here w takes
gradient steps on the client's training samples in the last rounds, and products are weighed, the same where both
adapters are equal. The defaults of the outer step are DiLoCo's (arXiv 2311.08105). A client without a personal adapter
has the global one in its place. Changes of the classifier add up unweighted: θ_p holds by how much its own differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fedsim.adapters.layout import HEAD_TIER, MIX_TIER, HeadPolicy, Layout, Slot
from fedsim.adapters.mixing import TierWeights
from fedsim.parts.experts import rename_tiers
from fedsim.parts.initialisation import lora_initial
from fedsim.parts.objectives import with_small_weights
from fedsim.parts.outer import outer_step, personal_copies
from fedsim.parts.sharing import alone, everyone, owners, with_head
from fedsim.plan import Plan, merge_groups
from fedsim.round import ClientUpdate, Outcome, Population, ServerState

PERSONAL, GLOBAL, VELOCITY, FUSION = "personal", "global", "velocity", "fusion"


@dataclass(frozen=True, kw_only=True)
class FDLoRA:
    """One adapter for all, one for each, and two weights."""

    lora_rank: int = 8
    """Width R of each adapter."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier; `tier` means: each adapter brings its own change of it."""
    personal_share: float = 0.1
    """Rounds in which everyone is alone, as a share of all rounds."""
    fusion_share: float = 0.1
    """Rounds in which the weights are learnt, as a share of all rounds."""
    outer_rate: float = 0.7
    """η: step of the server."""
    outer_momentum: float = 0.9
    """μ: Nesterov's momentum of the server."""
    sync_period: int = 5
    """H: rounds between two copies of the global into the personal adapter."""
    weights: tuple[float, float] = (0.5, 0.5)
    """(w_p, w_s) before fusion."""
    fusion_rate: float = 1e-2
    """Learning rate of the weights."""
    penalty: float = 0.05
    """λ: weight of |w_p| + |w_s| in the loss of the fusion."""

    tiers, scaled_factor, takes_no_steps = (GLOBAL, PERSONAL, VELOCITY), None, "has Nesterov steps of its own"

    def __post_init__(self) -> None:
        if min(self.personal_share, self.fusion_share) < 0 or self.personal_share + self.fusion_share >= 1:
            given = f"{self.personal_share} and {self.fusion_share}"
            raise ValueError(f"personal_share and fusion_share are {given}; not negative, below 1 in sum (--method.*).")

    @property
    def mixing(self) -> TierWeights:
        """w_p and w_s."""
        return TierWeights((PERSONAL, GLOBAL), self.weights)

    def initial(self, layout: Layout, generator: torch.Generator, weights: Mapping[str, Tensor]) -> dict[Slot, Tensor]:
        """LoRA's start, the same for both adapters, and no velocity."""
        start, scales = lora_initial(layout, generator), {PERSONAL: 1, VELOCITY: 0}
        return {s: start[s._replace(tier=GLOBAL)] * scales[s.tier] if s.tier in scales else t for s, t in start.items()}

    def plan(self, state: ServerState, population: Population) -> Plan:
        """Train the adapter of the stage alone; hold both."""
        stage = self._stage(state.round_index, state.rounds)
        tuned = (PERSONAL, HEAD_TIER, MIX_TIER) if state.round_index >= state.rounds else (MIX_TIER,)  # newcomers
        base = Plan(population=population, stage=stage, sharing=self._sharing)
        both = replace(
            base,
            tiers=(GLOBAL, PERSONAL),
            trains=lambda slot: slot.tier in tuned,
            rate=lambda slot, rate: self.fusion_rate if slot.tier == MIX_TIER else rate,
            objective=partial(with_small_weights, self.penalty),
        )
        single = replace(
            base,
            tiers=(stage,),
            active=lambda slot: slot.tier != MIX_TIER,
            server_update=self._server_update,
            eval_plan=both if stage == GLOBAL else None,
        )
        return both if stage == FUSION else single

    def _stage(self, round_index: int, rounds: int) -> str:
        if round_index < round(self.personal_share * rounds):
            return PERSONAL
        n_fusion = round(self.fusion_share * rounds)
        return FUSION if n_fusion and round_index >= rounds - n_fusion else GLOBAL

    def _sharing(self, slot: Slot, population: Population) -> Tensor:
        holders = alone(population) if slot.tier in (PERSONAL, MIX_TIER) else everyone(population)
        return with_head(self.head_policy, slot, holders, population)

    def _server_update(self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        merged, n_round = merge_groups(plan, updates), state.round_index + 1 - round(self.personal_share * state.rounds)
        if n_round < 0:
            return merged
        updates = [rename_tiers(update, {plan.stage: GLOBAL}) for update in updates]
        copies = merge_groups(plan, updates).tensors
        if n_round:
            copies = outer_step(state.bank, copies, (GLOBAL, VELOCITY), self.outer_rate, self.outer_momentum)
        taken = updates if n_round % self.sync_period == 0 else []
        has_own, others = owners(state.learnt, plan.population, taken)
        personal = personal_copies(copies, (GLOBAL, PERSONAL), taken, others)
        return Outcome({**merged.tensors, **copies, **personal}, {"has_own": has_own}, merged.log)
