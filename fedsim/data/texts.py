"""Labelled texts as int32 tokens (S, T), tokenised once, ever, into a file that all workers map into memory.

Pairs of texts (a question and a sentence) become one sequence, as the tokenizer joins them. A sequence is cut to
`max_length` and padded; how many were cut is said by `describe`.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from fedsim.cache import made_once
from fedsim.data.known import TEXT_SETS, filled
from fedsim.data.labelled import Found, Labelled
from fedsim.data.listing import Listed
from fedsim.data.sources import SourceOptions, find
from fedsim.data.tables import list_hub, list_own_files, list_parquet, text_content
from fedsim.data.text_files import OWN_FILES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


TaskName = Literal[
    "20newsgroups",
    "agnews",
    "cola",
    "dbpedia",
    "imdb",
    "ledgar",
    "mnli",
    "mrpc",
    "qnli",
    "qqp",
    "rte",
    "sst2",
    "trec",
    "yahoo",
    "own",
]
LEFT_OUT = {"text_columns": ("text",), "label_column": "label", "test_split": "test", "f1": False}
"""What options are where neither they are given nor a known data set."""


@dataclass(frozen=True, kw_only=True)
class TextOptions(SourceOptions):
    """Which texts, and how long."""

    task: TaskName = "own"
    """A known data set, which sets the options below and `hub` where they are left out; or your own."""
    text_columns: tuple[str, ...] = ()
    """Columns of text, one or two."""
    label_column: str = ""
    """Column of class labels; of your own data `label`."""
    test_split: str | None = None
    """Name of the test split; empty to hold out `test_share` of the training split; of your own data `test`."""
    max_length: int = 64
    """Tokens of a sequence; longer ones are cut."""

    def resolved(self) -> "TextOptions":
        """Return the options with those of the task wherever one was left out."""
        known = TEXT_SETS[self.task].options if self.task in TEXT_SETS else {}
        return replace(self, **filled(vars(self), known, LEFT_OUT))

    def problems(self) -> list[str]:
        """What is out of range."""
        problems = super().problems()
        if self.max_length < 4:
            problems.append(f"max_length is {self.max_length}; it must be 4 or more")
        if len(self.text_columns) > 2:
            problems.append(f"text_columns are {self.text_columns}; one or two can be joined to a sequence")
        return problems


@dataclass(frozen=True)
class FoundTexts(Found):
    """Texts that are there; `tokenise` reads them."""

    options: TextOptions

    def tokenise(self, tokenizer: "PreTrainedTokenizerFast") -> tuple[Labelled, Labelled]:
        """Return the train and the test split, tokens (S, max_length) int32 with the tokenizer's own padding."""
        length, count = self.options.max_length, sum(self.sizes)
        content = f"{self.train.identity}|{self.test.identity}|{self.options.text_columns}|{length}|"
        tokenizer.backend_tokenizer.no_padding()  # what an earlier call left behind is part of its description
        tokenizer.backend_tokenizer.no_truncation()
        name = hashlib.sha256((content + tokenizer.backend_tokenizer.to_str()).encode()).hexdigest()[:16]
        path = made_once(
            f"tokens-{name}.int32",
            lambda path: self._tokenise_all(tokenizer, path),
            lambda path: path.stat().st_size == count * length * 4,
        )
        tokens = torch.from_file(str(path), size=count * length, dtype=torch.int32).view(count, length)
        return self._presented(tokens, tokenizer.pad_token_id)

    def unread(self, pad_token: int) -> tuple[Labelled, Labelled]:
        """Return both splits with their labels and one token repeated to the full length: all that counting takes."""
        word = 1 if pad_token == 0 else 0
        tokens = torch.full((sum(self.sizes), self.options.max_length), word, dtype=torch.int32)
        return self._presented(tokens, pad_token)

    def _presented(self, tokens: torch.Tensor, pad_token: int) -> tuple[Labelled, Labelled]:
        return self.labelled(tokens, pad_token=pad_token, **self.options.scoring(self.n_classes))

    def _tokenise_all(self, tokenizer: "PreTrainedTokenizerFast", path: Path) -> None:
        """A thousand texts at a time, so that memory stays flat."""
        texts = (text for _, text in self.read())
        with path.open("wb") as file:
            while chunk := list(islice(texts, 1000)):
                parts = [list(part) for part in zip(*chunk, strict=True)]
                ids = tokenizer(
                    *parts, truncation=True, max_length=self.options.max_length, padding="max_length"
                ).input_ids
                file.write(np.asarray(ids, np.int32).tobytes())


def find_texts(options: TextOptions) -> FoundTexts:
    """Return the data set's listing; nothing is tokenised yet. Raises ValueError as `find_images` does."""
    options = options.resolved()
    content = partial(text_content, options.text_columns)

    def list_folder(folder: Path) -> Listed:
        if any(folder.rglob("*.parquet")):
            return list_parquet(options, folder, content)
        if options.task in OWN_FILES:
            return list_own_files(options, OWN_FILES[options.task], folder, content)
        raise ValueError(f"'{folder}' holds no parquet files (--data.path).")

    listed = find(options, "texts", list_folder, partial(list_hub, options, content))
    assert listed.test is not None
    return FoundTexts(listed.train, listed.test, listed.class_names, listed.group_names, options)
