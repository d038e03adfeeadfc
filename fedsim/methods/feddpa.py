"""FedDPA at constant weights: a global and a local adapter, learnt one after the other (F) or in turn (T).

arXiv 2403.19211, without its dynamic weights of each test instance.

    h = W0 x + (1 − α) B_g A_g x + α B_l A_l x

F (fine-tuning)   FedIT of the global adapter; then every client's local one starts from it and is trained in its place
T (training)      in every round a client trains the local adapter beside the frozen global one that it received, with
                  the weights above, and the global one alone, from what it received, which is averaged: twice the steps

A client without a local adapter of its own, as one that never took part, has the global one in its place.

Left open or done otherwise: α is one number, to be tuned on validation data. The paper weighs each test instance by λ
times the mean cosine between its last hidden state and those of some training samples; that is not implemented. Of the
released code and its README, one gives this weight to the local adapter and the other to the global one, which leaves
the local one at least 1/2 at their λ = 1/2; the default α = 1/2 is where both meet. That both of T's trainings start
from what was received is that code's order, but for its first round, in which it trains the global adapter only. How
many rounds of F are fine-tuning is a parameter. Where every tier holds its change of the classifier, these add up
unweighted, as everywhere in fedsim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fedsim.adapters.layout import HEAD_TIER, HeadPolicy, Slot
from fedsim.parts.sharing import alone, everyone, with_head, with_newcomers
from fedsim.plan import Plan, merge_groups
from fedsim.round import ClientUpdate, Outcome, Population, ServerState

GLOBAL, LOCAL = "global", "local"


@dataclass(frozen=True, kw_only=True)
class FedDPA:
    """One adapter for all beside one for each, at constant weights."""

    lora_rank: int = 8
    """Width R of each adapter."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier; `tier` means: each adapter brings its own change of it."""
    variant: Literal["F", "T"] = "T"
    """Whether local adapters are fine-tuned at the end or trained in every round."""
    local_weight: float = 0.5
    """α: how much the local adapter counts; 0 is FedIT."""
    tuning_share: float = 0.2
    """F: rounds of fine-tuning, as a share of all rounds; at least one."""

    tiers = (GLOBAL, LOCAL)
    keeps_means = only_merges = True

    def __post_init__(self) -> None:
        if not (0 <= self.local_weight <= 1 and 0 <= self.tuning_share < 1):
            given = f"{self.local_weight} and {self.tuning_share}"
            raise ValueError(f"local_weight and tuning_share are {given}; they must lie in [0, 1] (--method.*).")

    def plan(self, state: ServerState, population: Population) -> Plan:
        """F: global, then local. T: both."""
        mixed = {GLOBAL: 1 - self.local_weight, LOCAL: self.local_weight}
        has_own_head = self.head_policy == "local"
        if self.variant == "T":
            second_pass = self._train(population, GLOBAL, head=not has_own_head)
            return self._train(population, LOCAL, mixed, head=has_own_head, second_pass=second_pass)
        if state.round_index < self._first_tuned(state):
            return self._train(population, GLOBAL)
        return self._train(population, LOCAL, {GLOBAL: 0.0}, eval_plan=self._train(population, LOCAL, mixed))

    def _train(
        self,
        population: Population,
        tier: str,
        scales: dict[str, float] | None = None,
        head: bool = True,
        second_pass: Plan | None = None,
        eval_plan: Plan | None = None,
    ) -> Plan:
        """Train one adapter, the global one alone; with the head, where that is a tier of its own."""
        return Plan(
            population=population,
            stage=tier,
            tiers=self.tiers if scales else (tier,),
            tier_scales=scales or {},
            trains=lambda slot: slot.tier == tier or (head and slot.tier == HEAD_TIER),
            sharing=self._sharing,
            server_update=self._server_update,
            second_pass=second_pass,
            eval_plan=eval_plan,
        )

    def _sharing(self, slot: Slot, population: Population) -> Tensor:
        holders = everyone(population) if slot.tier == GLOBAL else alone(population)
        return with_head(self.head_policy, slot, holders, population)

    def _first_tuned(self, state: ServerState) -> int:
        """F: the round with which fine-tuning begins."""
        return state.rounds - max(1, round(self.tuning_share * state.rounds))

    def _server_update(self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        """Merge, and give the global adapter to those without a local one: T in every round, F before fine-tuning."""
        merged = merge_groups(plan, updates)
        if plan.stage == GLOBAL and state.round_index + 1 < self._first_tuned(state):
            return merged
        own = updates if plan.stage == LOCAL else []
        return with_newcomers(merged, state.learnt, plan.population, (GLOBAL, LOCAL), own)
