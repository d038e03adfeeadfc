"""LoRA dropout that is a function of (seed, round, client, local step): the same whichever engine runs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.adapters.linear import ClientBatch, Dropout
from fedsim.randomness import generator
from fedsim.round import Assignment


class ClientDropout:
    """Drops inputs of one client's adapters in one local step; every call, a map of the backbone, draws anew."""

    def __init__(self, seed: int, assignment: Assignment, step: int):
        self.seed, self.assignment, self.step, self.calls = seed, assignment, step, 0

    def __call__(self, x: Tensor) -> Tensor:
        """Return x (B, ..., I) with entries at 0 or divided by the share that is kept."""
        share, client = self.assignment.local.dropout, self.assignment.client
        if not share:
            return x
        purpose = f"dropout/{self.step}/{self.calls}"
        random = generator(self.seed, purpose, self.assignment.round_index, client, x.device)
        self.calls += 1
        # Tokens come first, so that what is drawn does not depend on the padding behind them.
        drawn = torch.empty(*x.shape[1:-1], len(x), x.shape[-1], dtype=x.dtype, device=x.device)
        kept = drawn.bernoulli_(1 - share, generator=random).movedim(-2, 0)
        return x * kept / (1 - share)


def block_dropout(seed: int, block: Sequence[Assignment], step: int, rows: ClientBatch) -> Dropout | None:
    """Return the dropout of a block's stacked inputs (K, widest, M, I) to (K, widest · M, I); None when nobody drops.

    Each client draws for the samples it has.
    """
    if not any(assignment.local.dropout for assignment in block):
        return None
    of_client = [ClientDropout(seed, assignment, step) for assignment in block]

    def drop(x: Tensor) -> Tensor:
        dropped = torch.zeros_like(x)
        for k, (size, dropout) in enumerate(zip(rows.sizes, of_client, strict=True)):
            dropped[k, :size] = dropout(x[k, :size])
        return dropped.flatten(1, 2)

    return drop
