"""Every client's data as two index tables (train, test) over one resident tensor of inputs.

A local step is a choice of rows and of random numbers (`train_steps`, cheap, per client); turning rows into what the
backbone takes (`batch`) is one operation on the device for as many clients as one likes. No loader processes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.index_tables import IndexTables
from fedsim.data.task import Classification, Task
from fedsim.options import IGNORED

Samples = Tensor | np.ndarray | Sequence[Any]
"""Something for every sample."""


def as_float(inputs: Tensor) -> Tensor:
    """Return uint8 images scaled to [0, 1] and anything else unchanged."""
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of CPU memory on a device; a GPU copies it from pinned memory while the host goes on.

    Torch keeps pinned memory for the next ones, but not before the GPU has read it.
    """
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def pick(table: Tensor, rows: Tensor, device: torch.device, is_padding: Tensor | None = None) -> Tensor:
    """Return rows of a table on a device; of a table in CPU memory they are gathered in pinned memory for a GPU.

    Those that are padding, (B,), become `IGNORED`.
    """
    if table.device.type == "cpu" and device.type == "cuda":
        picked = torch.empty(len(rows), *table.shape[1:], dtype=table.dtype, pin_memory=True)
        torch.index_select(table, 0, rows, out=picked)
    else:
        picked = table[rows]
    if is_padding is not None:
        picked.masked_fill_(is_padding.view(-1, *(1 for _ in table.shape[1:])), IGNORED)
    return picked.to(device, non_blocking=device.type == "cuda")


