"""Federations of the tables: real data, dealt once more where a table tests on other samples than clients' own."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fedsim.data.federated import FederatedData
from fedsim.data.protocols import Federations
from fedsim.data.sources.labelled import Labelled
from fedsim.randomness import numpy_generator
from fedsim.run_spec import RunSpec

Splits = tuple[Labelled, Labelled]


@dataclass(frozen=True)
class Dealt:
    """Data and a model that fit, and the federation of each seed; see `Setting` for `test` and `per_class`."""

    data: Any
    model: Any
    test: str = "own"
    per_class: tuple[int, int] | None = None

    @cached_property
    def found(self) -> Any:
        """The federations of the data, with their samples moved where that is asked for."""
        found = self.data.federations(self.model)
        return Federations(Moved(found.found, *self.per_class), found.split) if self.per_class else found

    @cached_property
    def backbone(self) -> nn.Module:
        """The backbone."""
        found = self.found
        return self.model.backbone(replace(found, found=found.found.inner) if self.per_class else found)

    def federation(self, seed: int) -> FederatedData:
        """Return the federation of a seed."""
        data = self.found.federation(numpy_generator(seed, "data"))
        if self.test == "own":
            return data
        n_tests = len(self.found.splits[1].targets)
        rows = torch.arange(len(data.inputs) - n_tests, len(data.inputs))  # the test samples are the last
        order = torch.from_numpy(numpy_generator(seed, "dealt").permutation(n_tests))
        tables = rows[order].tensor_split(data.n_clients - (data.proxy is not None))
        return replace(data, test=[*tables, *data.test[len(tables) :]])


@dataclass(frozen=True)
class Moved:
    """Samples of which so many of each class train and test; tests that are missing are the last training samples."""

    inner: Any
    n_train: int
    n_test: int

    def load(self, dry_run: bool) -> Splits:
        """Return both splits; raises ValueError where a class has too few samples."""
        train, test = self.inner.load(dry_run)
        kept, moved, tested = [], [], []
        for label in range(len(train.class_names)):
            mine, theirs = ((part.targets == label).nonzero().flatten() for part in (train, test))
            missing = max(0, self.n_test - len(theirs))
            if self.n_train + missing > len(mine):
                raise ValueError(
                    f"Class '{train.class_names[label]}' has {len(mine)} and {len(theirs)} samples; "
                    f"{self.n_train} to train on and {self.n_test} to test on were asked for."
                )
            kept.append(mine[: self.n_train])
            moved.append(mine[len(mine) - missing :])
            tested.append(theirs[: self.n_test - missing])
        both = _joined(_taken(test, torch.cat(tested)), _taken(train, torch.cat(moved)))
        return _taken(train, torch.cat(kept)), both


def _taken(part: Labelled, rows: torch.Tensor) -> Labelled:
    domains = None if part.domains is None else part.domains[rows]
    return replace(part, inputs=part.inputs[rows], targets=part.targets[rows], domains=domains)


def _joined(one: Labelled, other: Labelled) -> Labelled:
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in ("inputs", "targets", "domains")}
    return replace(one, **{name: None if a is None else torch.cat((a, b)) for name, (a, b) in pairs.items()})


def loaded_hash(fields: Mapping[str, Any]) -> str:
    """Return a hash over the data and the backbone of a run."""
    text = json.dumps(RunSpec(**fields).fingerprint(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
