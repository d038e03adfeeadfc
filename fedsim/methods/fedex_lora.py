"""FedEx-LoRA: the mean of factors, and what it lacks of the mean of products goes into the backbone (arXiv 2410.09432).

    B̄, Ā = Σ p_k B_k, Σ p_k A_k;   W0 ← W0 + Σ p_k s_k B_k A_k − B̄ Ā       (the paper's p_k are all 1/n)

So every round ends exactly in the mean of the products. The residual is kept as stacked factors in a frozen tier: no
matrix of W0's size is formed, sent or held (the released code adds it, transposed, to the dense weight).

Deliberate difference: LoRA ranks may be unequal; factors are then zero-padded, and the residual is still exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fedsim.parts.stacking import RESIDUAL, OverResidual, grown, stacked_sum
from fedsim.plan import Plan, by_samples, equally, merge_groups
from fedsim.round import ClientUpdate, Outcome, Population, ServerState


@dataclass(frozen=True, kw_only=True)
class FedExLoRA(OverResidual):
    """One adapter for all and the residual of all rounds."""

    average: Literal["samples", "clients"] = "samples"
    """Whether clients weigh by their training samples, or alike as in the paper's formulas."""

    def plan(self, state: ServerState, population: Population) -> Plan:
        """Train the adapter on top of the residual."""
        weights = by_samples if self.average == "samples" else equally
        return Plan(**self.over_residual(population), weights=weights, server_update=self._server_update)

    def _server_update(self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        merged = merge_groups(plan, updates)
        copies, sent = dict(merged.tensors), 0
        for slot in [slot for slot in updates[0].tensors if slot.factor == "B"]:
            mean_B, mean_A = merged.tensors[slot][0], merged.tensors[slot._replace(factor="A")][0]
            B, A = stacked_sum(updates, slot, plan.weights(updates, slot))
            B, A = torch.cat((B, -mean_B), dim=1), torch.cat((A, mean_A))
            copies |= grown(state.bank, slot._replace(tier=RESIDUAL), B, A)
            sent += (B.numel() + A.numel()) * B.element_size()
        return Outcome(copies, log=merged.log, stack_bytes=sent)
