"""The LightningModule that stands for one client at a time: a frozen backbone with that client's adapters in it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn

from fedsim.adapters.layout import Site, Slot
from fedsim.adapters.linear import insert_tiered_linears

Objective = Callable[[Tensor, Tensor, Mapping[Slot, Tensor]], Tensor]


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """How a client trains, the same for every method. A fresh optimiser each round, as in all four papers."""

    epochs: int = 1
    """Passes over the client's own data in a round."""
    batch_size: int = 16
    """Samples in a local step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum."""
    learning_rate: float = 1e-3
    """Step size of every trained tensor."""
    weight_decay: float = 0.0
    """Decoupled decay of adapters and of the head's change."""
    momentum: float = 0.9
    """Of SGD."""
    clip_norm: float | None = None
    """Largest gradient norm of a client, over all its trained tensors; None for no limit."""
    tune_epochs: int = 5
    """Epochs for which an unseen client tunes at the end (five in HiLoRA's protocol)."""

    def __post_init__(self) -> None:
        problems = []
        for name in ("epochs", "batch_size", "tune_epochs"):
            if getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.learning_rate <= 0:
            problems.append(f"learning_rate is {self.learning_rate}; it must be positive")
        if self.clip_norm is not None and self.clip_norm <= 0:
            problems.append(f"clip_norm is {self.clip_norm}; it must be positive or None")
        if problems:
            raise ValueError("; ".join(problems) + " (--local.*).")


class ClientModule(LightningModule):
    """One resident frozen backbone; `install` turns it into a client, `training_step` gives that client's loss."""

    def __init__(self, backbone: nn.Module, sites: Sequence[Site], local: LocalTraining):
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.linears = insert_tiered_linears(self.backbone, sites)
        self.local = local
        self.objective: Objective | None = None
        self.tensors: dict[Slot, Tensor] = {}
        self.trained: list[Slot] = []

    def install(
        self, tensors: Mapping[Slot, Tensor], trains: frozenset[Slot], scales: Mapping[str, float], objective: Objective
    ) -> None:
        """Become the client that holds copies of `tensors`; those in `trains` will collect gradients."""
        self.tensors = {
            slot: t.to(self.device, copy=True).requires_grad_(slot in trains) for slot, t in tensors.items()
        }
        self.trained = [slot for slot in self.tensors if slot in trains]
        self.objective = objective
        for linear in self.linears.values():
            linear.install(self.tensors, scales)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, N); transformers' models answer with an object that holds them."""
        output = self.backbone(inputs)
        return output if isinstance(output, Tensor) else output.logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int = 0) -> Tensor:
        """Return the installed client's loss on one batch of inputs (B, ...) and targets (B,)."""
        assert self.objective is not None, "install a client first"
        inputs, targets = batch
        return self.objective(self(inputs), targets, self.tensors)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return a fresh optimiser over the installed client's trained tensors."""
        parameters, local = [self.tensors[slot] for slot in self.trained], self.local
        if local.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, lr=local.learning_rate, momentum=local.momentum, weight_decay=local.weight_decay
            )
        return torch.optim.AdamW(parameters, lr=local.learning_rate, weight_decay=local.weight_decay, fused=True)
