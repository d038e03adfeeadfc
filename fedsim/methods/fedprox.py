"""FedProx: federated averaging in which clients stay near what they received (arXiv 1812.06127).

    min_w  F_k(w) + μ/2 ‖w − w_t‖²                                                      (equation 2)

over the adapter and, where it is trained, the classifier. μ = 0 is FedIT. Deliberate difference: the paper lets clients
do unequal numbers of local steps; here these are the recipe's.
"""

from dataclasses import dataclass
from functools import partial

from fedsim.adapters.layout import HeadPolicy
from fedsim.parts.objectives import proximal
from fedsim.parts.sharing import one_copy
from fedsim.plan import Plan
from fedsim.round import Population, ServerState


@dataclass(frozen=True, kw_only=True)
class FedProx:
    """One adapter for all clients, who are held back."""

    lora_rank: int = 8
    """Width R of the adapter."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier; `tier` means: shared like the adapter."""
    mu: float = 0.01
    """μ of the proximal term; the paper tries .001, .01, .1 and 1."""

    tiers = ("adapter",)

    def __post_init__(self) -> None:
        if not self.mu >= 0:
            raise ValueError(f"mu is {self.mu}; it must be 0 or more (--method.mu).")

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg with another objective."""
        return Plan(
            population=population,
            sharing=partial(one_copy, self.head_policy),
            objective=partial(proximal, self.mu),
        )
