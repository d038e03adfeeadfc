"""FedIT: federated averaging of LoRA adapters (arXiv 2305.05644).

Every client trains one shared adapter; the server takes the sample-weighted mean of A and of B, each on its own. That
is what `Plan` does by default, so this file only names the hyper-parameters.
"""

from dataclasses import dataclass
from functools import partial

from fedsim.adapters.layout import HeadPolicy
from fedsim.parts.sharing import one_copy
from fedsim.plan import Plan
from fedsim.round import Population, ServerState


@dataclass(frozen=True, kw_only=True)
class FedIT:
    """One adapter for all clients."""

    lora_rank: int = 8
    """Width R of the adapter."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier; `tier` means: shared like the adapter."""

    tiers = ("adapter",)

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg as it stands."""
        return Plan(
            population=population,
            sharing=partial(one_copy, self.head_policy),
        )
