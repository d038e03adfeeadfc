"""FedLEASE: as many experts as there are clusters, and routers that choose how many to hear (arXiv 2509.15087).

    warm-up     clients train alone from a shared start, B_k
    experts     average linkage on 1 − cos(B_i, B_j), averaged over sites; M = argmax of the silhouette, 2 ≤ M ≤ M_max;
                an expert is the mean of a cluster's adapters
    local step  h = W0 x + Σ_m ω_m(x) B_m A_m x;  the client's own expert and its router G are trained, others frozen
                ω: softmax(G x) of 2M − 1 outputs, the M largest renormalised; M outputs stand for the client's own
                expert, one for each other; so a token hears one to M experts
    server      uniform means of experts and of routers inside each cluster

For client k the tiers are its own expert, then the other clusters' in their order from its own on, so that one router
fits all of a cluster. Left open or done otherwise: the classifier under `tier` goes with the own expert (the released
code freezes it); M may be given; who has no cluster yet holds everyone's mean as every expert, for which ω does not
matter, and one met after the warm-up joins the nearest expert.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fedsim.adapters.bank import NEVER
from fedsim.adapters.layout import HEAD_TIER, MIX_TIER, RANK_AXIS, HeadPolicy, Slot
from fedsim.adapters.mixing import TokenRouter, adaptive_top
from fedsim.parts.experts import inside_and_outside, rename_tiers, with_latecomers
from fedsim.parts.sharing import alone, ungrouped, with_head
from fedsim.parts.tree import best_clusters
from fedsim.plan import Plan, equally, merge_groups, train_tier
from fedsim.round import ClientUpdate, Outcome, Population, ServerState

LOCAL, OWN = "local", "expert0"


@dataclass(frozen=True, kw_only=True)
class FedLEASE:
    """An expert for each cluster; every client hears its own and others."""

    lora_rank: int = 8
    """Width R of each expert."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier; `tier` means: shared as the own expert."""
    warmup_rounds: int = 5
    """Rounds in which every client trains alone; with 0 clusters are found in the first round's uploads."""
    max_experts: int = 4
    """M_max: the most experts."""
    n_experts: int | None = None
    """M, where it is not to be found out; 1 is FedIT with uniform weights."""
    scaled_factor, takes_no_steps = None, "has experts, each one copy at several places"

    def __post_init__(self) -> None:
        if self.warmup_rounds < 0 or not 1 <= (self.n_experts or 1) <= self.max_experts:
            given = f"{self.warmup_rounds}, {self.n_experts} of {self.max_experts}"
            raise ValueError(f"warmup_rounds, n_experts and max_experts are {given}, which cannot be (--method.*).")

    @property
    def experts(self) -> tuple[str, ...]:
        """The tiers of a client's own expert and of the others."""
        return tuple(f"expert{index}" for index in range(self.max_experts))

    @property
    def tiers(self) -> tuple[str, ...]:
        """Those and the adapter of the warm-up."""
        return (LOCAL, *self.experts)

    @property
    def mixing(self) -> TokenRouter:
        """A router of 2 M_max − 1 outputs at every site, of which 2M − 1 are used."""
        return TokenRouter(self.experts, 2 * self.max_experts - 1, adaptive_top)

    def plan(self, state: ServerState, population: Population) -> Plan:
        """First alone, then with experts."""
        labels, is_warmup = state.learnt.get("labels", ungrouped(population)), "labels" not in state.learnt
        held, n_experts = LOCAL if is_warmup else OWN, int(labels.max()) + 1
        return Plan(
            population=population,
            stage="warm-up" if is_warmup else "experts",
            tiers=(LOCAL,) if is_warmup else self.experts[:n_experts],
            active=partial(self._active, n_experts),
            trains=partial(train_tier, held),
            sharing=partial(self._sharing, labels),
            uploads=lambda slot: slot.tier == LOCAL,
            weights=equally,
            server_update=self._server_update,
        )

    def _active(self, n_experts: int, slot: Slot) -> bool:
        """Routers where there is a choice; of the others' experts the adapters."""
        return n_experts > 1 if slot.tier == MIX_TIER else slot.tier not in self.experts[1:] or slot.factor in RANK_AXIS

    def _sharing(self, labels: Tensor, slot: Slot, population: Population) -> Tensor:
        """Cluster m is group m + 1, nobody's is group 0; expert i of cluster m's clients is that of cluster m + i."""
        if slot.tier == LOCAL:
            return alone(population)
        place = self.experts.index(slot.tier) if slot.tier in self.experts else 0
        groups = torch.where(labels == NEVER, 0, 1 + (labels + place) % max(int(labels.max()) + 1, 1))
        return with_head(self.head_policy, slot, groups, population)

    def _server_update(self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        sent = [rename_tiers(update, {LOCAL: OWN, OWN: OWN}) for update in updates if update.n_samples]
        if not sent or state.round_index + 1 < self.warmup_rounds:
            return merge_groups(plan, updates)
        if plan.stage == "warm-up":
            labels, log = best_clusters(sent, plan.population.n_clients, self.max_experts, self.n_experts)
            learnt = {"labels": labels}
        else:
            learnt, log = with_latecomers(state.bank, state.learnt, sent, plan.groups, "cosine")
        after = self.plan(replace(state, learnt=learnt), plan.population)
        rest = [rename_tiers(update, {MIX_TIER: MIX_TIER, HEAD_TIER: HEAD_TIER}) for update in updates]
        copies = dict(merge_groups(after, rest).tensors)
        clients, n_groups = [update.client for update in sent], int(learnt["labels"].max()) + 2
        for slot in sent[0].tensors:
            values = torch.stack([update.tensors[slot] for update in sent])
            means = inside_and_outside(values, after.groups(slot)[clients], n_groups)[0]
            held = self.experts[: n_groups - 1] if slot.factor in RANK_AXIS else (OWN,)
            copies |= {slot._replace(tier=tier): means for tier in held}
        return Outcome(copies, learnt, log)
