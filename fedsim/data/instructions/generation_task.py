"""Scores of what a language model writes: ROUGE and exact match of its answers, loss and perplexity of true ones."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.data.task import Model
from fedsim.options import IGNORED


@dataclass(frozen=True)
class Generation:
    """Answers to prompts. Inputs (B, T) hold a prompt and its answer, targets (B, T) the tokens of the answer, each at
    the place of the token before it, the `stop` token last; `decode` turns tokens into text.

    Metrics are means over samples: the F-measures of ROUGE-1 and ROUGE-L (Lin, 2004; lower case, without stemming) and
    whether the texts are equal. The loss is the mean over all tokens of a client's answers, and perplexity its
    exponential. An answer that was cut when the data were made is compared as it was cut.
    """

    decode: Callable[[Sequence[int]], str]
    stop: int
    max_new_tokens: int = 64
    beams: int = 1

    metrics = ("rouge1", "rougeL", "exact_match")
    columns = (*metrics, "loss", "perplexity")
    pooled = ()
    n_scores = 5

    def problem(self, targets: Tensor, class_names: Sequence[str]) -> str:
        """Every sample must have an answer."""
        if targets.ndim != 2:
            return f"targets have the shape {tuple(targets.shape)}; they must be tokens (S, T)"
        empty = int((targets == IGNORED).all(1).sum())
        return f"{empty} samples have no answer" if empty else ""

    def score(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """The metrics, the summed cross-entropy of the answer's tokens, and their number."""
        logits = model(inputs).float()
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED)
        is_answer, truths = targets != IGNORED, targets.tolist()  # at once: a host waits for a GPU every time
        lengths = is_answer.int().argmax(1) + 1  # the first token of the answer is the target of the prompt's last
        longest = max(next((at for at, token in enumerate(truth, 1) if token != IGNORED), 1) for truth in truths)
        written = model.generate(inputs[:, :longest], lengths, self.max_new_tokens, self.stop, self.beams)
        pairs = [
            (self.text(answer), self.text([token for token in truth if token != IGNORED]))
            for answer, truth in zip(written.tolist(), truths, strict=True)
        ]
        metrics = torch.tensor([text_overlap(*pair) for pair in pairs], device=inputs.device)
        sums = torch.stack([losses.view(targets.shape).sum(1), is_answer.sum(1).float()], dim=1)
        return torch.cat([metrics, sums], dim=1)

    def summary(self, totals: Sequence[float], n_samples: int) -> dict[str, float]:
        """Means over samples, but for the loss over tokens."""
        *metrics, losses, tokens = totals
        loss = losses / tokens
        means = {name: total / n_samples for name, total in zip(self.metrics, metrics, strict=True)}
        return means | {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def pool(self, summaries: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Nothing."""
        return {}

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text before the first stop."""
        tokens = list(tokens)
        return self.decode(tokens[: tokens.index(self.stop)] if self.stop in tokens else tokens).strip()


def text_overlap(answer: str, truth: str) -> tuple[float, float, float]:
    """Return the F-measures of ROUGE-1 and ROUGE-L, and whether the texts are equal."""
    from torchmetrics.functional.text import rouge_score

    scores = rouge_score(answer, truth, rouge_keys=("rouge1", "rougeL"))
    return float(scores["rouge1_fmeasure"]), float(scores["rougeL_fmeasure"]), float(answer == truth)
