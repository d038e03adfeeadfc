"""Clustered FedAvg: FedAvg for all, one clustering of the clients by what they change, then FedAvg inside (2004.11791).

    warm-up     FedIT among all clients
    once        ΔB_k = B_k − B of the last warm-up round; agglomerate 1 − cos(ΔB_k, ΔB_j), average linkage, n_clusters
    clusters    FedIT inside each cluster, from the mean of its members' last warm-up results; moments of a server
                optimiser are each cluster's own and start at zero there

Deliberate differences from FL+HC: the number of clusters is given, not a distance at which to cut; the vectors are what
local training changed in all B, A and the classifier left out; where not everybody takes part in a round, those who
missed the clustering keep the warm-up's model (group 0) until they take part, and then join the cluster with the most
similar mean change, as an unseen client does after a few local steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fedsim.adapters.bank import NEVER
from fedsim.adapters.layout import HeadPolicy, Slot
from fedsim.parts.clustering import cosine_similarities
from fedsim.parts.directions import changes
from fedsim.parts.sharing import everyone, with_head
from fedsim.parts.tree import agglomerated
from fedsim.plan import Plan, Probe, is_adapter, merge_groups
from fedsim.round import ClientUpdate, Outcome, Population, ServerState

ADAPTER, CHANGE = "adapter", "change"


@dataclass(frozen=True, kw_only=True)
class ClusteredFedAvg:
    """One adapter for each of a given number of clusters."""

    lora_rank: int = 8
    """Width R of the adapter."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier; `tier` means: shared like the adapter."""
    n_clusters: int = 4
    """How many clusters there are; 1 is FedIT, as many as clients is local training after the warm-up."""
    warmup_share: float = 0.2
    """Rounds before the clustering, as a share of all rounds; at least one."""
    probe_steps: int = 10
    """Local steps after which an unseen client joins a cluster."""

    tiers = (ADAPTER, CHANGE)
    keeps_means = True

    def __post_init__(self) -> None:
        if self.n_clusters < 1 or self.probe_steps < 1:
            given = f"{self.n_clusters} and {self.probe_steps}"
            raise ValueError(f"n_clusters and probe_steps are {given}; both must be positive (--method.*).")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup_share is {self.warmup_share}; it must lie in [0, 1) (--method.warmup-share).")

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg inside the groups that there are."""
        labels, steps = state.learnt.get("labels"), self.probe_steps
        probe = Plan(population=population, stage="probe", tiers=(ADAPTER,), trains=is_adapter, steps=steps)
        return Plan(
            population=population,
            stage="warm-up" if labels is None else "clusters",
            tiers=(ADAPTER,),
            sharing=partial(self._sharing, everyone(population) + NEVER if labels is None else labels),
            server_update=self._server_update,
            unseen=None if labels is None else Probe(probe, self._admit),
        )

    def _sharing(self, labels: Tensor, slot: Slot, population: Population) -> Tensor:
        """Group 0 has the warm-up's model, which those without a cluster keep; group k + 1 is cluster k."""
        return with_head(self.head_policy, slot, 1 + labels, population)

    def _server_update(self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        updates = [update for update in updates if update.n_samples]
        if plan.stage == "clusters":
            labels = self._joined(state, updates, [update.client for update in updates])
            placed = [update for update in updates if state.learnt["labels"][update.client] != NEVER]
            return Outcome(merge_groups(plan, placed).tensors, {**state.learnt, "labels": labels})
        merged = merge_groups(plan, updates)
        if not updates or state.round_index + 1 < max(1, round(self.warmup_share * state.rounds)):
            return merged
        moved = changes(state.bank, updates, ADAPTER, "change")
        pieces = list(moved.values())
        found = agglomerated(1 - cosine_similarities(pieces, pieces), self.n_clusters)
        labels = torch.full((plan.population.n_clients,), NEVER)
        labels[[update.client for update in updates]] = found
        started = replace(plan, sharing=partial(self._sharing, labels), server_step=None)  # no cluster holds a copy yet
        inside = merge_groups(started, updates).tensors
        copies = {slot: {**held, **inside[slot]} for slot, held in merged.tensors.items()}
        for slot, moves in moved.items():
            means = {cluster: moves[found == cluster].mean(0) for cluster in set(found.tolist())}
            copies[slot._replace(tier=CHANGE)] = means
        return Outcome(copies, {"labels": labels}, {"n_clusters": 1 + int(found.max()), "labels": found.tolist()})

    def _joined(self, state: ServerState, updates: Sequence[ClientUpdate], clients: Sequence[int]) -> Tensor:
        """The labels after those of the clients that have none joined the cluster whose mean change is most alike."""
        labels = state.learnt["labels"].clone()
        lost = [update for update in updates if update.client in clients and labels[update.client] == NEVER]
        if lost:
            moved, clusters = changes(state.bank, lost, ADAPTER, "change"), torch.arange(int(labels.max()) + 1)
            means = [state.bank.read(slot._replace(tier=CHANGE), clusters) for slot in moved]
            nearest = cosine_similarities(list(moved.values()), means).argmax(1)
            labels[[update.client for update in lost]] = nearest
        return labels

    def _admit(self, state: ServerState, population: Population, probes: Sequence[ClientUpdate]) -> Outcome:
        labels = self._joined(state, probes, population.unseen)
        return Outcome(learnt={**state.learnt, "labels": labels}, log={"labels": labels.tolist()})
