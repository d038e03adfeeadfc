"""How a client trains: the options of its optimiser. What runs them is an engine."""

import math
from dataclasses import dataclass
from typing import Literal

IGNORED = -100
"""The target of a place that holds no sample, as in torch's losses."""


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """How a client trains, the same for every method. A fresh optimiser each round, as in all four papers."""

    epochs: int = 1
    """Passes over the client's own data in a round."""
    share: float = 1.0
    """Share of its batches that a client takes in an epoch, chosen anew each round."""
    batch_size: int = 16
    """Samples in a local step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum."""
    learning_rate: float = 1e-3
    """Step size of every trained tensor."""
    weight_decay: float = 0.0
    """Decay of adapters and of the head's change: decoupled under AdamW, an L2 penalty under SGD."""
    momentum: float = 0.9
    """Of SGD."""
    clip_norm: float | None = None
    """Largest gradient norm of a client, over all its trained tensors; None for no limit."""
    dropout: float = 0.0
    """Share of an adapted map's inputs that its adapters do not see in a local step (LoRA dropout)."""
    tune_epochs: int = 5
    """Epochs for which an unseen client tunes at the end (five in HiLoRA's protocol)."""

    def __post_init__(self) -> None:
        problems = []
        for name in ("epochs", "batch_size", "tune_epochs"):
            if getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}; it must be 1 or more")
            if not isinstance(getattr(self, name), int):
                problems.append(f"{name} is {getattr(self, name)}; it must be a whole number")
        if self.optimizer not in ("adamw", "sgd"):
            problems.append(f"optimizer is '{self.optimizer}'; it must be adamw or sgd")
        if not 0 < self.share <= 1:
            problems.append(f"share is {self.share}; it must lie in (0, 1]")
        if not 0 < self.learning_rate < math.inf:
            problems.append(f"learning_rate is {self.learning_rate}; it must be positive and finite")
        if not 0 <= self.weight_decay < math.inf:
            problems.append(f"weight_decay is {self.weight_decay}; it must be finite and not negative")
        for name in ("momentum", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if self.clip_norm is not None and not self.clip_norm > 0:
            problems.append(f"clip_norm is {self.clip_norm}; it must be positive or None")
        if problems:
            raise ValueError("; ".join(problems) + " (--local.*).")
