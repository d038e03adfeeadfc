"""FedMomentum: the best adapter of the mean product goes on, and the rest goes into the backbone (arXiv 2603.08014).

    Σ p_k s_k B_k A_k = U S Vᵀ;   B ← U_R √S_R,  A ← √S_R V_Rᵀ;   W0 ← W0 + Σ_{i > R} S_i u_i v_iᵀ

So every round ends exactly in the mean of the products, and clients go on in its main directions. There is no velocity:
the paper's momentum is that of training, which is lost where adapters start again (FLoRA) or a factor is frozen
(FFA-LoRA). The singular values are split evenly, so that both factors keep moving.

Left open or done otherwise: the SVD is exact, from stacked factors, for which the product is never formed (the paper's
is randomised). The residual goes into the backbone in every round, as factors in a frozen tier, which are sent: (n − 1)
times the bytes of an adapter for n clients of one LoRA rank. LoRA ranks may be unequal; the split is even for the
largest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.parts.aggregation import split_svd
from fedsim.parts.stacking import RESIDUAL, OverResidual, grown, stacked_sum
from fedsim.plan import Plan, merge_groups
from fedsim.round import ClientUpdate, Outcome, Population, ServerState


@dataclass(frozen=True, kw_only=True)
class FedMomentum(OverResidual):
    """One adapter for all and the residual of all rounds."""

    def plan(self, state: ServerState, population: Population) -> Plan:
        """Train the adapter on top of the residual."""
        return Plan(**self.over_residual(population), server_update=self._server_update)

    def _server_update(self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        copies = {slot: c for slot, c in merge_groups(plan, updates).tensors.items() if slot.factor not in ("A", "B")}
        scale, sent = (self.lora_alpha or self.lora_rank) / self.lora_rank, 0
        for slot in [slot for slot in updates[0].tensors if slot.factor == "B"]:
            (B, A), (rest_B, rest_A) = split_svd(*stacked_sum(updates, slot), self.lora_rank)
            # The server holds A times α/R; a client's own factors are to be of one size.
            copies |= {slot: {0: B / scale**0.5}, slot._replace(factor="A"): {0: A * scale**0.5}}
            if len(rest_A):
                copies |= grown(state.bank, slot._replace(tier=RESIDUAL), rest_B, rest_A)
                sent += (rest_B.numel() + rest_A.numel()) * rest_B.element_size()
        return Outcome(copies, stack_bytes=sent)
