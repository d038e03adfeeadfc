"""FFA-LoRA: A stays at its shared random start, only B is trained and averaged (arXiv 2403.12313).

    ΔW = B A_0,  B ← Σ p_k s_k B_k

With A fixed, the mean of the B is exact for the mean of the products. Deliberate difference: LoRA ranks may be unequal
(the paper's are equal); then α/r_k is folded into B, the factor that travels.
"""

from dataclasses import dataclass, field
from functools import partial

from fedsim.adapters.layout import HeadPolicy, Slot
from fedsim.parts.ranks import LoraRanks
from fedsim.parts.sharing import one_copy
from fedsim.plan import Plan
from fedsim.round import Population, ServerState


@dataclass(frozen=True, kw_only=True)
class FFALoRA:
    """One adapter whose A never changes."""

    ranks: LoraRanks = field(default_factory=lambda: LoraRanks(values=(8,)))
    """Who has which LoRA rank."""
    lora_alpha: float | None = 16.0
    """α of the scale α/r_k; None means α = r_k."""
    head_policy: HeadPolicy = "global"
    """Who trains the classifier."""

    tiers = ("adapter",)

    @property
    def lora_rank(self) -> int:
        """The largest LoRA rank."""
        return self.ranks.largest

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg of what is not an A."""
        return Plan(
            population=population,
            trains=_is_not_a,
            sharing=partial(one_copy, self.head_policy),
            lora_ranks=self.ranks.of(population.n_participants),
            scaled_factor="B",
            evaluate_largest=True,
        )


def _is_not_a(slot: Slot) -> bool:
    return slot.factor != "A"
