"""FedSVD: clients train B, and the server's SVD of B A gives both factors anew (arXiv 2505.12805).

    B̄ = Σ p_k s_k B_k;   B̄ A = U Σ Vᵀ;   A ← Vᵀ,  B ← U Σ

With A the same for all, the mean of B is exact for the mean of the products, and the SVD changes the factors and not
their product. A follows what was learnt, and its rows are orthonormal, which bounds the gradient of B. A is not
uploaded, so half as much goes up as in FedIT, and as much comes down.

Left open or done otherwise: no noise is added (the paper's case is differential privacy). The product is never formed.
A starts as in LoRA and is orthonormal from the first SVD on. LoRA ranks may be unequal: then clients get the leading
directions, and α/r_k is folded into B.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from fedsim.adapters.layout import is_not_a, pad_rank
from fedsim.parts.aggregation import orthonormal_rows
from fedsim.parts.ranks import LoraRanks, UnequalRanks
from fedsim.plan import Plan, merge_groups
from fedsim.round import ClientUpdate, Outcome, Population, ServerState


@dataclass(frozen=True, kw_only=True)
class FedSVD(UnequalRanks):
    """One adapter whose A is the server's."""

    ranks: LoraRanks = field(default_factory=lambda: LoraRanks(values=(8,)))
    """Who has which LoRA rank."""
    period: int = 1
    """Rounds from one SVD to the next; in a run of fewer rounds it is FFA-LoRA."""

    scaled_factor = "B"
    only_merges = True

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ValueError(f"period is {self.period}; it must be 1 or more (--method.period).")

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg of what is not an A."""
        return Plan(**self.own_ranks(population), trains=is_not_a, server_update=self._server_update)

    def _server_update(self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        merged = merge_groups(plan, updates)
        if (state.round_index + 1) % self.period:
            return merged
        copies = dict(merged.tensors)
        for slot in [slot for slot in copies if slot.factor == "B"]:
            pair = slot._replace(factor="A")
            A = state.bank.read(pair, torch.tensor([0]))[0]
            B, A = orthonormal_rows(pad_rank(copies[slot][0], "B", len(A)), A)
            copies |= {slot: {0: B}, pair: {0: A}}
        return Outcome(copies, log=merged.log)
