"""Labelled samples as tensors, one split of a data set at a time; splitting over clients is done in protocols.py."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.sources.listing import Item, Listed, Listing


@dataclass(frozen=True)
class Labelled:
    """One split: inputs (S, ...), targets (S,), domain numbers (S,) or None, and what the numbers mean.

    `presented` are the fields of `FederatedData` that say how a backbone gets such inputs.
    """

    inputs: Tensor
    targets: Tensor
    class_names: tuple[str, ...]
    domains: Tensor | None = None
    domain_names: tuple[str, ...] = ()
    presented: Mapping[str, Any] = field(default_factory=dict)


class Found(Listed):
    """A data set that is there, its labels read, its classes chosen and a test split held out."""

    @property
    def n_classes(self) -> int:
        """N."""
        return len(self.class_names)

    @property
    def splits(self) -> tuple[Listing, Listing]:
        """Those for training and for testing."""
        assert self.test is not None
        return self.train, self.test

    @property
    def sizes(self) -> tuple[int, int]:
        """Samples for training and for testing."""
        train, test = self.splits
        return len(train.targets), len(test.targets)

    @property
    def identity(self) -> str:
        """What differs where samples differ."""
        return "|".join(split.identity for split in self.splits)

    def labelled(self, inputs: Tensor, **presented: Any) -> tuple[Labelled, Labelled]:
        """Return both splits with their inputs (S, ...), those for training first."""
        notes, found = {**presented.pop("notes", {}), **self.notes}, []
        presented |= {"notes": notes} if notes else {}
        for split, part in zip(self.splits, inputs.split(self.sizes), strict=True):
            targets, domains = torch.from_numpy(split.targets), split.domains
            numbers = None if domains is None else torch.from_numpy(domains)
            found.append(Labelled(part, targets, self.class_names, numbers, self.domain_names, presented))
        return found[0], found[1]

    def read(self) -> Iterator[tuple[str, Item]]:
        """Yield (what to call it in a message, sample) of both splits, those for training first."""
        for split in self.splits:
            yield from split.read(np.arange(len(split.targets)))


def joined(train: Labelled, test: Labelled) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of both splits; inputs that lie side by side in memory, as read, are not copied."""
    first, second = train.inputs, test.inputs
    targets = torch.cat((train.targets, test.targets))
    is_adjacent = first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    if is_adjacent and first.is_contiguous() and second.data_ptr() == first.data_ptr() + first.nbytes:
        return first.as_strided((len(targets), *first.shape[1:]), first.stride()), targets
    return torch.cat((first, second)), targets
