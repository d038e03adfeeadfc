"""K clients in one forward and backward pass: the frozen backbone sees their samples as one large batch.

The *sum* of the K losses is differentiated. No two clients share a trained tensor, so each gets exactly its own
gradient, and an element-wise optimiser steps all of them at once. That there is a client axis is known to
this folder's `stack` and `dropout` and to adapters/linear.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from lightning.fabric import Fabric
from torch import Tensor

from fedsim.adapters.layout import Slot
from fedsim.adapters.linear import ClientBatch
from fedsim.data.federated import FederatedData
from fedsim.engines.dropout import BlockDropout, KeyedDropout
from fedsim.engines.padding import Pick, Samples, length_step, padded_samples, padded_size, samples_of
from fedsim.engines.passes import Clients, Passes
from fedsim.engines.references import reference_rows
from fedsim.engines.samples import SampleGuard, local_steps
from fedsim.engines.stack import Stack, StackedOptimizer
from fedsim.models.client_module import ClientModule, is_out_of_memory
from fedsim.plan import Plan, is_adapter, is_measured, measuring
from fedsim.round import Assignment, Block, ClientError, ClientUpdate

Answer = TypeVar("Answer")


def batch_size_of(block: Block) -> int:
    """Return the largest batch of a block's clients."""
    return max(assignment.local.batch_size for assignment in block)


