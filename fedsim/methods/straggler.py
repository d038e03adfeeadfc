"""Straggler: every client trains what the weakest one can. A baseline of Fed-HeLLo (arXiv 2506.12213).

All train the same min_k c_k layers in every round. The paper's name for it; that they are spread evenly (0, 2, 4, 6, 8,
10 of 12) is its release's choice.
"""

from dataclasses import dataclass

from fedsim.parts.allocation import Pattern, at_depths, pattern_set
from fedsim.parts.capabilities import UnequalDepths
from fedsim.plan import Plan, allocated_update, equally
from fedsim.round import Population, ServerState


@dataclass(frozen=True, kw_only=True)
class Straggler(UnequalDepths):
    """One adapter for all, of which all train the depths that the weakest client can."""

    pattern: Pattern = "uniform"
    """Which depths these are."""

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg of a few depths, clients alike."""
        depths = state.adapted
        capabilities = self.affordable(state, population)
        weakest = min(capabilities[client] for client in population.seen)
        sets = [pattern_set(self.pattern, weakest, len(depths))] * population.n_participants
        return Plan(
            population=population,
            sharing=self.sharing,
            allocations=at_depths(sets, depths),
            server_update=allocated_update,
            weights=equally,
        )
