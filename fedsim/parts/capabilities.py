"""Which client can train how many depths, as data, and the options of methods that let depths be unequal."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from fedsim.adapters.layout import HeadPolicy, Slot
from fedsim.parts.budgets import layers_that_fit
from fedsim.parts.sharing import one_copy
from fedsim.randomness import numpy_generator
from fedsim.round import Population, ServerState


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """How many depths clients can train, and how these numbers go to clients."""

    values: tuple[int, ...] = (6, 9, 12)
    """The capabilities there are, in depths; under `list`, the capability of every client in order."""
    budgets: tuple[float, ...] = ()
    """Memory budgets in MiB in place of `values`: as many of the last depths as fit into each. Clients that train just
    these keep to their budget (DepthFedIT); a method that lets them train as many, but lower ones, needs more memory,
    since activations are kept from the lowest one up, and logs how much."""
    ratio: tuple[int, ...] = ()
    """How many clients have each value, in proportion, such as 6 3 1; equally many where nothing is said."""
    assign: Literal["blocks", "cycle", "list", "random"] = "blocks"
    """Runs of clients, one for each value: sizes are rounded down and the last takes the rest (blocks, as in the
    release of Fed-HeLLo); the values in turn, each as often as its ratio says (cycle); the k-th value (list); or at
    random in proportion (random)."""
    out_of: int | None = None
    """Depths of the backbone that the values are meant for: on another they are scaled and rounded down, to 1 at least.
    None takes them as they are. Who can train more depths than there are trains all."""
    seed: int = 0
    """Of the random assignment."""

    def __post_init__(self) -> None:
        problems = []
        if not self.values or min(self.values) < 0 or max(self.values) == 0:
            problems.append(f"values are {self.values}; they must be numbers of depths, not all 0")
        if self.budgets and min(self.budgets) < 0:
            problems.append(f"budgets are {self.budgets}; they must be MiB, 0 or more")
        n_values = len(self.budgets or self.values)
        if self.ratio and (len(self.ratio) != n_values or min(self.ratio) < 0 or sum(self.ratio) == 0):
            problems.append(
                f"ratio is {self.ratio}; it needs a number, 0 or more, for each of {self.budgets or self.values}"
            )
        if self.ratio and self.assign == "list":
            problems.append("a list of capabilities has no ratio")
        if self.out_of is not None and self.out_of < 1:
            problems.append(f"out_of is {self.out_of}; it must be 1 or more")
        if problems:
            raise ValueError("; ".join(problems) + " (--method.capabilities.*).")

    def of(self, n_clients: int, n_depths: int, memory: Sequence[float] = ()) -> list[int]:
        """Return how many of `n_depths` depths every client can train, (C,).

        `memory` is what the last k depths need, for k = 0 … D (`ServerState.memory`), which budgets are held against.
        Raises ValueError when a list has not as many entries as there are clients.
        """
        values = np.array([self._scaled(value, n_depths) for value in self.values])
        if self.budgets:
            values = np.array([layers_that_fit(budget, memory) for budget in self.budgets])
        ratio = np.array(self.ratio or (1,) * len(values))
        if self.assign == "list":
            if len(values) != n_clients:
                name = "budgets" if self.budgets else "values"
                given = f"{name} has {len(values)} entries for {n_clients} clients"
                raise ValueError(f"{given} (--method.capabilities.{name}).")
            return values.tolist()
        if self.assign == "cycle":
            return np.resize(np.repeat(values, ratio), n_clients).tolist()
        if self.assign == "random":
            shares = ratio / ratio.sum()
            return numpy_generator(self.seed, "capabilities").choice(values, n_clients, p=shares).tolist()
        sizes = n_clients * ratio // ratio.sum()
        sizes[np.flatnonzero(ratio)[-1]] += n_clients - sizes.sum()
        return np.repeat(values, sizes).tolist()

    def _scaled(self, value: int, n_depths: int) -> int:
        if self.out_of is not None and value:
            value = max(1, value * n_depths // self.out_of)
        return min(value, n_depths)


@dataclass(frozen=True, kw_only=True)
class UnequalDepths:
    """The options of a method with one adapter for all, of which every client trains as many depths as it can."""

    lora_rank: int = 16
    """Width R of the adapter."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "global"
    """Who trains the classifier."""
    capabilities: Capabilities = field(default_factory=Capabilities)
    """How many depths each client can train."""

    tiers: ClassVar[tuple[str, ...]] = ("adapter",)

    def sharing(self, slot: Slot, population: Population) -> Tensor:
        """Return the group of every client, (C,): all in one, but for a classifier of one's own."""
        return one_copy(self.head_policy, slot, population)

    def affordable(self, state: ServerState, population: Population) -> list[int]:
        """Return how many depths every client can train, (C,)."""
        return self.capabilities.of(population.n_participants, len(state.adapted), state.memory)
