"""What a method decides for one round. The defaults of `Plan` are FedAvg: a method names only its departures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from fedsim.adapters.bank import NEVER, Bank
from fedsim.adapters.layout import HEAD_TIER, MIX_TIER, RANK_AXIS, HeadPolicy, Layout, Slot, pad_rank
from fedsim.parts.aggregation import Merged, discarded_energy, mean_factors, normalised_weights, weighted_mean
from fedsim.parts.allocation import movement_log
from fedsim.parts.initialisation import lora_initial
from fedsim.parts.objectives import Objective, cross_entropy, label_logit
from fedsim.parts.sharing import is_private, share_all
from fedsim.round import ClientUpdate, Outcome, Population, ServerState

Part = Literal["second_pass", "eval_plan", "probe"]
"""A plan inside a plan."""
Combine = Callable[[Tensor, Tensor, Tensor], Merged]
"""Merges a group at one site: B (n, O, R), A (n, R, I), weights (n,) to one adapter."""


def every_slot(slot: Slot) -> bool:
    """Leave nothing out: FedAvg sends and trains whatever there is."""
    return True


def no_slot(slot: Slot) -> bool:
    """Nothing at all."""
    return False


def same_rate(slot: Slot, learning_rate: float) -> float:
    """Every slot at the recipe's learning rate."""
    return learning_rate


def train_tier(tier: str, slot: Slot) -> bool:
    """Train one tier and, where they are tiers of their own, the head and the mixing."""
    return slot.tier in (tier, HEAD_TIER, MIX_TIER)


def is_adapter(slot: Slot) -> bool:
    """Train the LoRA factors and leave every head as it is."""
    return slot.factor in RANK_AXIS


def by_samples(members: Sequence[ClientUpdate], slot: Slot) -> Tensor:
    """Every member weighs as much as its training samples, (n,) in float64."""
    return normalised_weights([update.n_samples for update in members])


def equally(members: Sequence[ClientUpdate], slot: Slot) -> Tensor:
    """Every member that has training samples weighs alike, (n,) in float64."""
    return normalised_weights([min(update.n_samples, 1) for update in members])


def fedavg_update(state: ServerState, plan: "Plan", updates: Sequence[ClientUpdate]) -> Outcome:
    """The default server update: merge every group's results, learn nothing."""
    return merge_groups(plan, updates)


def allocated_update(state: ServerState, plan: "Plan", updates: Sequence[ClientUpdate]) -> Outcome:
    """Merge the results of those who trained anything, and log how far they moved.

    A slot that none of them trained keeps its copy, bit for bit.
    """
    trained = [update for update in updates if update.tensors and update.n_samples]
    merged = merge_groups(plan, trained)
    return replace(merged, log={**merged.log, **movement_log(state.bank, trained)})


@dataclass(frozen=True)
class Measure:
    """What is first measured at the received model, a mean over own data, and by whom."""

    what: Literal["gradient", "fisher", "fisher_logit"]
    """The gradient, or each sample's squared gradient of log p(y|x), the empirical Fisher information of the adapters
    (with "_logit" of the raw logit of y)."""
    by: Literal["clients", "proxy"] = "clients"
    """Those that train, or the server's proxy client."""


