"""Local: every client trains its own LoRA adapter and nothing is shared. The floor that a federation must beat."""

from dataclasses import dataclass

from fedsim.adapters.layout import HeadPolicy
from fedsim.parts.sharing import alone, with_head
from fedsim.plan import Plan
from fedsim.round import Population, ServerState


@dataclass(frozen=True, kw_only=True)
class Local:
    """An adapter for each client, alone. An unseen client starts from the backbone."""

    lora_rank: int = 8
    """Width R of the adapter."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier; `tier` means: private like the adapter."""

    tiers = ("adapter",)

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg in which every client is its own group."""
        return Plan(
            population=population,
            sharing=lambda slot, population: with_head(self.head_policy, slot, alone(population), population),
        )
