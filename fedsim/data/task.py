"""What a client's model is asked, and how its answers are scored: the one place that names metrics."""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Model(Protocol):
    """A client's model as a task sees it, or a block of clients whose samples lie one client after another."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return logits (B, N), or (B, T, N) of tokens."""

    def generate(self, prompts: Tensor, lengths: Tensor, max_new_tokens: int, stop: int, beams: int = 1) -> Tensor:
        """Return what follows each prompt; see `models.decoding.generate`."""


class Task(Protocol):
    """Scores samples one by one, so that engines may batch them as they like; a client's metrics follow from sums."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what is reported with mean, spread and tail, the more the better; the first is the headline."""

    @property
    def columns(self) -> tuple[str, ...]:
        """All that a client's evaluation tells: the metrics and, behind them, what is only listed by client."""

    @property
    def n_scores(self) -> int:
        """Numbers that `score` gives for each sample."""

    def problem(self, targets: Tensor, class_names: Sequence[str]) -> str:
        """Return what is wrong with the targets ("": nothing)."""

    def score(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the scores (B, n_scores) of B samples."""

    def summary(self, totals: Sequence[float], n_samples: int) -> dict[str, float]:
        """Return a client's metrics, by column, from the sums of its samples' scores."""


class Classification:
    """One class for each sample: accuracy and mean cross-entropy."""

    metrics = ("accuracy",)
    columns = ("accuracy", "loss")
    n_scores = 2

    def problem(self, targets: Tensor, class_names: Sequence[str]) -> str:
        """Targets (S,) must be numbers of classes."""
        if not len(targets) or 0 <= int(targets.min()) <= int(targets.max()) < len(class_names):
            return ""
        low, high = int(targets.min()), int(targets.max())
        return f"targets run from {low} to {high}, but there are {len(class_names)} class names (0 … N-1)"

    def score(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """Whether the most likely class is the target, and the cross-entropy; logits that are no numbers are wrong."""
        logits = model(inputs).float()
        losses = F.cross_entropy(logits, targets, reduction="none")
        is_right = (logits.argmax(-1) == targets) & logits.isfinite().all(-1)  # the argmax of NaN would be class 0
        return torch.stack([is_right.float(), losses], dim=-1)

    def summary(self, totals: Sequence[float], n_samples: int) -> dict[str, float]:
        """Means over samples."""
        return {name: total / n_samples for name, total in zip(self.columns, totals, strict=True)}
