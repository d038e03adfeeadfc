"""From instructions and answers to tokens: the prompt's wording, and the answer's tokens marked as what is learnt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from fedsim.options import IGNORED


class Tokenizer(Protocol):
    """Text to tokens and back; `start` begins a prompt (None: nothing does), `stop` ends an answer."""

    @property
    def start(self) -> int | None:
        """The token that begins a text."""

    @property
    def stop(self) -> int:
        """The token that ends one."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's tokens, without start and stop."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""


class ByteTokenizer:
    """UTF-8 bytes as tokens 0 … 255, so that no vocabulary is needed."""

    start, stop, n_tokens = 256, 257, 258

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's bytes."""
        return [list(text.encode()) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of bytes; what is none is left out."""
        return bytes(token for token in tokens if token < 256).decode(errors="ignore")


@dataclass(frozen=True)
class Template:
    """The wording of a prompt, with and without an input beside the instruction."""

    with_input: str
    without_input: str

    def prompt(self, instruction: str, text: str) -> str:
        """Return what the model reads before it answers."""
        wording = self.with_input if text else self.without_input
        return wording.format(instruction=instruction, input=text)


TemplateName = Literal["alpaca", "alpaca-short", "plain"]
SHORT = Template(
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    "### Instruction:\n{instruction}\n\n### Response:\n",
)
TEMPLATES: dict[TemplateName, Template] = {
    "alpaca": Template(
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        f"Write a response that appropriately completes the request.\n\n{SHORT.with_input}",
        "Below is an instruction that describes a task. "
        f"Write a response that appropriately completes the request.\n\n{SHORT.without_input}",
    ),
    "alpaca-short": SHORT,
    "plain": Template("{instruction}\n{input}\n", "{instruction}\n"),
}
"""Stanford Alpaca's prompt, the same without its preface (as in Alpaca-LoRA's `alpaca_short`), and none."""


@dataclass(frozen=True)
class Tokens:
    """Inputs and targets (S, T) int32, and what the log says of them: how many were cut, how much is padding."""

    inputs: Tensor
    targets: Tensor
    notes: Mapping[str, float]


def tokens_of(prompts: Sequence[str], answers: Sequence[str], tokenizer: Tokenizer, max_length: int) -> Tokens:
    """Return prompts with their answers as at most `max_length` tokens, padded on the right with the stop token.

    An answer, its stop included, has half of the room and what its prompt leaves, and loses its end; a prompt has the
    rest, and loses its beginning, so that what stands just before the answer stays. `targets[s, t]` is the token after
    `inputs[s, t]` where that belongs to the answer, else `IGNORED`. The stop is only a target, so it may pad inputs.
    """
    if max_length < 4:
        raise ValueError(f"max_length is {max_length}; it must be 4 or more (--data.max-length).")
    start = [] if tokenizer.start is None else [tokenizer.start]
    rows, sizes, prompts_cut, answers_cut = [], [], 0, 0
    for prompt, answer in zip(tokenizer.encode(prompts), tokenizer.encode(answers), strict=True):
        answer = [*answer, tokenizer.stop]
        room = max(max_length // 2, max_length + 1 - len(start) - max(len(prompt), 1))
        answers_cut += len(answer) > room
        answer = answer[:room]
        room = max_length + 1 - len(start) - len(answer)
        prompts_cut += len(prompt) > room
        prompt = [*start, *prompt[max(len(prompt) - room, 0) :]]
        if not prompt:
            raise ValueError("A prompt has no token, and the tokenizer none to begin with; name another template.")
        rows.append(prompt + answer)
        sizes.append(len(prompt))
    longest = max(map(len, rows), default=1) - 1
    inputs = torch.full((len(rows), longest), tokenizer.stop, dtype=torch.int32)
    targets = torch.full_like(inputs, IGNORED)
    for place, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        inputs[place, : len(row) - 1] = torch.tensor(row[:-1], dtype=torch.int32)
        targets[place, size - 1 : len(row) - 1] = torch.tensor(row[size:], dtype=torch.int32)
    padding = inputs.numel() - sum(len(row) - 1 for row in rows)
    notes = {"samples": len(rows), "longest": longest, "prompts_cut": prompts_cut, "answers_cut": answers_cut}
    shares = {"tokens": inputs.numel() - padding, "padding_share": padding / max(inputs.numel(), 1)}
    return Tokens(inputs, targets, notes | shares)
