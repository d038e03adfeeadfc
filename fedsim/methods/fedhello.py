"""Fed-HeLLo: clients train as many layers as they can, chosen by geometry and Fisher scores (arXiv 2506.12213).

    GD-HLA    client k trains the pattern's set for its capability c_k, the same in every round
    RGD-HLA   c_k layers drawn without replacement by p(l) ∝ number of groups whose pattern set has layer l
    FIM-HLA   F_l = E_proxy[(∂ log p(y|x) / ∂θ_l)²];  3-means of the scores, in order;  p(l) ∝ 1, 2 or 3 by cluster
    Fed-HeLLo RGD-HLA (bottleneck) for T_w rounds, then FIM-HLA, scored anew every T_f rounds
    server    θ_l ← θ_l + mean over those who trained l of their changes; others keep their value

Draws are each client's own, anew every round. Clients of one capability are one group, whatever their number.

The sources leave open, and we chose: probabilities are kept until the next scoring; a layer's score is the trace of its
Fisher diagonal (`fim.score`; the release sums Frobenius norms); the triangle's base is the input side; the proxy set
measures the model with which the round before begins, so that T_w is the first round of FIM-HLA. The classifier is
averaged as adapters are; the release never aggregates it and evaluates the initial one: `head_policy="local"` with
`forget_heads`. Other habits of the release are off: `fim.measures="fisher_logit"` differentiates the raw logit of y,
`fim.lasting=1` lets scores have effect in one round only, `fim.ordered=False` gives weights to clusters in any order,
and a proxy set of one sample (`proxy_samples`, an option of the data) is what its mean over batches comes to. It also
mistakes layers 10 and 11 for layer 1 when it freezes; that is mended.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from fedsim.adapters.layout import HEAD_TIER, HeadPolicy, Slot
from fedsim.parts.allocation import (
    Pattern,
    at_depths,
    coverage,
    drawn,
    pattern_set,
    shares,
)
from fedsim.parts.capabilities import UnequalDepths
from fedsim.parts.fisher import FisherAllocation
from fedsim.parts.sharing import ungrouped
from fedsim.plan import Measure, Plan, allocated_update, by_samples, equally
from fedsim.round import ClientUpdate, Outcome, Population, ServerState


@dataclass(frozen=True, kw_only=True)
class FedHeLLo(UnequalDepths):
    """One adapter for all, of which every client trains some depths."""

    head_policy: HeadPolicy = "global"
    """Who trains the classifier; `local`: never aggregated."""
    forget_heads: bool = False
    """Under `local`: a client's classifier is forgotten after its round, and all are evaluated with the initial one."""
    strategy: Literal["gd", "rgd", "fim"] = "fim"
    """GD-HLA, RGD-HLA, or FIM-HLA after a warm start of RGD-HLA."""
    pattern: Pattern = "bottleneck"
    """Of GD-HLA and RGD-HLA."""
    fim: FisherAllocation = field(default_factory=FisherAllocation)
    """Of FIM-HLA: T_w, T_f, and how scores become probabilities."""
    average: Literal["uniform", "samples"] = "uniform"
    """Whether those who trained a layer count alike, or by their training samples."""

    scaled_factor = None
    keeps_means = only_merges = True

    def plan(self, state: ServerState, population: Population) -> Plan:
        """Every client at its own depths; raises ValueError when scores are due and there is no proxy set."""
        if self.strategy == "fim" and population.proxy is None and max(self.fim.warmup_rounds, 1) < state.rounds:
            given = f"FIM-HLA scores layers after {self.fim.warmup_rounds} rounds on the server's own data"
            raise ValueError(f"{given}, and there are none (--data.proxy-samples).")
        depths = state.adapted
        capabilities = self.affordable(state, population)
        stage, allocations = self._allocations(state, capabilities, len(depths))
        is_scoring = self.strategy == "fim" and self.fim.is_scoring(state)
        return Plan(
            population=population,
            stage=stage,
            sharing=self.sharing,
            allocations=at_depths(allocations, depths),
            weights=equally if self.average == "uniform" else by_samples,
            measure=Measure(self.fim.measures, "proxy") if is_scoring else None,
            server_update=self._server_update,
        )

    def _allocations(self, state: ServerState, capabilities: list[int], n: int) -> tuple[str, list[frozenset[int]]]:
        """The stage's name and every client's depths, 0 … n-1."""
        if self.strategy == "gd":
            return "gd-hla", [pattern_set(self.pattern, capability, n) for capability in capabilities]
        weights = self.fim.probabilities(state)
        p = shares(weights or coverage(self.pattern, capabilities, n))
        at = state.seed, state.round_index
        draws = [drawn(p, capability, *at, client) for client, capability in enumerate(capabilities)]
        return "fim-hla" if weights else "rgd-hla", draws

    def sharing(self, slot: Slot, population: Population) -> Tensor:
        """All in one, but for classifiers that are local or forgotten."""
        is_forgotten = self.forget_heads and self.head_policy == "local" and slot.tier == HEAD_TIER
        return ungrouped(population) if is_forgotten else super().sharing(slot, population)

    def _server_update(self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        merged = allocated_update(state, plan, updates)
        measured = [update for update in updates if update.measured]
        learnt, log = self.fim.learn(state, measured) if measured else (None, {})
        return replace(merged, learnt=learnt, log={**merged.log, **log})
