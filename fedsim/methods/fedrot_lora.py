"""FedRot-LoRA: clients turn their factors towards the last global ones before these are averaged (arXiv 2602.23638).

    R_k = argmin over RᵀR = I of ‖Rᵀ A_k − A‖ in one round, of ‖B_k R − B‖ in the next   (orthogonal Procrustes problem)
    soft    R_k ← the orthogonal matrix nearest to (1 − λ) I + λ R_k
    A_k ← R_kᵀ A_k,  B_k ← B_k R_k;   A, B ← Σ p_k A_k, Σ p_k B_k

B_k A_k stays the same: the rotation only removes what makes factors of equal products differ. λ = 0 is FedIT. Nothing
is rotated in the first round, in which B = 0. Nothing more is sent than in FedIT.

As in the released code, R_k may be a reflection too at λ = 1, and below is a proper rotation, since the way from I to a
reflection leads through singular matrices. A is the reference in the second round, B in the third, and so on (`align`).
Here the server turns what arrives, to the same result. LoRA ranks are equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from fedsim.adapters.bank import Bank
from fedsim.adapters.layout import HeadPolicy
from fedsim.parts.aggregation import aligned
from fedsim.parts.sharing import one_copy
from fedsim.plan import Plan, merge_groups
from fedsim.round import ClientUpdate, Outcome, Population, ServerState


@dataclass(frozen=True, kw_only=True)
class FedRotLoRA:
    """One adapter for all, of aligned factors."""

    lora_rank: int = 8
    """Width R of the adapter."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier; `tier` means: shared like the adapter."""
    strength: float = 1.0
    """λ: how far factors are turned, from 0 (FedIT) to 1."""
    align: tuple[Literal["A", "B"], ...] = ("B", "A")
    """The factors that are the reference, one round after the other and again from the start."""

    tiers = ("adapter",)
    keeps_means = True

    def __post_init__(self) -> None:
        if not (0 <= self.strength <= 1 and self.align):
            given = f"{self.strength} and {self.align}"
            raise ValueError(f"strength and align are {given}; in [0, 1], and at least one factor (--method.*).")

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg of what was turned."""
        sharing = partial(one_copy, self.head_policy)
        return Plan(population=population, sharing=sharing, server_update=self._server_update)

    def _server_update(self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        if state.round_index and self.strength:
            factor = self.align[state.round_index % len(self.align)]
            updates = [self._turned(state.bank, update, factor) for update in updates]
        return merge_groups(plan, updates)

    def _turned(self, bank: Bank, update: ClientUpdate, factor: str) -> ClientUpdate:
        tensors = dict(update.tensors)
        for slot in [slot for slot in tensors if slot.factor == "B"]:
            pair = slot._replace(factor="A")
            reference = bank.read(slot._replace(factor=factor), torch.tensor([0]))[0]
            tensors[slot], tensors[pair] = aligned(tensors[slot], tensors[pair], reference, factor, self.strength)
        return replace(update, tensors=tensors)
