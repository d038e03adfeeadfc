"""SCAFFOLD for LoRA: control variates take out of every local step by how much clients differ (arXiv 1910.06378).

    y_k ← y_k − η (g_k(y_k) − c_k + c)           local steps from the received x            (equation 3)
    c_k ← the gradient of all of the client's data at x                                     (equation 4, option I)
    x ← x + 1/|S| Σ (y_k − x);   c ← c + 1/N Σ (c_k − c_k before)                           (equation 5, rate 1)

for the adapter and a shared classifier; a client's own classifier is not corrected. It costs a pass over the client's
data, and twice FedIT's bytes both ways: c − c_k comes down with x, c_k goes up with y_k. All variates are zero in the
first round, and cancel where there is one client: both are FedIT, of clients that weigh alike.

Deliberate differences: option II, which saves the pass, holds for plain SGD only, so it is left out. The correction is
added to the raw gradient, so under AdamW it goes through its moments; the paper's is `--local.optimizer sgd
--local.momentum 0`. The server keeps c_k for its client, which changes no number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.adapters.layout import HeadPolicy, Layout, Slot
from fedsim.parts.initialisation import lora_initial
from fedsim.parts.sharing import alone, one_copy
from fedsim.parts.variates import CLIENT, correction, is_corrected, updated_variates, with_variates
from fedsim.plan import Measure, Plan, equally, merge_groups
from fedsim.round import ClientUpdate, Outcome, Population, ServerState


@dataclass(frozen=True, kw_only=True)
class SCAFFOLD:
    """One adapter for all, whose clients correct their gradients."""

    lora_rank: int = 8
    """Width R of the adapter."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier; `tier` means: shared like the adapter."""

    tiers = ("adapter",)
    keeps_means = True

    def initial(self, layout: Layout, generator: torch.Generator, weights: Mapping[str, Tensor]) -> dict[Slot, Tensor]:
        """LoRA's start, and variates that are zero."""
        initial = lora_initial(layout, generator)
        return with_variates(initial, [slot for slot in initial if is_corrected(slot, self.head_policy)])

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg of clients that weigh alike, with corrected gradients."""
        return Plan(
            population=population,
            sharing=self._sharing,
            weights=equally,
            measure=Measure("gradient"),
            correction=correction,
            server_update=self._server_update,
        )

    def _sharing(self, slot: Slot, population: Population) -> Tensor:
        if slot.tier.startswith(CLIENT):
            return alone(population)
        return one_copy(self.head_policy, slot, population)

    def _server_update(self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        merged, n_clients = merge_groups(plan, updates), len(plan.population.seen)
        variates = updated_variates(state.bank, updates, [self.lora_rank] * n_clients)
        return Outcome({**merged.tensors, **variates}, log=merged.log)
