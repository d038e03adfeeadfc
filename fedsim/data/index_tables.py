"""The rows of all clients, one table after another in one tensor: a million tensors would be gigabytes of objects."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import overload

import torch
from torch import Tensor


class IndexTables(Sequence[Tensor]):
    """Every client's rows (n,), of `rows` those between two of the `edges` (C + 1,)."""

    def __init__(self, rows: Tensor, edges: Tensor):
        self.rows, self.edges = rows, edges

    @classmethod
    def of(cls, tables: Sequence[Tensor]) -> "IndexTables":
        """Return tables, one (n,) for each client or a (C, n) tensor, as one; such a one itself."""
        if isinstance(tables, IndexTables):
            return tables
        if isinstance(tables, Tensor):
            n = tables.shape[1] if tables.ndim == 2 else 0
            return cls(tables.reshape(-1), torch.arange(len(tables) + 1) * n)
        sizes = torch.tensor([0, *map(len, tables)])
        rows = torch.cat(list(tables)) if tables else torch.empty(0, dtype=torch.long)
        return cls(rows, sizes.cumsum(0))

    @property
    def sizes(self) -> Tensor:
        """Rows of each client, (C,)."""
        return self.edges.diff()

    def __len__(self) -> int:
        return len(self.edges) - 1

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> "IndexTables": ...
    def __getitem__(self, index: int | slice) -> "Tensor | IndexTables":
        if isinstance(index, slice):
            return IndexTables.of([self[client] for client in range(len(self))[index]])
        client = range(len(self))[index]  # negative ones count from the end, and none is past it
        return self.rows[int(self.edges[client]) : int(self.edges[client + 1])]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[client] for client in range(len(self)))

    def hashed(self) -> bytes:
        """Return what tells these tables from others: what `storage.provenance` makes of a list of such tensors."""
        rows, edges = self.rows.cpu().contiguous(), self.edges.tolist()
        content, width, kind = memoryview(rows.numpy()).cast("B"), rows.element_size(), rows.dtype
        parts = [f"sequence {len(self)}\n".encode()]
        for start, stop in pairwise(edges):
            inside = hashlib.sha256(content[start * width : stop * width]).digest() if stop > start else b""
            parts.append(b"tensor " + hashlib.sha256(f"{kind}|({stop - start},)|".encode() + inside).digest())
        return b"".join(parts)
