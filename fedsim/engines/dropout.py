"""LoRA dropout that is a function of (seed, round, client, local step): the same whichever engine and device runs.

Generators would draw client by client, a kernel for each client and map. Here an entry is kept or not by numbers that
follow from its place alone (as in Salmon et al., SC 2011), for all clients of a block at once.
"""

from collections.abc import Sequence
from copy import copy
from functools import lru_cache

import torch
from torch import Tensor

from fedsim.adapters.linear import ClientBatch
from fedsim.data.federated import send
from fedsim.randomness import derive_seed, generator, spread
from fedsim.round import Assignment

STEP, SAMPLE, TOKEN, CALL = 0x9E3779B97F4A7C15 - 2**64, 0x632BE59BD9B4E019, 0x2545F4914F6CDD1D, 0x9E3779B1
"""Odd numbers by which places are told apart."""
WIDEST = 2**16
"""Inputs that an adapted map may have."""


@lru_cache
def columns(device: torch.device) -> Tensor:
    """Return an odd number for every input of a map, (WIDEST,) int32, always the same ones."""
    drawn = torch.randint(2**31, (WIDEST,), generator=generator(0, "dropout columns"))
    return send((2 * drawn + 1 - 2**31).int(), device)


class BlockDropout:
    """What the clients of a block drop; `at` returns it for a local step of some of them."""

    def __init__(self, seed: int, block: Sequence[Assignment], device: torch.device):
        self.shares = [assignment.local.dropout for assignment in block]
        self.is_needed, self.is_alike = any(self.shares), len(set(self.shares)) == 1
        if self.is_needed:
            seeds = [derive_seed(seed, "dropout", a.round_index, a.client) for a in block]
            self.keys, self.columns = send(torch.tensor(seeds), device), columns(device)
            self.share = send(torch.tensor(self.shares, dtype=torch.float64), device).view(-1, 1, 1, 1)

    def at(self, step: int, start: int, rows: ClientBatch, first: int = 0) -> "KeyedDropout | None":
        """Return the dropout of the clients from `start` on that `rows` holds; None where nobody drops.

        Their samples are those of the step from the `first` on.
        """
        if not self.is_needed:
            return None
        stop = start + rows.n_clients
        samples = torch.arange(first, first + rows.widest, device=self.keys.device) * SAMPLE
        keys = spread(self.keys[start:stop].unsqueeze(1) + samples + step * STEP % 2**63)
        return KeyedDropout(keys, self.shares[0] if self.is_alike else self.share[start:stop], self.columns)


class KeyedDropout:
    """Drops inputs of a block's adapters in one local step; every call, a map of the backbone, drops others.

    `keys` (K, B) are the samples' own; `share` is what is dropped, one for all or each client's (K, 1, 1, 1).
    """

    def __init__(self, keys: Tensor, share: float | Tensor, columns: Tensor):
        self.keys, self.columns, self.calls = keys, columns, 0
        self.tokens: dict[int, Tensor] = {}
        is_alike = not isinstance(share, Tensor)
        self.threshold = int(share * 2**32) - 2**31 if is_alike else ((share * 2**32).long() - 2**31).int()
        self.scale = 1 / (1 - share)

    @property
    def name(self) -> tuple[object, ...]:
        """What is not in tensors."""
        return tuple(self.keys.shape), self.threshold if isinstance(self.threshold, int) else None

    def apart(self, rows: ClientBatch) -> "KeyedDropout":
        """Return the same for clients' samples `rows` that go through a pass as clients of their own."""
        each = copy(self)
        each.keys, each.tokens = rows.unstack(self.keys).unsqueeze(1), {}
        if isinstance(self.threshold, Tensor):
            each.threshold, each.scale = self.threshold[rows.owners], self.scale[rows.owners]
        return each

    def take(self, other: "KeyedDropout") -> None:
        """Drop what another one does that has the same name, in the same memory."""
        self.keys.copy_(other.keys)
        if isinstance(self.threshold, Tensor):
            self.threshold.copy_(other.threshold), self.scale.copy_(other.scale)

    def __call__(self, x: Tensor) -> Tensor:
        """Return x (K, B, M, I), or (B, ..., I) of one client, with entries at 0 or divided by the share that is kept.

        Whether one is kept depends on its sample, its token and its place I, and on nothing that lies behind them.
        """
        entries = x.reshape(*self.keys.shape, -1, x.shape[-1])
        M, width = entries.shape[2:]
        if M not in self.tokens:
            places = torch.arange(M, device=x.device) * TOKEN
            self.tokens[M] = (spread(self.keys.unsqueeze(2) + places) >> 32).int().unsqueeze(3)
        self.calls += 1
        numbers = self.tokens[M] * _signed(pow(CALL, self.calls, 2**32)) * self.columns[:width]
        scale = self.scale.to(x.dtype) if isinstance(self.scale, Tensor) else self.scale
        return (entries * (numbers >= self.threshold) * scale).view(x.shape)


def _signed(number: int) -> int:
    """The number of 32 bits that has the same bits."""
    return (number + 2**31) % 2**32 - 2**31
