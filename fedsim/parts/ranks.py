"""Which client has which LoRA rank, as data, and the options of methods that let ranks be unequal."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from fedsim.adapters.layout import HeadPolicy, Slot
from fedsim.parts.sharing import one_copy
from fedsim.randomness import numpy_generator
from fedsim.round import Population


@dataclass(frozen=True, kw_only=True)
class LoraRanks:
    """LoRA ranks and how clients get them."""

    values: tuple[int, ...] = (2, 4, 6)
    """The ranks there are; under `list`, the rank of every client in order."""
    assign: Literal["cycle", "blocks", "list", "random"] = "cycle"
    """Client k gets value k modulo their number (cycle), equal runs of clients one value each (blocks), the k-th value
    (list), or one at random (random)."""
    seed: int = 0
    """Of the random assignment."""

    def __post_init__(self) -> None:
        if not self.values or min(self.values) < 1:
            raise ValueError(f"values are {self.values}; every LoRA rank must be 1 or more (--method.ranks.values).")

    @property
    def largest(self) -> int:
        """The largest rank of any client."""
        return max(self.values)

    def of(self, n_clients: int) -> list[int]:
        """Return every client's LoRA rank, (C,); raises ValueError when there are not as many entries as clients."""
        values = np.array(self.values)
        if self.assign == "cycle":
            return values[np.arange(n_clients) % len(values)].tolist()
        if self.assign == "blocks":
            return values[np.arange(n_clients) * len(values) // n_clients].tolist()
        if self.assign == "random":
            return numpy_generator(self.seed, "lora_ranks").choice(values, n_clients).tolist()
        if len(values) != n_clients:
            raise ValueError(f"values has {len(values)} entries for {n_clients} clients (--method.ranks.values).")
        return values.tolist()


@dataclass(frozen=True, kw_only=True)
class UnequalRanks:
    """The options of a method with one adapter for all, which every client holds at its own LoRA rank."""

    ranks: LoraRanks = field(default_factory=LoraRanks)
    """Who has which LoRA rank."""
    lora_alpha: float | None = 16.0
    """α of the scale α/r_k; None means α = r_k."""
    head_policy: HeadPolicy = "global"
    """Who trains the classifier."""

    tiers: ClassVar[tuple[str, ...]] = ("adapter",)

    @property
    def lora_rank(self) -> int:
        """The largest LoRA rank."""
        return self.ranks.largest

    def sharing(self, slot: Slot, population: Population) -> Tensor:
        """Return the group of every client, (C,): all in one, but for a classifier of one's own."""
        return one_copy(self.head_policy, slot, population)

    def own_ranks(self, population: Population) -> dict[str, Any]:
        """Return what `Plan` is told: clients train at their own ranks, the server is evaluated at the largest."""
        ranks = self.ranks.of(population.n_participants)
        return {"population": population, "sharing": self.sharing, "lora_ranks": ranks, "evaluate_largest": True}
