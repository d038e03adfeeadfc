"""HiLoRA: root, cluster and leaf adapters, trained one tier after another (arXiv 2603.02785).

    W_i = W0 + B_r A_r + B_c,j(i) A_c,j(i) + B_l,i A_l,i

Root: all clients, product-space SVD. Then clients are clustered by the subspaces of their root B; a spectral
clustering's labels are "cluster_qr"'s (the paper names no way). Cluster: the same inside each cluster, plus
γ_c ‖B_rᵀB‖². Leaf: each client alone, plus γ_c ‖B_rᵀB‖² + γ_l ‖B_cᵀB‖². A finished tier is frozen and stays in the
forward pass. The server sees every client's own B, so secure summation does not apply.

Deliberate differences: K by stability, not by eigengap; clusters by what local training changed in B (both optional);
stages are capped by shares of the budget. The paper states no caps, τ, γ, λ, range of K, probe.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fedsim.adapters.layout import HeadPolicy, Slot
from fedsim.parts.aggregation import product_svd, relative_change
from fedsim.parts.directions import TIER, SubspaceClustering, tier_overlaps
from fedsim.parts.objectives import Held, cross_entropy, tier_overlap
from fedsim.parts.routing import adapters_of, admit_by_route, with_routed
from fedsim.parts.sharing import alone, everyone, ungrouped, with_head
from fedsim.plan import Plan, Probe, merge_groups, train_tier
from fedsim.round import ClientUpdate, Outcome, Population, ServerState

STAGES = ("root", "cluster", "leaf")


@dataclass(frozen=True, kw_only=True)
class HiLoRA:
    """Three tiers of adapters on every site."""

    lora_rank: int = 8
    """Width R of each tier's adapter."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R, the printed formulas."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier; `tier` means: the tier in training, on top of the tiers before it."""
    root_share: float = 0.3
    """Cap of the root stage, as a share of all rounds."""
    cluster_share: float = 0.4
    """Cap of the cluster stage, as a share of all rounds; the leaf stage has the rest."""
    tolerance: float = 0.05
    """τ: root and cluster stage end early once ‖ΔW' − ΔW‖ / ‖ΔW‖ falls to it."""
    gamma_c: float = 0.1
    """γ_c: weight of ‖B_rᵀB‖², summed over sites."""
    gamma_l: float = 0.1
    """γ_l: weight of ‖B_cᵀB_l‖², summed over sites."""
    clustering: SubspaceClustering = field(default_factory=SubspaceClustering)

    tiers = (*STAGES, TIER)

    def __post_init__(self) -> None:
        if not (min(shares := (self.root_share, self.cluster_share)) > 0 and sum(shares) <= 1):
            raise ValueError(f"root_share and cluster_share are {shares}; both positive, sum at most 1 (--method.*).")
        if min(others := (self.gamma_c, self.gamma_l, self.tolerance)) < 0:
            raise ValueError(f"gamma_c, gamma_l and tolerance are {others}; none may be negative (--method.*).")

    def plan(self, state: ServerState, population: Population) -> Plan:
        """Train the current tier on top of the finished ones."""
        self.clustering.check(population)
        stage, labels = STAGES[int(state.learnt.get("stage", 0))], state.learnt.get("labels")
        return Plan(
            population=population,
            stage=stage,
            tiers=STAGES[: STAGES.index(stage) + 1],
            trains=partial(train_tier, stage),
            sharing=partial(self._sharing, ungrouped(population) if labels is None else labels),
            objective=partial(self._objective, stage),
            combine=product_svd,
            server_update=self._server_update,
            unseen=None if labels is None else self._probe(state, population),
        )

    def _probe(self, state: ServerState, population: Population) -> Probe:
        """A newcomer's probe trains the root adapter further, or on top of it a cluster adapter from its start."""
        tiers, steps = self.clustering.probed_tiers(state), self.clustering.probe_steps
        trains, sharing = partial(adapters_of, tiers[-1]), partial(self._sharing, ungrouped(population))
        plan = Plan(population=population, stage="probe", tiers=tiers, trains=trains, sharing=sharing, steps=steps)
        return Probe(plan, partial(self._admit, tiers[-1]))

    def _sharing(self, labels: Tensor, slot: Slot, population: Population) -> Tensor:
        holders = {"root": everyone(population), "cluster": labels}
        return with_head(self.head_policy, slot, holders.get(slot.tier, alone(population)), population)

    def _objective(self, stage: str, logits: Tensor, targets: Tensor, tensors: Held, received: Held) -> Tensor:
        loss = cross_entropy(logits, targets, tensors, received)
        if stage != "root":
            loss = loss + self.gamma_c * tier_overlap(tensors, "root", stage)
        if stage == "leaf":
            loss = loss + self.gamma_l * tier_overlap(tensors, "cluster", "leaf")
        return loss

    def _server_update(self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        bank, learnt, stage = state.bank, dict(state.learnt), STAGES.index(plan.stage)
        merged = merge_groups(plan, updates)
        log = {**merged.log, **tier_overlaps(bank, merged.tensors, STAGES[: stage + 1], plan.groups)}
        if plan.stage == "leaf":
            return Outcome(merged.tensors, with_routed(bank, learnt, updates, "leaf"), log)
        directions = self.clustering.smoothed(bank, updates) if plan.stage == "root" else {}
        learnt = with_routed(bank, learnt, updates, "cluster") if plan.stage == "cluster" else learnt
        log["relative_change"] = change = relative_change(bank, merged.tensors)
        rounds_used = state.round_index + 1 - int(learnt.get("since", 0))
        cap = max(1, round((self.root_share, self.cluster_share)[stage] * state.rounds))
        if change <= self.tolerance or rounds_used >= cap:
            learnt |= {"stage": torch.tensor(stage + 1), "since": torch.tensor(state.round_index + 1)}
            log["next_stage"] = STAGES[stage + 1]
            if plan.stage == "root":
                learnt["labels"], found = self.clustering.cluster(bank, directions, updates, plan.population)
                log |= found
        return Outcome({**merged.tensors, **directions}, learnt, log)

    def _admit(self, tier: str, state: ServerState, population: Population, probes: Sequence[ClientUpdate]) -> Outcome:
        known, kind = state.learnt["labels"], self.clustering.directions
        labels, log = admit_by_route(state.bank, known, population, probes, tier, kind)
        return Outcome(learnt={**state.learnt, "labels": labels, "stage": torch.tensor(2)}, log=log)
