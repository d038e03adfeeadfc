"""FedEx-LoRA: the mean of factors, and what it lacks of the mean of products goes into the backbone (arXiv 2410.09432).

    B̄, Ā = Σ p_k B_k, Σ p_k A_k;   W0 ← W0 + Σ p_k s_k B_k A_k − B̄ Ā

So every round ends exactly in the mean of the products. The residual is kept as stacked factors in a frozen tier: no
matrix of W0's size is formed, sent or held (the released code adds it, transposed, to the dense weight).

Deliberate difference: LoRA ranks may be unequal; factors are then zero-padded, and the residual is still exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from fedsim.parts.ranks import LoraRanks, UnequalRanks
from fedsim.parts.stacking import grown, stacked_sum
from fedsim.plan import Plan, merge_groups, train_tier
from fedsim.round import ClientUpdate, Outcome, Population, ServerState


@dataclass(frozen=True, kw_only=True)
class FedExLoRA(UnequalRanks):
    """One adapter for all and the residual of all rounds."""

    ranks: LoraRanks = field(default_factory=lambda: LoraRanks(values=(8,)))
    """Who has which LoRA rank."""

    tiers = ("adapter", "residual")

    def plan(self, state: ServerState, population: Population) -> Plan:
        """Train the adapter on top of the residual."""
        return Plan(
            **self.own_ranks(population),
            trains=partial(train_tier, "adapter"),
            whole_tiers=frozenset({"residual"}),
            server_update=self._server_update,
        )

    def _server_update(self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        merged = merge_groups(plan, updates)
        copies, sent = dict(merged.tensors), 0
        for slot in [slot for slot in updates[0].tensors if slot.factor == "B"]:
            mean_B, mean_A = merged.tensors[slot][0], merged.tensors[slot._replace(factor="A")][0]
            B, A = stacked_sum(updates, slot)
            B, A = torch.cat((B, -mean_B), dim=1), torch.cat((A, mean_A))
            copies |= grown(state.bank, slot._replace(tier="residual"), B, A)
            sent += (B.numel() + A.numel()) * B.element_size()
        return Outcome(copies, log=merged.log, stack_bytes=sent)