@dataclass(frozen=True)
class Probe:
    """How unseen clients are placed: what they train briefly, and what the server makes of their updates."""

    plan: "Plan"
    admit: Callable[[ServerState, Population, Sequence[ClientUpdate]], Outcome]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One round of one method, recomputed on every worker from what the server learnt.

    The functions take a slot; `sharing` returns the group of every client (C,), `NEVER` (-1) for a client that has
    none yet and therefore starts from the slot's initial value.
    """

    population: Population
    stage: str = "train"
    tiers: tuple[str, ...] | None = None
    """The tiers summed in the forward pass; None means all of them."""
    active: Callable[[Slot], bool] = every_slot
    """The slots of those tiers, of the head and of the mixing that take part; others are not sent."""
    trains: Callable[[Slot], bool] = every_slot
    sharing: Callable[[Slot, Population], Tensor] = share_all
    objective: Objective = cross_entropy
    """(logits, targets, the client's tensors, those that it received at the start of the round) to its loss."""
    combine: Combine = mean_factors
    server_update: Callable[[ServerState, "Plan", Sequence[ClientUpdate]], Outcome] = fedavg_update
    lora_ranks: Sequence[int] | None = None
    """LoRA rank of each client, (C,); None means the method's for all."""
    allocations: Sequence[frozenset[int]] | None = None
    """Depths at which each client trains adapters, (C,); None means all depths. Whoever trains any trains its head."""
    rate: Callable[[Slot, float], float] = same_rate
    """(slot, the recipe's learning rate) to the learning rate of the slot."""
    uploads: Callable[[Slot], bool] = no_slot
    """Private slots that the server gets to see all the same: their bytes count, upwards."""
    steps: int | None = None
    """Local steps; None means the recipe's local epochs."""
    tier_scales: Mapping[str, float] = field(default_factory=dict)
    """A factor in front of a tier beside α/R; 1 where nothing is said."""
    whole_tiers: frozenset[str] = frozenset()
    """Tiers that every client gets at full width, whatever its LoRA rank."""
    weights: Callable[[Sequence[ClientUpdate], Slot], Tensor] = by_samples
    """The weight (n,) of each member of a group in the merge of a slot."""
    evaluate_largest: bool = False
    """Evaluate what the server holds at its largest LoRA rank, not at each client's own."""
    measure: Measure | None = None
    correction: Callable[[Bank, Slot, int, int], Tensor] | None = None
    """(bank, slot, client, its LoRA rank) to what is added to its raw gradients of the slot in every step."""
    second_pass: "Plan | None" = None
    """What clients train besides in the same round, from what they received too; its logs are not kept."""
    eval_plan: "Plan | None" = None
    """The model that is evaluated after aggregation, where it is not the one in training."""
    unseen: Probe | None = None
    """How unseen clients are placed; None where nothing has to be found out about them."""
    server_step: Callable[[Slot, int, Tensor], Tensor] | None = None
    """(slot, group, mean) to the group's next copy; set by the server where it has an optimiser, not by methods."""

    @property
    def passes(self) -> "list[Plan]":
        """What clients train in a round, one after the other."""
        return [self, self.second_pass] if self.second_pass else [self]

    @cached_property
    def _groups(self) -> dict[Slot, Tensor]:
        return {}

    def groups(self, slot: Slot) -> Tensor:
        """Return the group of every client for this slot, (C,)."""
        if slot not in self._groups:
            self._groups[slot] = self.sharing(slot, self.population)
        return self._groups[slot]

    def part(self, name: Part | None) -> "Plan":
        """Return the plan of this name inside the plan; the plan itself where there is none."""
        probe = self.unseen.plan if self.unseen else None
        parts = {"second_pass": self.second_pass, "eval_plan": self.eval_plan, "probe": probe}
        return (parts[name] if name else None) or self


class Method(Protocol):
    """What a file in methods/ provides: a frozen dataclass of hyper-parameters with one function, `plan`.

    A second one, `initial(layout, generator, weights)`, says how slots start where it is not as in LoRA
    (`parts.initialisation.lora_initial`). An attribute `mixing` says how tiers are weighed where they are not summed;
    an attribute `middle_tiers` which tiers have a factor H (R, R) between B and A; an attribute `scaled_factor`, "A"
    where there is none, which factor the server holds times α/R, which clients of unequal LoRA rank have unequal: "A",
    "B", "H", or None for bare factors.
    """

    @property
    def lora_rank(self) -> int:
        """The largest LoRA rank of any client."""

    @property
    def lora_alpha(self) -> float | None:
        """α of the scale α/R; None means α = R, so that ΔW = B A."""

    @property
    def head_policy(self) -> HeadPolicy:
        """Who trains the classifier."""

    @property
    def tiers(self) -> tuple[str, ...]:
        """All tiers that the method ever uses."""

    def plan(self, state: ServerState, population: Population) -> Plan:
        """Return this round's plan; pure, since every worker computes it for itself."""


def scaled_factor_of(method: Method) -> Literal["A", "B", "H"] | None:
    """Return the factor that the server holds times α/R; see `Method`."""
    return getattr(method, "scaled_factor", "A")


def starting_values(
    method: Method, layout: Layout, generator: torch.Generator, weights: Mapping[str, Tensor]
) -> dict[Slot, Tensor]:
    """Return the value with which every slot starts in the bank, where the scaled factor is times α/R of the largest R.

    So a client of LoRA rank r starts with the leading part of what the server holds, B A α/R, as it does later.
    """
    start: dict[Slot, Tensor] = getattr(method, "initial", lora_initial)(layout, generator, weights)
    scale, scaled = (method.lora_alpha or method.lora_rank) / method.lora_rank, scaled_factor_of(method)
    return {slot: value * scale if slot.factor == scaled and scale != 1 else value for slot, value in start.items()}


def slots_in_use(plan: Plan, method: Method, slots: Iterable[Slot]) -> list[Slot]:
    """Return those slots that take part in the plan's forward pass."""
    tiers = {*(plan.tiers or method.tiers), HEAD_TIER, MIX_TIER}
    return [slot for slot in slots if slot.tier in tiers and plan.active(slot)]


def is_measured(plan: Plan, client: int) -> bool:
    """Whether a client measures: only who takes part in training (or is the proxy) and has data."""
    population = plan.population
    if plan.measure is None or not population.samples[client]:
        return False
    return client == population.proxy if plan.measure.by == "proxy" else client in population.trained


def corrected_clients(plan: Plan, slot: Slot, clients: Sequence[int]) -> list[int]:
    """Return those of the clients whose gradients of a shared slot are corrected: only who takes part in training."""
    if plan.correction is None or not plan.trains(slot) or is_private(plan.groups(slot)):
        return []
    return [client for client in clients if client in plan.population.trained]


def measuring(plan: Plan) -> Plan:
    """Return the plan with the objective whose gradient is measured."""
    if plan.measure is None or plan.measure.what == "gradient":
        return plan
    return replace(plan, objective=cross_entropy if plan.measure.what == "fisher" else label_logit)


def merge_groups(plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
    """Merge each slot inside each group: (A, B) pairs by `plan.combine`, anything else by its weighted mean.

    A and B are a pair where both are trained and have the same groups. A private slot (every client its own group)
    passes through untouched. Weights are training samples, normalised among those of the group who trained the slot.
    The outcome's log holds the mean share of energy that truncation discarded, at the largest and at every LoRA rank.
    """
    slots = dict.fromkeys(slot for update in updates for slot in update.tensors)
    tensors: dict[Slot, dict[int, Tensor]] = {slot: {} for slot in slots}
    cuts: list[Merged] = []
    step = plan.server_step or (lambda slot, group, mean: mean)
    for slot in slots:
        groups, pair = plan.groups(slot), slot._replace(factor={"A": "B", "B": "A"}.get(slot.factor, ""))
        is_paired = pair in slots and ((other := plan.groups(pair)) is groups or torch.equal(groups, other))
        if slot.factor == "A" and is_paired and not is_private(groups):
            continue
        for group, members in _by_group(groups, [update for update in updates if slot in update.tensors]).items():
            if is_private(groups):
                tensors[slot][group] = members[0].tensors[slot]
                continue
            weights, stacked = plan.weights(members, slot), stack_padded(members, slot)
            if slot.factor != "B" or not is_paired:
                tensors[slot][group] = step(slot, group, weighted_mean(stacked, weights))
                continue
            merged = plan.combine(stacked, stack_padded(members, pair), weights)
            tensors[slot][group], tensors[pair][group] = step(slot, group, merged.B), step(pair, group, merged.A)
            cuts.append(merged)
    return Outcome(tensors={slot: copies for slot, copies in tensors.items() if copies}, log=discarded_energy(cuts))


def stack_padded(updates: Sequence[ClientUpdate], slot: Slot) -> Tensor:
    """Return one slot of several updates as (n, *shape), zero-padded to the largest LoRA rank among them."""
    tensors = [update.tensors[slot] for update in updates]
    axis = RANK_AXIS.get(slot.factor)
    widest = max(tensor.shape[axis] for tensor in tensors) if axis else 0
    return torch.stack([pad_rank(tensor, slot.factor, widest) for tensor in tensors])


def _by_group(groups: Tensor, updates: Sequence[ClientUpdate]) -> dict[int, list[ClientUpdate]]:
    members: dict[int, list[ClientUpdate]] = {}
    for update in sorted(updates, key=lambda update: update.client):
        if (group := int(groups[update.client])) != NEVER:
            members.setdefault(group, []).append(update)
    return members
