"""Labelled texts as int32 tokens (S, T), tokenised once, ever, into a file that all workers map into memory.

Pairs of texts (a question and a sentence) become one sequence, as the tokenizer joins them. A sequence is cut to
`max_length` and padded; how many were cut is among the federation's notes, which the log has.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from fedsim.data.sources.find import SourceOptions, find
from fedsim.data.sources.labelled import Found, Labelled
from fedsim.data.sources.registry import LEFT_OUT, TEXT_SETS, filled
from fedsim.data.sources.tables import Content, Features, list_files, list_hub
from fedsim.storage.cache import cached_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


TaskName = Literal[*TEXT_SETS, "own"]


@dataclass(frozen=True, kw_only=True)
class TextOptions(SourceOptions):
    """Which texts, and how long."""

    task: TaskName = "own"
    """A known data set, which sets the options below and `hub` where they are left out; or your own."""
    text_columns: tuple[str, ...] = ()
    """Columns of text, one or two."""
    max_length: int = 64
    """Tokens of a sequence; longer ones are cut."""

    def resolved(self) -> "TextOptions":
        """Return the options with those of the task wherever one was left out."""
        return replace(self, **filled(vars(self), TEXT_SETS.get(self.task, {})))

    def problems(self) -> list[str]:
        """What is out of range of texts only."""
        if len(self.text_columns) <= 2:
            return []
        return [f"text_columns are {self.text_columns}; one or two can be joined to a sequence"]

    def embedded(self, split: Any) -> Any:
        """Return the embedded texts, split and scored as these."""
        from fedsim.data.builtin.topics import TOPICS, TopicTexts
        from fedsim.data.protocols import Federations

        return Federations(TopicTexts(self.resolved().scoring(len(TOPICS))), split)

    def find(self, model: Any) -> "FoundTexts":
        """Return the listing, to be read by the tokenizer of `model`."""
        return replace(find_texts(self), tokenizer=model.load_tokenizer())


@dataclass(frozen=True)
class FoundTexts(Found):
    """Texts that are there; `tokenise` reads them."""

    options: TextOptions = field(kw_only=True)
    tokenizer: Any = field(default=None, kw_only=True)

    def load(self, dry_run: bool) -> tuple[Labelled, Labelled]:
        """Return both splits as tokens of its own tokenizer; in a dry run without their texts."""
        return self.placeholder(self.tokenizer.pad_token_id) if dry_run else self.tokenise(self.tokenizer)

    def tokenise(self, tokenizer: "PreTrainedTokenizerFast") -> tuple[Labelled, Labelled]:
        """Return the train and the test split, tokens (S, max_length) int32 with the tokenizer's own padding."""
        length, count = self.options.max_length, sum(self.sizes)
        content = f"{self.identity}|{self.options.text_columns}|{length}|"
        tokenizer.backend_tokenizer.no_padding()  # what an earlier call left behind is part of its description
        tokenizer.backend_tokenizer.no_truncation()
        name = hashlib.sha256((content + tokenizer.backend_tokenizer.to_str()).encode()).hexdigest()[:16]
        path = cached_file(
            f"tokens-{name}.int32",
            lambda path: self._tokenise_all(tokenizer, path),
            lambda path: path.stat().st_size == (count * length + 1) * 4,
        )
        numbers = torch.from_file(str(path), size=count * length + 1, dtype=torch.int32)
        tokens = numbers[:-1].view(count, length)
        return self._presented(tokens, tokenizer.pad_token_id, notes={"texts": count, "texts_cut": int(numbers[-1])})

    def placeholder(self, pad_token: int) -> tuple[Labelled, Labelled]:
        """Return both splits with their labels and one token repeated to the full length: all that counting takes."""
        word = 1 if pad_token == 0 else 0
        tokens = torch.full((sum(self.sizes), self.options.max_length), word, dtype=torch.int32)
        return self._presented(tokens, pad_token)

    def _presented(self, tokens: torch.Tensor, pad_token: int, **notes: Any) -> tuple[Labelled, Labelled]:
        return self.labelled(tokens, pad_token=pad_token, **notes, **self.options.scoring(self.n_classes))

    def _tokenise_all(self, tokenizer: "PreTrainedTokenizerFast", path: Path) -> None:
        """A thousand texts at a time, so that memory stays flat; the file's last number is how many were cut."""
        texts, n_cut = (text for _, text in self.read()), 0
        with path.open("wb") as file:
            while chunk := list(islice(texts, 1000)):
                parts = [list(part) for part in zip(*chunk, strict=True)]
                found = tokenizer(*parts, truncation=True, max_length=self.options.max_length, padding="max_length")
                file.write(np.asarray(found.input_ids, np.int32).tobytes())
                n_cut += sum(bool(encoding.overflowing) for encoding in found.encodings)
            file.write(np.int32(n_cut).tobytes())


def find_texts(options: TextOptions) -> FoundTexts:
    """Return the data set's listing; nothing is tokenised yet. Raises ValueError as `find_images` does."""
    options = options.resolved()
    content = partial(text_content, options.text_columns)

    found = find(options, "texts", partial(list_files, options, content), partial(list_hub, options, content))
    return FoundTexts(**vars(found), options=options)


def text_content(columns: Sequence[str], features: Features, source: str) -> Content:
    """These columns of text; an empty entry is an empty text.

    Of two columns without the name that is looked for, the texts are the only one of words beside the label.
    """
    if tuple(columns) == LEFT_OUT["text_columns"] and columns[0] not in features and len(features) <= 2:
        is_text = {name: getattr(kind, "dtype", "") in ("string", "large_string") for name, kind in features.items()}
        words = [name for name in features if is_text[name] and name != LEFT_OUT["label_column"]]
        columns = words if len(words) == 1 else columns
    if absent := [name for name in columns if name not in features]:
        raise ValueError(f"'{source}' has no columns {absent} (--data.text-columns); it has {sorted(features)}.")
    return Content(tuple(columns), lambda record, _: tuple(map(_text, map(record.get, columns))))


def _text(entry: object) -> str:
    return "" if entry is None else str(entry)
