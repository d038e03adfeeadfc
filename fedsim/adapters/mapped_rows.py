"""Rows of a stack in a file, of which only those that were written take space, and in memory those being read."""

import mmap
import os
import tempfile
import weakref
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class MappedRows:
    """A stack (G, *shape) of float32 in a file without a name in `folder`, which goes with the process however it ends.

    It reads and writes as a tensor does by group numbers: (n,) of them, or one. A disk that is full is an OSError, as
    rows are written through the file and not through its mapping, whose pages the system would take by a signal.
    """

    def __init__(self, folder: Path, n_groups: int, shape: torch.Size):
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            self.file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.file)
        self.row_bytes = 4 * prod(shape)
        self.shape = torch.Size((0, *shape))
        self.widen(n_groups)

    def widen(self, n_groups: int) -> None:
        """Make room for so many groups; what was written stays."""
        os.ftruncate(self.file, n_groups * self.row_bytes)
        self.shape = torch.Size((n_groups, *self.shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, groups: Tensor | int) -> Tensor:
        """Return copies of rows, (n, *shape) or (*shape); nothing of the file stays in this process's memory."""
        places = groups.numpy() if isinstance(groups, Tensor) else groups
        with mmap.mmap(self.file, len(self) * self.row_bytes, prot=mmap.PROT_READ) as mapped:
            mapped.madvise(mmap.MADV_RANDOM)
            rows = np.frombuffer(mapped, np.float32).reshape(self.shape)
            found = np.array(rows[places])
            del rows  # a mapping that is looked at cannot be closed
        return torch.from_numpy(found)

    def __setitem__(self, groups: Tensor | int, values: Tensor) -> None:
        numbers = groups.tolist() if isinstance(groups, Tensor) else [groups]
        rows = values.detach().contiguous().numpy().reshape(len(numbers), -1)
        for group, row in zip(numbers, rows, strict=True):
            left, place = memoryview(row.tobytes()), group * self.row_bytes
            while len(left):
                n_written = os.pwrite(self.file, left, place)
                left, place = left[n_written:], place + n_written
