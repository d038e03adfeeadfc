"""FlexLoRA: average the products, hand out their best approximation at each LoRA rank (arXiv 2402.11505).

    ΔW = Σ p_k s_k B_k A_k = U S Vᵀ;  client j gets U[:, :r_j], (S Vᵀ)[:r_j] / s_j

Deliberate differences: the product is never formed (QR of stacked factors, SVD of the small core, exact); α/r_k is each
client's own (the released code has one for all); singular values go to A, so that B is orthonormal.
"""

from dataclasses import dataclass

from fedsim.parts.aggregation import product_svd
from fedsim.parts.ranks import UnequalRanks
from fedsim.plan import Plan
from fedsim.round import Population, ServerState


@dataclass(frozen=True, kw_only=True)
class FlexLoRA(UnequalRanks):
    """One adapter for all, redistributed by SVD."""

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg of products."""
        return Plan(**self.own_ranks(population), combine=product_svd)
