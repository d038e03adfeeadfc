"""PF2LoRA to first order: a common adapter, and on top of it a thin one of every client's own (arXiv 2503.03920).

    W_k = W0 + B A + D_k C_k,   (C_k, D_k) of LoRA rank r̃ < r
    min over A, B of Σ p_k f_k(A, B, y_k*),   y_k* = argmin over y = (C_k, D_k) of f_k(A, B, y)

So the rank of a client's whole change is learnt: anything from r − r̃ to r + r̃. Both levels step in every local step;
A and B are averaged after the round, C_k and D_k never leave.

Deliberate differences: this is first order. The paper approximates the upper level's gradient by one lower step of size
α, ∇_x f(x, ŷ) − α ∇²_xy f(x, y) ∇_y f(x, ŷ) with ŷ = y − α ∇_y f(x, y), which has second derivatives. Here both levels
step from one gradient at (x, y), the limit of small α; `client_rate` is the lower step's size over the upper's. The
paper has SGD below and AdamW above; here both have the recipe's optimiser.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.adapters.layout import HeadPolicy, Layout, Slot, fit_rank
from fedsim.parts.initialisation import lora_initial
from fedsim.parts.sharing import alone, everyone, with_head
from fedsim.plan import Plan
from fedsim.round import Population, ServerState

COMMON, CLIENT = "common", "client"


@dataclass(frozen=True, kw_only=True)
class PF2LoRA:
    """A common adapter and a thinner one for each client, to first order."""

    lora_rank: int = 8
    """Width r of the common adapter."""
    client_rank: int = 2
    """Width r̃ of a client's adapter."""
    lora_alpha: float | None = None
    """α of the scales α/r and α/r̃; None means 1 for both."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier; `tier` means: a common change of it and each client's own."""
    client_rate: float = 1.0
    """Learning rate of a client's adapter over that of the common one; 0 is FedIT."""

    tiers = (COMMON, CLIENT)

    def __post_init__(self) -> None:
        if not 1 <= self.client_rank <= self.lora_rank or self.client_rate < 0:
            given, wanted = f"{self.client_rank} and {self.client_rate}", f"1 … {self.lora_rank} and not negative"
            raise ValueError(f"client_rank and client_rate are {given}; they must be {wanted} (--method.*).")

    def initial(self, layout: Layout, generator: torch.Generator, weights: Mapping[str, Tensor]) -> dict[Slot, Tensor]:
        """LoRA's start, at two ranks."""
        initial, rank = lora_initial(layout, generator), self.client_rank
        return {s: fit_rank(t, s.factor, rank).clone() if s.tier == CLIENT else t for s, t in initial.items()}

    def plan(self, state: ServerState, population: Population) -> Plan:
        """Train both at once, share the common one."""
        return Plan(
            population=population,
            sharing=self._sharing,
            rate=lambda slot, rate: self.client_rate * rate if slot.tier == CLIENT else rate,
            tier_scales={CLIENT: self.lora_rank / self.client_rank if self.lora_alpha else 1.0},
            whole_tiers=frozenset({CLIENT}),
        )

    def _sharing(self, slot: Slot, population: Population) -> Tensor:
        holders = everyone(population) if slot.tier == COMMON else alone(population)
        return with_head(self.head_policy, slot, holders, population)
