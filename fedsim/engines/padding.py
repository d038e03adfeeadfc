"""What a pass holds: its clients' samples alone, or padded to whole batches, so that passes have few shapes.

A compiler then sees few graphs, and a GPU plans and keeps memory for few shapes. What is added has no target.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedsim.adapters.linear import ClientBatch, places
from fedsim.data.federated import FederatedData

Pick = tuple[Tensor, Tensor | None]
"""Rows (B,) of a client and, to augment them, random numbers (B, n_draws)."""
LENGTHS = 8
"""So many lengths of texts there are, at most."""
TILE = 8
"""They are multiples of this, as products in half precision on a GPU want it."""


class Samples(NamedTuple):
    """Rows and draws of all clients of a pass, one client after another, as `FederatedData.batch` takes them."""

    rows: Tensor
    draws: Tensor | None
    clients: ClientBatch


def samples_of(picks: Sequence[Pick], device: torch.device) -> Samples:
    """Return what was picked and nothing else."""
    rows, draws = zip(*picks, strict=True)
    return Samples(torch.cat(rows), _joined(draws), ClientBatch([len(own) for own in rows], device))


def padded_samples(picks: Sequence[Pick], spare: Sequence[int], width: int, device: torch.device) -> Samples:
    """Return `width` rows for each of K clients, of which the first ones have a pick: theirs and, behind, padding.

    Padding has the inputs of the client's first row, or of its `spare` one (K,) where it has none, lest numbers that
    are not finite reach another client.
    """
    sizes = [len(rows) for rows, _ in picks] + [0] * (len(spare) - len(picks))
    first = [int(rows[0]) if len(rows) else other for (rows, _), other in zip(picks, spare, strict=False)]
    rows = (-1 - torch.tensor([*first, *spare[len(picks) :]])).repeat_interleave(width)
    at = places(tuple(sizes), width, rows.device)
    rows[at] = torch.cat([own for own, _ in picks])
    drawn = _joined([own for _, own in picks])
    if drawn is not None:
        drawn = torch.zeros(len(rows), drawn.shape[1]).index_copy_(0, at, drawn)
    return Samples(rows, drawn, ClientBatch(sizes, device, width))


def padded_size(n: int, most: int) -> int:
    """Return the least of `most` and its halves, rounded up, that is no less than n: at most twice as many."""
    while most > 1 and -(-most // 2) >= n:
        most = -(-most // 2)
    return most


def length_step(data: FederatedData) -> int:
    """Return the tokens by which padded lengths of texts differ; 1 where data are no texts."""
    return 1 if data.pad_token is None else TILE * -(-data.inputs.shape[1] // (LENGTHS * TILE))


def _joined(draws: Sequence[Tensor | None]) -> Tensor | None:
    given = [own for own in draws if own is not None]
    return torch.cat(given) if given else None
