"""The batches of local steps, and DP-SGD: what becomes of them where each sample's gradient is clipped and noised.

    g ← (Σ_i g_i min(1, C / ‖g_i‖) + N(0, (σ C)² I)) / b     g_i of all that the client trains; C, σ: `LocalTraining`

Abadi et al., arXiv 1607.00133, algorithm 1; then the client's optimiser goes on with g. b are the rows of the batch,
and of Poisson-sampled ones those on average: it depends on nobody's data. A sample's gradient is made whole: it goes
through a pass as if it were a client of its own, since adapters are thin and the frozen backbone does not notice.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedsim.adapters.linear import ClientBatch
from fedsim.data.federated import FederatedData, send
from fedsim.engines.dropout import KeyedDropout
from fedsim.engines.padding import Pick
from fedsim.engines.passes import Batch, Clients, Outcome, Passes
from fedsim.engines.stack import Stack
from fedsim.options import LocalTraining
from fedsim.randomness import generator
from fedsim.round import Assignment


def local_steps(data: FederatedData, seed: int, stage: str, assignment: Assignment) -> Iterator[Pick]:
    """Yield the batches of a client's local steps: rows (B,) and what they are augmented by.

    Poisson-sampled ones are drawn anew in each pass of a round, lest the same samples be drawn in two.
    """
    local, of = assignment.local, (assignment.round_index, assignment.client)
    if local.sample_batches == "poisson":
        random = generator(seed, f"poisson batches {stage}", *of)
        return data.poisson_steps(assignment.client, local.batch_size, assignment.steps, random)
    return data.train_steps(assignment.client, local.batch_size, assignment.steps, generator(seed, "batches", *of))


def expected_rows(local: LocalTraining, rows: Tensor, n_samples: int) -> int:
    """Return b for a batch (B,) of a client that has `n_samples`."""
    return len(rows) if local.sample_batches == "shuffled" else min(local.batch_size, n_samples)


class SampleNoise:
    """The noise of a client on the sums of its steps, one step after the other, from a generator of its own.

    What is drawn is a function of (seed, stage, round, client), and of the kind of device.
    """

    def __init__(self, seed: int, stage: str, assignment: Assignment, device: torch.device):
        local, of = assignment.local, (assignment.round_index, assignment.client)
        self.deviation = local.sample_noise * (local.sample_clip or 0.0) if local.sample_noise else 0.0
        self.random = generator(seed, f"sample noise {stage}", *of, device=device)

    def draw(self, n: int) -> Tensor:
        """Return the noise of a step on n entries, (n,)."""
        device = self.random.device
        if not self.deviation:
            return torch.zeros(n, device=device)
        return self.deviation * torch.randn(n, generator=self.random, device=device)


class SampleGuard:
    """DP-SGD of a block's clients: what of a pass over their samples becomes their gradients."""

    def __init__(self, data: FederatedData, seed: int, stage: str, stack: Stack):
        clips = [assignment.local.sample_clip for assignment in stack.block]
        if None in clips:
            raise ValueError("Either all clients of a block clip their samples' gradients or none does (sample_clip).")
        self.stack, self.clips = stack, torch.tensor(clips, device=stack.device).unsqueeze(1)
        self.mask = None if stack.mask is None else stack.mask.bool()
        self.entries = [stack.values.shape[1]] * len(stack.block) if self.mask is None else self.mask.sum(1).tolist()
        self.noises = [SampleNoise(seed, stage, assignment, stack.device) for assignment in stack.block]
        self.sizes = [data.train_size(assignment.client) for assignment in stack.block]

    def differentiate(
        self, passes: Passes, clients: Clients, batch: Batch, dropout: KeyedDropout | None = None
    ) -> Outcome:
        """Return sums over each client's samples: of losses (k,), and of clipped gradients (k, P)."""
        (plan, stack, start, rows), stop = clients, clients.start + clients.rows.n_clients
        samples, alone = stack.rows([start + k for k in rows.owners]), ClientBatch([1] * rows.n_rows, rows.device)
        each = Clients(plan, samples, 0, alone)
        losses, found = passes.differentiate(each, batch, None if dropout is None else dropout.apart(rows))
        sizes = send(torch.tensor(rows.sizes), stack.device)
        is_sample = torch.arange(rows.widest, device=stack.device) < sizes.unsqueeze(1)
        gradients = rows.stack(found)
        if stack.mask is not None:
            gradients *= stack.mask[start:stop].unsqueeze(1)
        norms = torch.linalg.vector_norm(gradients, dim=2)
        weights = (self.clips[start:stop] / norms).clamp(max=1) * is_sample
        return (rows.stack(losses) * is_sample).sum(1), torch.bmm(weights.unsqueeze(1), gradients).squeeze(1)

    def finish(self, sums: Tensor, losses: Tensor, picks: Sequence[Pick]) -> Tensor:
        """Add noise to sums of clipped gradients (k, P) and divide by rows, in place; return losses (k,) by rows."""
        rows = [
            expected_rows(a.local, drawn, n)
            for (drawn, _), a, n in zip(picks, self.stack.block, self.sizes, strict=False)
        ]
        for k in range(len(picks)):
            noise = self.noises[k].draw(self.entries[k])
            sums[k] += noise if self.mask is None else torch.zeros_like(sums[k]).masked_scatter_(self.mask[k], noise)
        b = send(torch.tensor(rows), sums.device)
        sums /= b.unsqueeze(1)
        return losses / b
