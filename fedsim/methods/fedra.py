"""FedRA: every client trains random layers, drawn anew in every round (arXiv 2311.11227).

    M ∈ {0, 1}^(clients × layers), row k uniform among those with c_k ones;  θ_l ← mean over k with M_kl = 1 of θ_{l,k}

A layer that no client of the round drew goes to one of them in place of a layer that others have too, where their
capabilities are enough for all layers (`cover`; the release leaves such layers as they are).

Deliberate difference: in the paper a client's model *consists of* its layers, the others are left out. Here, as where
Fed-HeLLo (arXiv 2506.12213) compares the two, the whole frozen backbone stays in the forward pass.
"""

from dataclasses import dataclass

from fedsim.parts.allocation import at_depths, covering, drawn, shares
from fedsim.parts.capabilities import UnequalDepths
from fedsim.plan import Plan, allocated_update, equally
from fedsim.randomness import numpy_generator
from fedsim.round import Population, ServerState


@dataclass(frozen=True, kw_only=True)
class FedRA(UnequalDepths):
    """One adapter for all, of which every client trains random depths."""

    cover: bool = True
    """Whether every depth is given to a client of each round."""

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg of random depths, clients alike."""
        depths = state.adapted
        alike = shares([1] * len(depths))
        capabilities = self.affordable(state, population)
        rows = [drawn(alike, n, state.seed, state.round_index, client) for client, n in enumerate(capabilities)]
        if self.cover:
            rng = numpy_generator(state.seed, "covering", state.round_index)
            rows = covering(rows, state.cohort, len(depths), rng)
        return Plan(
            population=population,
            sharing=self.sharing,
            allocations=at_depths(rows, depths),
            weights=equally,
            server_update=allocated_update,
        )
