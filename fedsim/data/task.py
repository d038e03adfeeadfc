"""What a client's model is asked, and how its answers are scored: the one place that names metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        """Return a client's metrics, by column, from the sums of its samples' scores, and what `pool` needs of it."""

    @property
    def pooled(self) -> tuple[str, ...]:
        """Names of what `pool` tells; none where clients' own metrics say all."""

    def pool(self, summaries: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Return metrics of these clients' samples taken together, from their summaries, in whatever order."""


class Classification:
    """One class for each sample: accuracy and mean cross-entropy."""

    metrics = ("accuracy",)
    columns = ("accuracy", "loss")
    pooled = ()

    @property
    def n_scores(self) -> int:
        """Two: right or wrong, and the loss."""
        return 2

    def problem(self, targets: Tensor, class_names: Sequence[str]) -> str:
        """Targets (S,) must be numbers of classes."""
        if targets.is_floating_point():
            return f"targets are {targets.dtype}; they must be whole numbers, 0 … N-1"
        if not len(targets) or 0 <= int(targets.min()) <= int(targets.max()) < len(class_names):
            return ""
        low, high = int(targets.min()), int(targets.max())
        return f"targets run from {low} to {high}, but there are {len(class_names)} class names (0 … N-1)"

    def score(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """Whether the most likely class is the target, and the cross-entropy; logits that are no numbers are wrong."""
        logits = model(inputs).float()
        is_right = (logits.argmax(-1) == targets) & logits.isfinite().all(-1)  # the argmax of NaN would be class 0
        return torch.stack([is_right.float(), F.cross_entropy(logits, targets, reduction="none")], dim=-1)

    def summary(self, totals: Sequence[float], n_samples: int) -> dict[str, float]:
        """Means over samples."""
        right, loss = totals
        return {"accuracy": right / n_samples, "loss": loss / n_samples}

    def pool(self, summaries: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Nothing."""
        return {}


COUNTS = ("hits", "targets", "predictions")
"""What is counted for every class: both together, the target, the prediction."""


@dataclass(frozen=True)
class ClassificationF1(Classification):
    """Classification that also tells F1, of N = `n_classes` classes: 2 · hits / (targets + predictions) of a class.

    Macro F1 is its mean over the classes that occur among a client's test targets or predictions, which is
    scikit-learn's `f1_score(average="macro")`. Micro F1 of samples with one class each is accuracy, so a client has no
    column for it. `pool` adds up the counts of all clients first, as if the server tested one model on all their
    samples: such a macro F1 is not the mean of the clients' own.
    """

    n_classes: int

    metrics = ("accuracy", "macro_f1")
    columns = (*metrics, "loss")
    pooled = ("macro_f1", "micro_f1")

    def problem(self, targets: Tensor, class_names: Sequence[str]) -> str:
        """As in `Classification`; the classes must also be so many."""
        if len(class_names) != self.n_classes:
            return f"F1 is asked for of {self.n_classes} classes, but there are {len(class_names)} class names"
        return super().problem(targets, class_names)

    @property
    def n_scores(self) -> int:
        """Three more for every class."""
        return 2 + len(COUNTS) * self.n_classes

    def score(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """As in `Classification`, then what each class counts; logits that are no numbers predict nothing."""
        logits = model(inputs).float()
        truth, predicted = (F.one_hot(labels, self.n_classes).float() for labels in (targets, logits.argmax(-1)))
        predicted *= logits.isfinite().all(-1, keepdim=True)
        return torch.cat(
            [super().score(lambda _: logits, inputs, targets), truth * predicted, truth, predicted], dim=-1
        )

    def summary(self, totals: Sequence[float], n_samples: int) -> dict[str, float]:
        """Means over samples, macro F1, and counts that are not zero as `hits.3`: a client knows few of the classes."""
        n, counts = self.n_classes, totals[2:]
        by_kind = {kind: counts[k * n : (k + 1) * n] for k, kind in enumerate(COUNTS)}
        found = {f"{kind}.{label}": x for kind, each in by_kind.items() for label, x in enumerate(each) if x}
        return super().summary(totals[:2], n_samples) | {"macro_f1": _f1(found)[0]} | found

    def pool(self, summaries: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Macro and micro F1 of all samples; nothing without samples."""
        keys = {key for summary in summaries for key in summary if key.partition(".")[0] in COUNTS}
        found = {key: sum(summary.get(key, 0.0) for summary in summaries) for key in sorted(keys)}
        return dict(zip(self.pooled, _f1(found), strict=True)) if found else {}


def _f1(counts: Mapping[str, float]) -> tuple[float, float]:
    """Macro and micro F1 from counts named as in `ClassificationF1.summary`."""
    labels = sorted({int(key.partition(".")[2]) for key in counts})
    hits, targets, predictions = ([counts.get(f"{kind}.{label}", 0.0) for label in labels] for kind in COUNTS)
    each = [2 * h / (t + p) for h, t, p in zip(hits, targets, predictions, strict=True)]
    return sum(each) / len(each), 2 * sum(hits) / (sum(targets) + sum(predictions))
