"""FFA-LoRA: A stays at its shared random start, only B is trained and averaged (arXiv 2403.12313).

    ΔW = B A_0,  B ← Σ p_k s_k B_k

With A fixed, the mean of the B is exact for the mean of the products. Deliberate difference: LoRA ranks may be unequal
(the paper's are equal); then α/r_k is folded into B, the factor that travels.
"""

from dataclasses import dataclass, field

from fedsim.adapters.layout import is_not_a
from fedsim.parts.ranks import LoraRanks, UnequalRanks
from fedsim.plan import Plan
from fedsim.round import Population, ServerState


@dataclass(frozen=True, kw_only=True)
class FFALoRA(UnequalRanks):
    """One adapter whose A never changes."""

    ranks: LoraRanks = field(default_factory=lambda: LoraRanks(values=(8,)))
    """Who has which LoRA rank."""

    scaled_factor = "B"

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg of what is not an A."""
        return Plan(**self.own_ranks(population), trains=is_not_a)
