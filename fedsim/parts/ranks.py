"""Which client has which LoRA rank, as data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsim.randomness import numpy_generator


@dataclass(frozen=True, kw_only=True)
class LoraRanks:
    """LoRA ranks and how clients get them."""

    values: tuple[int, ...] = (2, 4, 6)
    """The ranks there are; under `list`, the rank of every client in order."""
    assign: Literal["cycle", "blocks", "list", "capability", "random"] = "cycle"
    """Client k gets value k modulo their number (cycle), equal runs of clients one value each (blocks), the k-th value
    (list), the value that its capability affords (capability), or one at random (random)."""
    capabilities: tuple[float, ...] = ()
    """What each client can afford, from 0 to 1: the share of `values`, in ascending order, within its reach."""
    seed: int = 0
    """Of the random assignment."""

    def __post_init__(self) -> None:
        if not self.values or min(self.values) < 1:
            raise ValueError(f"values are {self.values}; every LoRA rank must be 1 or more (--method.ranks.values).")
        if any(not 0 <= capability <= 1 for capability in self.capabilities):
            raise ValueError(f"capabilities {self.capabilities} must lie in 0 … 1 (--method.ranks.capabilities).")

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
        if self.assign == "list":
            _check_length(self.values, n_clients, "values")
            return values.tolist()
        _check_length(self.capabilities, n_clients, "capabilities")
        reach = np.ceil(np.array(self.capabilities) * len(values)).astype(int) - 1
        return np.sort(values)[reach.clip(0)].tolist()


def _check_length(given: Sequence[object], n_clients: int, name: str) -> None:
    if len(given) != n_clients:
        raise ValueError(f"{name} has {len(given)} entries for {n_clients} clients (--method.ranks.{name}).")
