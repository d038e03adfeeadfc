"""A grid over a few hyper-parameters, the same number of trials for every method, chosen on validation rows."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import torch

from fedsim.data.federated import FederatedData
from fedsim.options import LocalTraining
from fedsim.plan import Method
from fedsim.randomness import generator

VALIDATION_SHARE = 0.2
"""Share of every client's training rows on which the trials of a grid are scored."""
LOCAL = "local."


@dataclass(frozen=True)
class Grid:
    """A method and values to try for some of its fields, or of local training's under `local.<field>`.

    `Grid(HiLoRA(), {"local.learning_rate": (1e-3, 3e-3), "clustering.k_min": (2, 4)})` are four trials.
    """

    method: Method
    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class Trial(NamedTuple):
    """One point of a grid: the values chosen, and the method and local training that they make."""

    values: Mapping[str, Any]
    method: Method
    local: LocalTraining


def trials_of(entry: Method | Grid, local: LocalTraining) -> list[Trial]:
    """Return all points of a grid, the last name changing fastest; of a method as it stands, the one there is.

    Raises ValueError for a name that is no field, and for one without values.
    """
    if not isinstance(entry, Grid):
        return [Trial({}, entry, local)]
    if empty := [name for name, values in entry.values.items() if not len(values)]:
        raise ValueError(f"The grid of {type(entry.method).__name__} has no values for {', '.join(empty)}.")
    points = [dict(zip(entry.values, point, strict=True)) for point in product(*entry.values.values())]
    return [_trial(entry.method, local, point) for point in points]


def check_equal_trials(trials: Mapping[str, Sequence[Trial]]) -> None:
    """Raise ValueError unless every method has as many trials as every other."""
    counts = {name: len(of_method) for name, of_method in trials.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise ValueError(f"Every method must have the same number of trials, lest one be tuned better: {listed}.")


def with_validation(data: FederatedData, share: float, seed: int) -> FederatedData:
    """Return data in which seen clients test on `share` of their own training rows and train on the others.

    No test row is left in it, and unseen clients have no rows at all. A client with a single row keeps it for training.
    Raises ValueError where no client has two.
    """
    if not 0 < share < 1:
        raise ValueError(f"validation_share is {share}; it must lie between 0 and 1.")
    train, test = [], []
    for client, rows in enumerate(data.train):
        if client == data.proxy:
            train.append(rows)
            test.append(data.test[client])
            continue
        rows = rows[:0] if client in data.unseen else rows
        held = min(max(1, round(share * len(rows))), max(len(rows) - 1, 0))
        order = torch.randperm(len(rows), generator=generator(seed, "validation", client=client))
        test.append(rows[order[:held].sort().values])
        train.append(rows[order[held:].sort().values])
    if not any(len(rows) for client, rows in enumerate(test) if client != data.proxy):
        raise ValueError(
            "No client that takes part has two training samples, so nothing can be tuned on validation rows."
        )
    return dataclasses.replace(data, train=train, test=test)


def _trial(method: Method, local: LocalTraining, values: Mapping[str, Any]) -> Trial:
    own, of_local = method, local
    for name, value in values.items():
        if name.startswith(LOCAL):
            of_local = changed(of_local, name.removeprefix(LOCAL), value)
        else:
            own = changed(own, name, value)
    return Trial(values, own, of_local)


def changed(options: Any, path: str, value: Any) -> Any:
    """Return a dataclass with the field at a path, such as `clustering.k_min`, changed."""
    names = [known.name for known in dataclasses.fields(options)] if dataclasses.is_dataclass(options) else []
    name, _, inside = path.partition(".")
    if name not in names:
        raise ValueError(f"The grid names '{name}'; {type(options).__name__} has the fields {', '.join(names)}.")
    return dataclasses.replace(options, **{name: changed(getattr(options, name), inside, value) if inside else value})
