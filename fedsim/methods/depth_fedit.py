"""Depth-truncated FedIT: every client trains the last layers that it can afford (FedIT: arXiv 2305.05644).

A layer's adapter becomes the sample-weighted mean over those who trained it. The backward pass of a client ends at its
lowest layer, so the last ones are the cheapest. This is also how LEGEND (arXiv 2412.20004) places adapters; LEGEND
raises the LoRA rank towards the output, too, and finds every client's number of layers by a search over measured times,
whose rule the text that could be had does not give, so it is not here.
"""

from dataclasses import dataclass

from fedsim.parts.allocation import at_depths, pattern_set
from fedsim.parts.capabilities import UnequalDepths
from fedsim.plan import Plan, allocated_update
from fedsim.round import Population, ServerState


@dataclass(frozen=True, kw_only=True)
class DepthFedIT(UnequalDepths):
    """One adapter for all, of which every client trains the last depths."""

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg of the last depths."""
        depths = state.adapted
        capabilities = self.affordable(state, population)
        sets = [pattern_set("deep-heavy", capability, len(depths)) for capability in capabilities]
        return Plan(
            population=population,
            sharing=self.sharing,
            allocations=at_depths(sets, depths),
            server_update=allocated_update,
        )