@dataclass(frozen=True)
class FederatedData:
    """Inputs (S, ...) and targets of all clients, and which rows each client trains and tests on: `train` and `test`
    are a tensor (n,) for each client, or one (C, n) where all have as many.

    Targets are classes (S,), or for each token the one to come (S, T), `IGNORED` where none is asked for; `task` says
    how they are scored. Inputs are uint8 images, or int32 tokens (S, T) padded with `pad_token`, or floats. `notes` is
    what the log should say of how the data were made, as numbers. `transform` turns a batch of raw inputs into what the
    backbone takes; `augment` does the same for training batches, with `n_draws` uniform random numbers for each sample,
    (B, n_draws), from its client's own generator. Raises ValueError when the tables do not fit the tensors.
    """

    inputs: Tensor
    targets: Tensor
    train: Sequence[Tensor]
    test: Sequence[Tensor]
    class_names: Sequence[str]
    unseen: frozenset[int] = frozenset()
    domains: tuple[int, ...] | None = None
    domain_names: tuple[str, ...] = ()
    transform: Callable[[Tensor], Tensor] = as_float
    augment: Callable[[Tensor, Tensor], Tensor] | None = None
    n_draws: int = 0
    pad_token: int | None = None
    proxy: int | None = None
    """The last client where it is no client but the server's own data set (see data/proxy.py)."""
    task: Task = field(default_factory=Classification)
    notes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = []
        object.__setattr__(self, "train", IndexTables.of(self.train))
        object.__setattr__(self, "test", IndexTables.of(self.test))
        if len(self.inputs) != len(self.targets):
            problems.append(f"{len(self.inputs)} inputs have {len(self.targets)} targets")
        if len(self.train) != len(self.test) or not self.train:
            problems.append(f"{len(self.train)} clients have train tables and {len(self.test)} have test tables")
        if problem := self.task.problem(self.targets, self.class_names):
            problems.append(problem)
        if self.unseen and not self.unseen < set(range(len(self.train))):
            problems.append(
                f"unseen clients {sorted(self.unseen)} must leave at least one of {len(self.train)} clients"
            )
        if self.proxy is not None and (self.proxy != len(self.train) - 1 or self.proxy in self.unseen):
            problems.append(f"the proxy client {self.proxy} must be the last of {len(self.train)} clients, not unseen")
        if self.domains is not None and len(self.domains) != len(self.train) - (self.proxy is not None):
            problems.append(f"{len(self.domains)} domain numbers for {len(self.train)} clients")
        if any(len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self.inputs) for rows in self.rows):
            problems.append(f"an index table points outside the {len(self.inputs)} inputs")
        if problems:
            raise ValueError("The data do not fit together: " + "; ".join(problems) + ".")

    @property
    def rows(self) -> list[Tensor]:
        """All rows that clients train on, and all that they test on."""
        return [IndexTables.of(table).rows for table in (self.train, self.test)]

    @property
    def n_classes(self) -> int:
        """N."""
        return len(self.class_names)

    @property
    def n_clients(self) -> int:
        """C, seen and unseen, and the proxy."""
        return len(self.train)

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each sequence up to its last that is no padding, at least one, (S,), in CPU memory."""
        is_token = (self.inputs != self.pad_token).cpu()
        positions = torch.arange(1, self.inputs.shape[1] + 1)
        return (is_token * positions).amax(1).clamp(min=1)

    def train_size(self, client: int) -> int:
        """Training samples of a client."""
        return len(self.train[client])

    def test_size(self, client: int) -> int:
        """Test samples of a client."""
        return len(self.test[client])

    def train_steps(
        self, client: int, batch_size: int, steps: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield rows (B,) and draws (B, n_draws) of `steps` batches; every epoch is shuffled anew."""
        table, done = self.train[client], 0
        while done < steps and len(table):
            order = table[torch.randperm(len(table), generator=generator)]
            for rows in order.split(batch_size):
                if done == steps:
                    return
                yield rows, torch.rand(len(rows), self.n_draws, generator=generator)
                done += 1

    def poisson_steps(
        self, client: int, batch_size: int, steps: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what `train_steps` does, but a sample is in a batch by itself: `batch_size` are on average, or all.

        There may be none.
        """
        table = self.train[client]
        for _ in range(steps if len(table) else 0):
            drawn = torch.rand(len(table), generator=generator, dtype=torch.float64)  # in steps of 2^-53
            rows = table[drawn < batch_size / len(table)]
            yield rows, torch.rand(len(rows), self.n_draws, generator=generator)

    def test_steps(self, client: int, batch_size: int) -> Sequence[Tensor]:
        """Return the rows of the client's test split in order, in batches; none without test samples."""
        return self.test[client].split(batch_size) if len(self.test[client]) else ()

    def batch(
        self,
        rows: Tensor,
        draws: Tensor | None = None,
        device: torch.device | str | None = None,
        length_step: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Return inputs as the backbone takes them, and targets, of these rows (B,), on `device`.

        A row −1 − r is padding: it has the inputs of row r, and targets `IGNORED`. With `draws` inputs are augmented.
        Tokens are cut to the longest sequence among them, up to the next multiple of `length_step`. Raw inputs move to
        the device, and what is done to them is done there.
        """
        device = torch.device(device or self.inputs.device)
        inputs, targets = self.inputs, self.targets
        is_padding: Tensor | None = rows < 0
        real = torch.where(is_padding, -1 - rows, rows)
        if self.pad_token is not None:
            longest = length_step * -(-int(self.lengths[real].max()) // length_step)
            inputs, targets = inputs[:, :longest], targets[:, :longest] if targets.ndim > 1 else targets
        if bool(is_padding.any()):
            at_home, marks = send(torch.stack([real, is_padding.to(rows.dtype)]), inputs.device)  # one copy for both
            is_padding = marks.bool()
        else:
            at_home, is_padding = send(real, inputs.device), None
        raw, targets = pick(inputs, at_home, device), pick(targets, at_home, device, is_padding)
        targets = targets.long() if self.pad_token is not None and targets.ndim > 1 else targets
        if draws is not None and self.augment:
            return self.augment(raw, send(draws, device)), targets
        return self.transform(raw), targets


def from_tensors(
    inputs: Samples,
    targets: Samples,
    client_of_sample: Samples,
    *,
    test_fraction: float = 0.25,
    unseen: Sequence[int] = (),
) -> FederatedData:
    """Split your own tensors: sample s belongs to client `client_of_sample[s]`; every client keeps a share for testing.

    Tensors, NumPy arrays or lists: inputs (S, ...), targets (S,) and client_of_sample (S,) of whole numbers from 0 on.
    The split is by position: each client's last `test_fraction` of samples (rounded) are its test split. Raises
    ValueError where they do not fit together.
    """
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}; it must lie in [0, 1).")
    inputs, targets = as_tensor("inputs", inputs), as_tensor("targets", targets)
    owners = as_tensor("client_of_sample", client_of_sample)
    if not len(inputs):
        raise ValueError("inputs are empty; there must be a sample at least.")
    if owners.shape != (len(inputs),):
        raise ValueError(f"client_of_sample has the shape {tuple(owners.shape)} for {len(inputs)} inputs.")
    if owners.is_floating_point() or int(owners.min()) < 0:
        raise ValueError(f"client_of_sample has {owners.min()} ({owners.dtype}); clients are numbered 0, 1, 2, ….")
    owners = owners.long()
    order, sizes = owners.argsort(stable=True), owners.bincount()
    n_test = (test_fraction * sizes.double()).round().long()  # of halves to even, as Python's
    in_client = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[owners[order]]
    is_train = in_client < (sizes - n_test)[owners[order]]
    zero = torch.zeros(1, dtype=torch.long)
    train = IndexTables(order[is_train], torch.cat((zero, (sizes - n_test).cumsum(0))))
    test = IndexTables(order[~is_train], torch.cat((zero, n_test.cumsum(0))))
    targets = targets if targets.is_floating_point() else targets.long()
    names = [str(label) for label in range(int(targets.max()) + 1)] if len(targets) else []
    return FederatedData(inputs, targets, train, test, names, unseen=frozenset(unseen))


def as_tensor(name: str, values: Samples) -> Tensor:
    """Return a tensor as it is, and an array or a list as one (of float64 in torch's default type)."""
    if isinstance(values, Tensor):
        return values
    try:
        made = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} are no tensor, and none can be made of them: {error}.") from None
    return made.to(torch.get_default_dtype()) if made.dtype == torch.float64 else made
