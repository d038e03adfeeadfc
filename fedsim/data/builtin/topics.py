"""The embedded texts: sequences of made-up words about four topics, for trying a recipe anywhere.

A word is one of its topic's own sixteen with a chance of one in five, else one that all topics use. Words are tokens;
there is nothing to tokenise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fedsim.data.sources.labelled import Labelled

TOPICS = ("animals", "music", "sports", "weather")
PAD, BEGIN, END, FIRST = 0, 1, 2, 3
OWN, COMMON = 16, 120
VOCABULARY = FIRST + COMMON + OWN * len(TOPICS)
SHORTEST, LONGEST = 6, 20
SIZES = (800, 200)
SEED = 0


@dataclass(frozen=True)
class TopicTexts:
    """The embedded texts as what was found; `scoring` are the fields of `FederatedData` on how clients are scored."""

    scoring: Mapping[str, Any]
    n_classes, n_tokens, pad_token = len(TOPICS), VOCABULARY, PAD

    def load(self, dry_run: bool) -> tuple[Labelled, Labelled]:
        """Return both splits."""
        train, test = (replace(part, presented={**part.presented, **self.scoring}) for part in topic_texts())
        return train, test


def topic_texts() -> tuple[Labelled, Labelled]:
    """Return a train and a test split, tokens (S, 22) int32 with begin, end and padding; always the same ones."""
    rng = np.random.default_rng(SEED)
    train, test = (_split(size, rng) for size in SIZES)
    return train, test


def _split(size: int, rng: np.random.Generator) -> Labelled:
    targets, lengths = rng.integers(len(TOPICS), size=size), rng.integers(SHORTEST, LONGEST + 1, size=size)
    words = np.where(
        rng.random((size, LONGEST)) < 0.2,
        FIRST + COMMON + targets[:, None] * OWN + rng.integers(OWN, size=(size, LONGEST)),
        FIRST + rng.integers(COMMON, size=(size, LONGEST)),
    )
    places = np.arange(LONGEST)
    words[places > lengths[:, None]] = PAD
    words[places == lengths[:, None]] = END
    tokens = np.concatenate((np.full((size, 1), BEGIN), words, np.full((size, 1), PAD)), axis=1)
    tokens[lengths == LONGEST, -1] = END
    return Labelled(
        torch.from_numpy(tokens.astype(np.int32)), torch.from_numpy(targets), TOPICS, presented={"pad_token": PAD}
    )
