"""FedDPA: a global and a local adapter, learnt one after the other (F) or in turn (T), weighed for each test instance.

arXiv 2403.19211:

    h = W0 x + (1 − α) B_g A_g x + α B_l A_l x       in training a constant α
    α = λ · mean cosine of the test instance's last hidden state to those of S training samples of the client

F (fine-tuning)   FedIT of the global adapter; then every client's local one starts from it and is trained in its place
T (training)      in every round a client trains the local adapter beside the frozen global one that it received, at
                  constant weights, and the global one alone, which is averaged, from what it received: twice the steps

A client without a local adapter of its own, as one that never took part, has the global one in its place.

Left open or done otherwise: hidden states are the classifier's input, or for a language model the output map's at the
prompt's last token, with the local adapter alone, as in the released code. As its README calls that code, it gives
λ · cosine to the global adapter and so at least 1/2 to the local one at its λ = 1/2: `weighting="global"`. It draws the
S samples anew for every instance; here a client's are drawn once. `weighting="constant"` keeps α in tests too, and α is
then a number to be tuned on validation data. That both of T's trainings start from what was received is that code's
order, but for its first round, in which it trains the global adapter only. The authors speak of one more round for F's
fine-tuning (20 + 1): the default here, as the last of all rounds. Where every tier holds its change of the classifier,
these add up unweighted, as everywhere in fedsim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from fedsim.adapters.layout import HEAD_TIER, MIX_TIER, HeadPolicy, Slot
from fedsim.adapters.mixing import InstanceWeights
from fedsim.parts.sharing import alone, everyone, with_head, with_newcomers
from fedsim.plan import Plan, merge_groups
from fedsim.round import ClientUpdate, Outcome, Population, ServerState

GLOBAL, LOCAL = "global", "local"


@dataclass(frozen=True, kw_only=True)
class FedDPA:
    """One adapter for all beside one for each, weighed by how near a test instance is to the client's own data."""

    lora_rank: int = 8
    """Width R of each adapter."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier; `tier` means: each adapter brings its own change of it."""
    variant: Literal["F", "T"] = "T"
    """Whether local adapters are fine-tuned at the end or trained in every round."""
    weighting: Literal["local", "global", "constant"] = "local"
    """Which adapter weighs λ · cosine in a test, which takes two passes, the other the rest; or α for all instances."""
    largest_weight: float = 0.5
    """λ: the weight of an instance that is like the client's own data."""
    n_references: int = 5
    """S: training samples to which a client compares each test instance."""
    local_weight: float = 0.5
    """α: how much the local adapter counts in training."""
    tuning_share: float = 0.0
    """F: rounds of fine-tuning, as a share of all rounds; at least one."""

    tiers = (GLOBAL, LOCAL)
    keeps_means = only_merges = True

    def __post_init__(self) -> None:
        shares = self.local_weight, self.largest_weight, self.tuning_share
        if not (0 <= min(shares) <= max(shares) <= 1 and self.tuning_share < 1):
            raise ValueError(f"local_weight, largest_weight, tuning_share are {shares}; not in [0, 1] (--method.*).")
        if self.n_references < 1:
            raise ValueError(f"n_references is {self.n_references}; it must be 1 or more (--method.n-references).")

    @property
    def mixing(self) -> InstanceWeights | None:
        """α and 1 − α, in tests of each instance; none where they are constant."""
        if self.weighting == "constant":
            return None
        weights, n = (1 - self.local_weight, self.local_weight), self.n_references
        return InstanceWeights(
            self.tiers, weights, weighed=self.weighting, seen_by=LOCAL, largest=self.largest_weight, n_references=n
        )

    def plan(self, state: ServerState, population: Population) -> Plan:
        """F: global, then local. T: both."""
        has_own_head = self.head_policy == "local"
        if self.variant == "T":
            both = self._train(population, LOCAL, is_mixed=True, head=has_own_head)
            return replace(both, second_pass=self._train(population, GLOBAL, head=not has_own_head))
        if state.round_index < self._first_tuned(state):
            return self._train(population, GLOBAL)
        return replace(self._train(population, LOCAL), eval_plan=self._train(population, LOCAL, is_mixed=True))

    def _train(self, population: Population, tier: str, is_mixed: bool = False, head: bool = True) -> Plan:
        """Train one adapter, alone or beside the other; with the head, where that is a tier of its own."""
        constant = {GLOBAL: 1 - self.local_weight, LOCAL: self.local_weight} if self.mixing is None else {}
        return Plan(
            population=population,
            stage=tier,
            tiers=self.tiers if tier == LOCAL else (tier,),
            tier_scales=constant if is_mixed else {GLOBAL: float(tier == GLOBAL)},
            active=lambda slot: is_mixed or slot.tier != MIX_TIER,
            trains=lambda slot: slot.tier == tier or (head and slot.tier == HEAD_TIER),
            sharing=self._sharing,
            server_update=self._server_update,
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
