"""LoRA-FAIR: correct the averaged B so that its product comes near the mean of the products (arXiv 2411.14961).

    B̄, Ā = Σ p_k B_k, Σ p_k A_k;   ΔB = argmin ‖Σ p_k B_k A_k − (B̄ + ΔB) Ā‖² + λ‖ΔB‖²;   B ← B̄ + ΔB

Deliberate differences: the paper measures closeness by cosine similarity and descends on it; the squared distance has
the same optimum where it can be reached, and a closed form: ΔB = (Σ p_k B_k A_k − B̄ Ā) Āᵀ (Ā Āᵀ + λ ‖Ā‖²/R · I)⁻¹. λ is
relative to the mean squared row of Ā, so that it means the same at every site. Unequal ranks are zero-padded.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fedsim.parts.aggregation import Merged, weighted_mean
from fedsim.parts.ranks import LoraRanks, UnequalRanks
from fedsim.plan import Plan
from fedsim.round import Population, ServerState


@dataclass(frozen=True, kw_only=True)
class LoRAFAIR(UnequalRanks):
    """One adapter, the mean of factors with a corrected B."""

    ranks: LoraRanks = field(default_factory=lambda: LoraRanks(values=(8,)))
    """Who has which LoRA rank."""
    penalty: float = 0.01
    """λ: how much the correction of B is held back."""

    def __post_init__(self) -> None:
        if self.penalty <= 0:
            raise ValueError(f"penalty is {self.penalty}; it must be positive (--method.penalty).")

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg with a corrected B."""
        return Plan(**self.own_ranks(population), combine=partial(corrected_mean, penalty=self.penalty))


def corrected_mean(B: Tensor, A: Tensor, weights: Tensor, *, penalty: float) -> Merged:
    """Return B̄ + ΔB and Ā of B (n, O, R), A (n, R, I), weights (n,); no O x I product is formed."""
    mean_B, mean_A = weighted_mean(B.double(), weights), weighted_mean(A.double(), weights)
    gram = mean_A @ mean_A.mT
    target = weighted_mean(B.double() @ (A.double() @ mean_A.mT), weights)
    ridge = penalty * gram.diagonal().mean().clamp(min=1e-30) * torch.eye(len(gram), dtype=gram.dtype)
    change = torch.linalg.solve(gram + ridge, (target - mean_B @ gram).mT).mT
    return Merged((mean_B + change).to(B.dtype), mean_A.to(A.dtype), 0.0)
