"""RoLoRA: rounds take turns with B and A (arXiv 2502.01755).

    a round of B    every client trains B_k beside the shared A;  B ← Σ p_k B_k
    a round of A    every client trains A_k beside the shared B;  A ← Σ p_k A_k

With one factor the same for all, the mean of the other is exact for the mean of the products, and half as much is sent
as in FedIT. B is first, since A has no gradient while B = 0. The factor that rests is neither uploaded nor, to clients
that took part since it changed, sent.

Left open or done otherwise: the mean is by training samples (the paper's clients have equally many). The classifier is
trained and shared in every round, as the head policy says. Unseen clients train the factor whose turn it would be.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from fedsim.adapters.layout import RANK_AXIS, HeadPolicy, Slot
from fedsim.parts.sharing import one_copy
from fedsim.plan import Plan
from fedsim.round import Population, ServerState


@dataclass(frozen=True, kw_only=True)
class RoLoRA:
    """One adapter for all, a factor at a time."""

    lora_rank: int = 8
    """Width R of the adapter."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier; `tier` means: shared like the adapter."""
    turns: tuple[Literal["A", "B"], ...] = ("B", "A")
    """The factors that the rounds train, one after the other and again from the start; `B` alone is FFA-LoRA."""

    tiers = ("adapter",)

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError("turns is empty; it must name A, B or both, by the order of rounds (--method.turns).")

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg of one factor."""
        turn = self.turns[state.round_index % len(self.turns)]
        return Plan(
            population=population,
            stage=f"train {turn}",
            trains=partial(_is_in_turn, turn),
            sharing=partial(one_copy, self.head_policy),
        )


def _is_in_turn(turn: str, slot: Slot) -> bool:
    return slot.factor not in RANK_AXIS or slot.factor == turn
