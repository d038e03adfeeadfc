"""LoRA dropout that is a function of (seed, round, client, local step): the same whichever engine runs."""

from collections.abc import Sequence

from torch import Tensor

from fedsim.adapters.linear import ClientBatch, Dropout
from fedsim.randomness import generator
from fedsim.round import Assignment


class ClientDropout:
    """Drops inputs of one client's adapters in one local step; every call, a map of the backbone, draws anew."""

    def __init__(self, seed: int, assignment: Assignment, step: int):
        self.seed, self.assignment, self.step, self.calls = seed, assignment, step, 0
        self.share = assignment.local.dropout

    def __call__(self, x: Tensor) -> Tensor:
        """Return x (B, ..., I) with entries at 0 or divided by the share that is kept."""
        if not self.share:
            return x
        mask = x.new_empty(*x.shape[1:-1], len(x), x.shape[-1])
        self.fill(mask)
        return x * mask.div_(1 - self.share).movedim(-2, 0)

    def fill(self, mask: Tensor) -> None:
        """Draw which entries of the next map are kept, 1 or 0, in place; mask (..., B, I).

        Tokens come first, so that what is drawn does not depend on the padding behind them.
        """
        purpose = f"dropout/{self.step}/{self.calls}"
        random = generator(self.seed, purpose, self.assignment.round_index, self.assignment.client, mask.device)
        self.calls += 1
        mask.bernoulli_(1 - self.share, generator=random)


def block_dropout(seed: int, block: Sequence[Assignment], step: int, rows: ClientBatch) -> Dropout | None:
    """Return the dropout of a block's stacked inputs (K, widest, M, I) to (K, widest · M, I); None when nobody drops.

    Each client draws for the samples it has, into its part of one mask: whatever the number of clients, the inputs and
    their gradients are multiplied once.
    """
    shares = {assignment.local.dropout for assignment in block}
    if shares == {0}:
        return None
    of_client = [ClientDropout(seed, assignment, step) for assignment in block]

    def drop(x: Tensor) -> Tensor:
        K, widest, M, width = x.shape
        shape = (K, M, widest, width)
        mask = x.new_empty(shape) if rows.is_even else x.new_zeros(shape)  # x is 0 where there is no sample
        for own, size, dropout in zip(mask, rows.sizes, of_client, strict=True):
            if not dropout.share:
                own.fill_(1)
                continue
            dropout.fill(own[:, :size])
            if len(shares) > 1:
                own.div_(1 - dropout.share)
        if len(shares) == 1:
            mask.div_(1 - of_client[0].share)
        return (x * mask.movedim(-2, 1)).flatten(1, 2)

    return drop
