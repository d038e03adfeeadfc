"""Instructions and answers as samples of a federation of clients that learn to answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedsim.data.federated import FederatedData
from fedsim.data.instructions.generation_task import Generation
from fedsim.data.instructions.prompts import TEMPLATES, TemplateName, Tokenizer, tokens_of


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How instructions are put to the model, and how it answers."""

    template: TemplateName = "alpaca-short"
    """The wording of a prompt."""
    max_length: int = 512
    """Tokens that prompt and answer may take together when a model reads them."""
    max_new_tokens: int = 80
    """Tokens that an answer may take when a model writes it."""
    beams: int = 1
    """Beams of the search for an answer; 1 for greedy."""


@dataclass(frozen=True)
class Texts:
    """Samples (S,): texts, the number of each one's kind of task, and its client and split where they are known."""

    instructions: Sequence[str]
    inputs: Sequence[str]
    answers: Sequence[str]
    task: np.ndarray
    task_names: tuple[str, ...]
    client: np.ndarray | None
    is_test: np.ndarray | None
    n_without_answer: int


def federation(
    wording: Wording,
    texts: Texts,
    tokenizer: Tokenizer,
    train: Sequence[np.ndarray],
    test: Sequence[np.ndarray],
    **clients: Any,
) -> FederatedData:
    """Return the federation of clients that train and test on these rows of the texts; only they are tokenised."""
    kept, places = np.unique(np.concatenate([*train, *test]), return_inverse=True)
    template = TEMPLATES[wording.template]
    prompts = [template.prompt(texts.instructions[row], texts.inputs[row]) for row in kept]
    tokens = tokens_of(prompts, [texts.answers[row] for row in kept], tokenizer, wording.max_length)
    tables = torch.from_numpy(places).split([len(rows) for rows in (*train, *test)])
    return FederatedData(
        inputs=tokens.inputs,
        targets=tokens.targets,
        train=tables[: len(train)],
        test=tables[len(train) :],
        class_names=(),
        domain_names=texts.task_names,
        pad_token=tokenizer.stop,
        task=Generation(tokenizer.decode, tokenizer.stop, wording.max_new_tokens, wording.beams),
        notes=tokens.notes | {"samples_without_answer": texts.n_without_answer},
        **clients,
    )
