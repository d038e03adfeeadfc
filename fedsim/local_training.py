"""How a client trains: the options of its optimiser. What runs them is an engine."""

from dataclasses import dataclass
from typing import Literal

from fedsim.options import check_options, out_of_range, refuse

LOCAL_RANGES = {
    "be 1 or more": ("epochs", "batch_size", "tune_epochs"),
    "be 0 or more": ("weight_decay",),
    "be positive": ("learning_rate", "clip_norm"),
    "lie in (0, 1]": ("share",),
    "lie in [0, 1)": ("momentum", "dropout"),
}

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
        check_options(self, "local")
        refuse(out_of_range(self, LOCAL_RANGES), "--local.*")