class BatchedEngine:
    """Trains blocks of up to `block_size` clients together; `on_client` is told of every finished one.

    Where it is static, passes of training and measuring are padded to few shapes, which then can be recorded.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: ClientModule,
        data: FederatedData,
        seed: int,
        block_size: int,
        on_client: Callable[[ClientUpdate], None] = lambda update: None,
        is_static: bool = False,
        is_recorded: bool = False,
    ):
        assert is_static or not is_recorded, "what is recorded has a shape"
        self.fabric, self.module, self.data, self.seed, self.on_client = fabric, module, data, seed, on_client
        self.is_static, self.length_step = is_static, length_step(data) if is_static else 1
        self.passes = Passes(fabric, module, is_recorded)
        self.resize(block_size)

    def resize(self, block_size: int) -> None:
        """Train so many clients together from now on."""
        self.block_size = self.pass_size = block_size
        self.passes.forget()

    def local_update(self, plan: Plan, blocks: Sequence[Block]) -> list[ClientUpdate]:
        """Train every client, then evaluate what it trained on its own test split (`personal.*`)."""
        return [update for block in blocks for update in self._blaming(plan, block, self._train)]

    def evaluate(self, plan: Plan, blocks: Sequence[Block]) -> list[ClientUpdate]:
        """Evaluate every client as it is (`global.*`)."""
        return [update for block in blocks for update in self._blaming(plan, block, self._evaluate)]

    def measure(self, plan: Plan, blocks: Sequence[Block]) -> list[ClientUpdate]:
        """Let every client measure what the plan asks for, without training."""
        return [update for block in blocks for update in self._blaming(plan, block, self._measure)]

    def _train(self, plan: Plan, block: Block) -> list[ClientUpdate]:
        block = sorted(block, key=lambda assignment: -assignment.steps)  # those at work are the first ones, always
        stack = Stack(block, self.module.device, self.passes.memory)
        losses, measured = torch.zeros(len(block), device=self.module.device), self._measured(plan, stack)
        if stack.trained:
            optimizer = StackedOptimizer(stack)
            streams = [local_steps(self.data, self.seed, plan.stage, assignment) for assignment in block]
            width, dropout = batch_size_of(block), BlockDropout(self.seed, block, stack.device)
            is_private = any(assignment.local.sample_clip is not None for assignment in block)
            guard = SampleGuard(self.data, self.seed, plan.stage, stack) if is_private else None
            for step in range(block[0].steps):
                picks = [next(stream) for stream, a in zip(streams, block, strict=True) if step < a.steps]
                drop = partial(dropout.at, step)
                losses[: len(picks)] += self._differentiate(plan, stack, picks, optimizer.gradients, width, drop, guard)
                optimizer.step(len(picks))
        tests = self._test(plan, stack)
        updates = []
        trained = stack.by_client(stack.values)
        for k, (assignment, loss) in enumerate(zip(block, losses.tolist(), strict=True)):
            logs = {f"personal.{name}": value for name, value in tests[k].items()}
            if trained[k] and assignment.steps:
                logs["train_loss"] = loss / assignment.steps
            updates.append(self._update(assignment, logs, trained[k], measured[k]))
            self.on_client(updates[-1])
        return updates

    def _evaluate(self, plan: Plan, block: Block) -> list[ClientUpdate]:
        tests = self._test(plan, Stack(block, self.module.device))
        return [
            self._update(assignment, {f"global.{name}": value for name, value in test.items()}, {}, {})
            for assignment, test in zip(block, tests, strict=True)
        ]

    def _measure(self, plan: Plan, block: Block) -> list[ClientUpdate]:
        measured = self._measured(plan, Stack(block, self.module.device, self.passes.memory))
        return [self._update(assignment, {}, {}, own) for assignment, own in zip(block, measured, strict=True)]

    def _update(
        self, assignment: Assignment, logs: dict[str, float], tensors: dict, measured: Mapping[Slot, Tensor]
    ) -> ClientUpdate:
        return ClientUpdate(assignment.client, self.data.train_size(assignment.client), tensors, logs, measured)

    def _measured(self, plan: Plan, stack: Stack) -> list[Mapping[Slot, Tensor]]:
        """What each client measures at the values that it received; empty for those that are not asked."""
        asked = [is_measured(plan, assignment.client) for assignment in stack.block]
        if not any(asked) or not stack.trained:
            return [{} for _ in stack.block]
        if plan.measure.what == "gradient":
            found = stack.by_client(self._mean_gradients(plan, stack))
            return [own if is_asked else {} for own, is_asked in zip(found, asked, strict=True)]
        each = zip(stack.block, asked, strict=True)
        return [self._mean_squares(measuring(plan), a) if is_asked else {} for a, is_asked in each]

    def _mean_squares(self, plan: Plan, assignment: Assignment) -> Mapping[Slot, Tensor]:
        """The mean of the squares of each sample's gradient: every sample goes through the block as its own client."""
        one = replace(assignment, trains=frozenset(filter(is_adapter, assignment.trains)), corrections={})
        table, total = self.data.train[assignment.client], Stack([one], self.module.device)
        sums = torch.zeros_like(total.values)
        for rows in table.split(one.local.batch_size) if total.trained else ():
            samples = total.rows([0] * len(rows))
            gradients = torch.zeros_like(samples.values)
            self._differentiate(plan, samples, [(row, None) for row in rows.split(1)], gradients, 1)
            sums += gradients.square().sum(0) / len(table)
        return total.by_client(sums)[0]

    def _mean_gradients(self, plan: Plan, stack: Stack) -> Tensor:
        """The mean gradient (K, P) of every client over all of its data, as they are, at the installed values."""
        total, part = torch.zeros_like(stack.values), torch.zeros_like(stack.values)
        tables = [self.data.train[assignment.client] for assignment in stack.block]
        batch_size = batch_size_of(stack.block)
        for begin in range(0, max(map(len, tables)), batch_size):
            picks = [(table[begin : begin + batch_size], None) for table in tables]
            shares = [len(rows) / max(len(table), 1) for (rows, _), table in zip(picks, tables, strict=True)]
            self._differentiate(plan, stack, picks, part, batch_size)
            total.addcmul_(part, torch.tensor(shares, device=stack.device).unsqueeze(1))
        return total

    def _differentiate(
        self,
        plan: Plan,
        stack: Stack,
        picks: Sequence[Pick],
        gradients: Tensor,
        width: int,
        drop: Callable[[int, ClientBatch], KeyedDropout | None] = lambda start, rows: None,
        guard: SampleGuard | None = None,
    ) -> Tensor:
        """Put the gradients of the first clients, those with a pick, into `gradients`; return their losses.

        No pick has more than `width` rows, but for those of sampled batches. `drop` returns what clients from a first
        one on drop; `guard` makes of their samples' gradients theirs.
        """
        work = self.passes.differentiate if guard is None else partial(guard.differentiate, self.passes)

        def differentiate(start: int, stop: int) -> Tensor:
            most = max(len(rows) for rows, _ in picks[start:stop])
            samples = self._samples(stack, start, picks[start:stop], width * max(1, -(-most // width)))
            if not samples.clients.n_rows:  # nothing was sampled
                gradients[start:stop] = 0
                return torch.zeros(stop - start, device=stack.device)
            clients, dropout = Clients(plan, stack, start, samples.clients), drop(start, samples.clients)
            batch = self.data.batch(samples.rows, samples.draws, stack.device, self.length_step)
            losses, found = work(clients, batch, dropout)
            gradients[start:stop] = found[: stop - start]
            return losses[: stop - start]

        losses = torch.cat(self._in_passes(len(picks), differentiate))
        return losses if guard is None else guard.finish(gradients[: len(picks)], losses, picks)

    def _samples(self, stack: Stack, start: int, picks: Sequence[Pick], width: int) -> Samples:
        """What the clients of a pass see that begins with client `start`: those with a pick are the first.

        In a static engine others join that have finished, so that there are few numbers of clients.
        """
        if not self.is_static:
            return samples_of(picks, stack.device)
        n = padded_size(len(picks), min(self.pass_size, len(stack.block) - start))
        tables = [self.data.train[assignment.client] for assignment in stack.block[start : start + n]]
        spare = [int(table[0]) if len(table) else 0 for table in tables]
        return padded_samples(picks, spare, width, stack.device)

    @torch.no_grad()
    def _test(self, plan: Plan, stack: Stack) -> list[dict[str, float]]:
        """The task's metrics of each client on its own test split; empty without test samples."""
        task = self.data.task
        batch_size = 2 * batch_size_of(stack.block)  # nothing is kept for backward

        def test(start: int, stop: int) -> Tensor:
            tables = [self.data.test[assignment.client] for assignment in stack.block[start:stop]]
            sums = torch.zeros(len(tables), task.n_scores, device=stack.device)
            direction = self._direction(plan, stack, start, stop)
            for begin in range(0, max(map(len, tables)), batch_size):
                chosen = [table[begin : begin + batch_size] for table in tables]
                rows = ClientBatch([len(each) for each in chosen], stack.device)
                self.passes.install(Clients(plan, stack, start, rows), stack.values[start:stop])
                inputs, targets = self.data.batch(torch.cat(chosen), device=stack.device)
                with self.fabric.autocast():
                    if direction is not None:
                        self.module.weigh((inputs, targets), direction)
                    scores = task.score(self.module, inputs, targets)
                sums += rows.stack(scores).sum(1)
            return sums

        sizes = [self.data.test_size(assignment.client) for assignment in stack.block]
        sums = torch.cat(self._in_passes(len(stack.block), test)).tolist()
        return [task.summary(totals, n) if n else {} for totals, n in zip(sums, sizes, strict=True)]

    def _direction(self, plan: Plan, stack: Stack, start: int, stop: int) -> Tensor | None:
        """Where the training samples of clients (K, D) lie to which they compare test samples; None if they do not."""
        n = self.module.references(stack.shapes)
        near = [reference_rows(self.data, self.seed, each.client, n) for each in stack.block[start:stop]]
        if not any(map(len, near)):
            return None
        rows = ClientBatch([len(each) for each in near], stack.device)
        self.passes.install(Clients(plan, stack, start, rows), stack.values[start:stop])
        with self.fabric.autocast():
            return self.module.direction(self.data.batch(torch.cat(near), device=stack.device))

    def _in_passes(self, n_clients: int, run: Callable[[int, int], Answer]) -> list[Answer]:
        """Return `run(start, stop)` over all clients, `pass_size` at a time.

        When memory runs out the pass is halved, for good, and the same clients run again: nothing was changed yet.
        """
        answers, start = [], 0
        while start < n_clients:
            stop = min(n_clients, start + self.pass_size)
            try:
                answers.append(run(start, stop))
                start = stop
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error) or stop - start == 1:
                    raise
            # Outside of the handler: the error holds the frames, and those the tensors that must go.
            self._halve(stop - start)
        return answers

    def _halve(self, tried: int) -> None:
        self.pass_size = tried // 2
        warnings.warn(
            f"Out of memory with {tried} clients in one pass; from here on {self.pass_size}. Nothing is lost. "
            "A smaller --block-size avoids the attempt.",
            stacklevel=2,
        )
        self.passes.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _blaming(
        self, plan: Plan, block: Block, work: Callable[[Plan, Block], list[ClientUpdate]]
    ) -> list[ClientUpdate]:
        """Run a block's work. When it fails, find by running one client at a time whose fault it is."""
        try:
            return work(plan, block)
        except Exception as error:
            for assignment in block if len(block) > 1 else ():
                self._blaming(plan, [assignment], work)
            clients = [assignment.client for assignment in block]
            raise ClientError(clients, block[0].round_index, plan.stage, error) from error
