"""Which client has which LoRA rank, as data."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsim.randomness import numpy_generator


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
