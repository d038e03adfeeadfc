"""Every client's data as two index tables (train, test) over one resident tensor of inputs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


def as_float(inputs: Tensor) -> Tensor:
    """Return uint8 images scaled to [0, 1] and anything else unchanged."""
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs


@dataclass(frozen=True)
class FederatedData:
    """Inputs (S, ...) and class targets (S,) of all clients, and which rows each client trains and tests on.

    `transform` turns a batch of raw inputs into what the backbone takes; `augment` does the same for training batches
    and draws from the client's own generator. Raises ValueError when the tables do not fit the tensors.
    """

    inputs: Tensor
    targets: Tensor
    train: Sequence[Tensor]
    test: Sequence[Tensor]
    class_names: Sequence[str]
    unseen: frozenset[int] = frozenset()
    groups: tuple[int, ...] | None = None
    group_names: tuple[str, ...] = ()
    transform: Callable[[Tensor], Tensor] = as_float
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = field(default=None)

    def __post_init__(self) -> None:
        problems = []
        if len(self.inputs) != len(self.targets):
            problems.append(f"{len(self.inputs)} inputs have {len(self.targets)} targets")
        if len(self.train) != len(self.test) or not self.train:
            problems.append(f"{len(self.train)} clients have train tables and {len(self.test)} have test tables")
        if len(self.targets) and not 0 <= int(self.targets.min()) <= int(self.targets.max()) < self.n_classes:
            low, high = int(self.targets.min()), int(self.targets.max())
            problems.append(f"targets run from {low} to {high}, but there are {self.n_classes} class names (0 … N-1)")
        if self.unseen and not self.unseen < set(range(len(self.train))):
            problems.append(
                f"unseen clients {sorted(self.unseen)} must leave at least one of {len(self.train)} clients"
            )
        if self.groups is not None and len(self.groups) != len(self.train):
            problems.append(f"{len(self.groups)} group numbers for {len(self.train)} clients")
        if any(len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self.inputs) for rows in self.tables):
            problems.append(f"an index table points outside the {len(self.inputs)} inputs")
        if problems:
            raise ValueError("The data do not fit together: " + "; ".join(problems) + ".")

    @property
    def tables(self) -> list[Tensor]:
        """All index tables."""
        return [*self.train, *self.test]

    @property
    def n_classes(self) -> int:
        """N."""
        return len(self.class_names)

    @property
    def n_clients(self) -> int:
        """C, seen and unseen."""
        return len(self.train)

    def train_size(self, client: int) -> int:
        """Training samples of a client."""
        return len(self.train[client])

    def train_batches(
        self, client: int, batch_size: int, steps: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `steps` batches, reshuffled every epoch; the last batch of an epoch may be smaller."""
        rows, done = self.train[client], 0
        while done < steps and len(rows):
            order = rows[torch.randperm(len(rows), generator=generator)]
            for start in range(0, len(rows), batch_size):
                if done == steps:
                    return
                batch = order[start : start + batch_size]
                raw = self.inputs[batch]
                yield self.augment(raw, generator) if self.augment else self.transform(raw), self.targets[batch]
                done += 1

    def test_batches(self, client: int, batch_size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the client's test split in order."""
        rows = self.test[client]
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            yield self.transform(self.inputs[batch]), self.targets[batch]


def from_tensors(
    inputs: Tensor,
    targets: Tensor,
    client_of_sample: Tensor,
    *,
    test_fraction: float = 0.25,
    unseen: Sequence[int] = (),
) -> FederatedData:
    """Split your own tensors: sample s belongs to client `client_of_sample[s]`; every client keeps a share for testing.

    The split is by position: each client's last `test_fraction` of samples (rounded) are its test split.
    """
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}; it must lie in [0, 1).")
    if len(client_of_sample) != len(inputs):
        raise ValueError(f"client_of_sample has {len(client_of_sample)} entries for {len(inputs)} inputs.")
    train, test = [], []
    for client in range(int(client_of_sample.max()) + 1):
        rows = (client_of_sample == client).nonzero().flatten()
        n_train = len(rows) - round(test_fraction * len(rows))
        train.append(rows[:n_train])
        test.append(rows[n_train:])
    names = [str(label) for label in range(int(targets.max()) + 1)]
    return FederatedData(inputs, targets, train, test, names, unseen=frozenset(unseen))
