"""FedTreeLoRA: one tree of clients, cut finer with depth; a cluster and an external expert (arXiv 2603.13282).

    warm-up     clients train alone from a shared start;  D^(l)_ij = ‖B_{l,i} − B_{l,j}‖
    tree        average linkage on the mean of all D^(l);  c*_l ≥ c*_{l−1} groups at depth l, by silhouette under D^(l)
    experts     Φ^clus = mean over the group, Φ^ext = mean over all others, Φ in {A, B}, clients alike
    local step  W0 x + λ B^clus A^clus x + (1 − λ) B^ext A^ext x;  A^clus, B^clus and λ = σ(θ) are trained

Tree and cuts are made once. Where c*_l = 1 nobody is outside: λ = 1, and nothing is sent or trained for the rest.

The paper leaves open, and we chose: sigmoid, λ = 0.5 at first, a learning rate of its own for θ; query and value of a
depth share c*_l and λ; the classifier under `tier` is private in the warm-up and then shared as the deepest adapters.
Not in the paper: with a cohort smaller than the federation, means are over those who took part. Who has no place (an
unseen client, one not met yet) holds everyone's mean as both experts, so that λ does not matter; one that is met after
the warm-up joins the group whose experts are nearest to the B of its first round.

λ is no measure of heterogeneity. Ten clients, 8 rounds, two seeds, τ = 0: where all are alike it ends at .63 to .67 at
the default rate, where half of them label oppositely at .49 to .69; at a tenth of the rate .51 to .52 and .50 to .52.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fedsim.adapters.layout import HEAD_TIER, MIX_TIER, HeadPolicy, Mixing, Slot
from fedsim.adapters.mixing import DepthGate, TokenRouter
from fedsim.parts.experts import both_experts, last_uploads, logged_lambdas, rename_tiers, with_latecomers
from fedsim.parts.sharing import alone, everyone, with_head
from fedsim.parts.tree import TreeCuts
from fedsim.plan import Plan, equally, merge_groups, train_tier
from fedsim.round import ClientUpdate, Outcome, Population, ServerState

LOCAL, CLUSTER, EXTERNAL = "local", "cluster", "external"


@dataclass(frozen=True, kw_only=True)
class FedTreeLoRA:
    """A cluster expert and a frozen external one at every depth."""

    lora_rank: int = 8
    """Width R of each expert."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier; `tier` means: shared as the deepest adapters."""
    warmup_rounds: int = 5
    """Rounds in which every client trains alone; with 0 the tree is grown from the first round's uploads."""
    tree: TreeCuts = field(default_factory=TreeCuts)
    """How clients are grouped."""
    external: bool = True
    """Whether there is an external expert (False is the paper's ablation: λ = 1)."""
    weigh: Literal["depth", "token"] = "depth"
    """By a λ for each depth and client, or by a two-way router for every token (the paper's ablation)."""
    initial_lambda: float = 0.5
    """λ at the start."""
    lambda_rate: float = 5e-2
    """Learning rate of θ. λ tells nothing of how clients differ: it moves as far among clients that are alike."""

    tiers = (CLUSTER, EXTERNAL, LOCAL)
    scaled_factor = None
    takes_no_steps = "has experts of whoever is outside, which are means of the uploads that the means inside are of"

    def __post_init__(self) -> None:
        if self.warmup_rounds < 0 or self.lambda_rate <= 0:
            given = f"warmup_rounds is {self.warmup_rounds} and lambda_rate {self.lambda_rate}"
            raise ValueError(f"{given}; the one must not be negative, the other be positive (--method.*).")

    @property
    def mixing(self) -> Mixing | None:
        """What weighs the experts; without an external one there is nothing to weigh."""
        pair = (CLUSTER, EXTERNAL)
        router, gate = TokenRouter(pair, len(pair)), DepthGate(pair, self.initial_lambda)
        return None if not self.external else router if self.weigh == "token" else gate

    def plan(self, state: ServerState, population: Population) -> Plan:
        """First alone, then as the tree says."""
        is_warmup = state.round_index < self.warmup_rounds
        return Plan(
            population=population,
            stage="warm-up" if is_warmup else "tree",
            tiers=(LOCAL,) if is_warmup else (CLUSTER, EXTERNAL),
            active=partial(self._active, state),
            trains=partial(train_tier, LOCAL if is_warmup else CLUSTER),
            sharing=partial(self._sharing, state),
            rate=lambda slot, rate: self.lambda_rate if slot.factor == "gate" else rate,
            uploads=lambda slot: slot.tier == LOCAL,
            weights=equally,
            server_update=self._server_update,
        )

    def _sharing(self, state: ServerState, slot: Slot, population: Population) -> Tensor:
        groups = state.learnt.get(f"groups.{state.depths[slot.site]}", everyone(population))
        held = alone(population) if slot.tier in (LOCAL, MIX_TIER) else groups
        return with_head(self.head_policy, slot, held, population)

    def _active(self, state: ServerState, slot: Slot) -> bool:
        """External adapters and what weighs them are there only where a depth is split."""
        is_split = bool(state.learnt.get(f"groups.{state.depths[slot.site]}", torch.zeros(0)).any())
        is_both = self.external and is_split and slot.factor not in ("W", "b")
        return is_both or slot.tier not in (EXTERNAL, MIX_TIER)

    def _server_update(self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        kept = {LOCAL: LOCAL, MIX_TIER: MIX_TIER, HEAD_TIER: HEAD_TIER}
        merged = merge_groups(plan, [rename_tiers(update, kept) for update in updates])
        sent = [rename_tiers(update, {LOCAL: CLUSTER, CLUSTER: CLUSTER}) for update in updates if update.n_samples]
        if not sent or state.round_index + 1 < self.warmup_rounds:
            return merged
        if "labels" not in state.learnt:
            sent = last_uploads(state.bank, sent, LOCAL, plan.population)
            learnt, log = self.tree.group(sent, state.depths, plan.population.n_clients)
        else:
            learnt, log = with_latecomers(state.bank, state.learnt, sent, plan.groups, self.tree.distance)
        after = self.plan(replace(state, round_index=state.round_index + 1, learnt=learnt), plan.population)
        log = {**merged.log, **log, **logged_lambdas(state.bank, updates)}
        return Outcome({**merged.tensors, **both_experts(sent, after.groups, after.active, EXTERNAL)}, learnt, log)
