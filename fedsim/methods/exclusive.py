"""Exclusive: only clients that can train all layers take part. A baseline of Fed-HeLLo (arXiv 2506.12213).

Others may be sampled, but train nothing and send nothing, no classifier either, as in its release: of ten clients of a
round in which a third can train everything, about three do. What is shared is theirs all the same.
"""

from dataclasses import dataclass

from fedsim.parts.allocation import at_depths
from fedsim.parts.capabilities import UnequalDepths
from fedsim.plan import Plan, allocated_update, equally
from fedsim.round import Population, ServerState


@dataclass(frozen=True, kw_only=True)
class Exclusive(UnequalDepths):
    """One adapter for all, trained by those who can train all of it."""

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg of those who can, clients alike."""
        depths = state.adapted
        capabilities = self.affordable(state, population)
        everything = frozenset(range(len(depths)))
        sets = [everything if capability == len(depths) else frozenset() for capability in capabilities]
        return Plan(
            population=population,
            sharing=self.sharing,
            allocations=at_depths(sets, depths),
            server_update=allocated_update,
            weights=equally,
        )
