"""Forward and backward of neighbouring clients of a block: installed once for all their steps, or recorded for good.

A CUDA graph repeats kernels on the memory that they had when it was recorded. What a recorded pass reads
therefore lies in a `Memory`, into which the tensors of each block are copied; all else that it depends on is in the
name that it is kept by.
"""

import warnings
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor

from fedsim.adapters.linear import ClientBatch
from fedsim.engines.dropout import KeyedDropout
from fedsim.engines.stack import Memory, Stack
from fedsim.models.client_module import ClientModule, is_out_of_memory
from fedsim.plan import Plan

MOST = 32
"""Recorded passes that are kept; each holds its batch. Where there would be more, all go."""

Batch = tuple[Tensor, Tensor]
Outcome = tuple[Tensor, Tensor]
"""Losses (k,) of a pass, and gradients (k, P) of what its clients train."""


class Clients(NamedTuple):
    """Those of a block from `start` on whose samples are `rows`."""

    plan: Plan
    stack: Stack
    start: int
    rows: ClientBatch


class Recorded(NamedTuple):
    """What repeats a pass, and where it finds its batch and what is dropped."""

    repeat: Callable[[], Outcome]
    batch: Batch
    dropout: KeyedDropout | None


class Passes:
    """Differentiates clients of a block on one module; `is_recorded` says whether by CUDA graphs.

    A pass is recorded when its like comes for the second time, since kernels are loaded and chosen in the first.
    """

    def __init__(self, fabric: Fabric, module: ClientModule, is_recorded: bool = False):
        self.fabric, self.module, self.is_recorded = fabric, module, is_recorded
        self.installed: Clients | None = None
        self.forget()

    def forget(self) -> None:
        """Give back what recorded passes hold. A block that is at work goes on without."""
        self.memory = Memory() if self.is_recorded else None
        self.recorded: dict[Hashable, Recorded | None] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.is_recorded and torch.cuda.is_available() else None

    def install(self, clients: Clients, values: Tensor, dropout: KeyedDropout | None = None) -> None:
        """Make the module these clients, whose trained tensors are `values`."""
        (plan, stack, start, rows), self.installed = clients, None
        stop = start + len(values)
        objective = partial(plan.objective, received=stack.received(start, stop))
        tensors, scales = stack.tensors(values, start), stack.scales(start, stop)
        self.module.install(tensors, scales, objective, rows=rows, dropout=dropout, grouped=stack.grouped)

    def differentiate(self, clients: Clients, batch: Batch, dropout: KeyedDropout | None = None) -> Outcome:
        """Return the clients' losses and gradients, which the next pass may overwrite."""
        stack, rows = clients.stack, clients.rows
        if self.memory is None or stack.memory is not self.memory or rows.places is not None:
            return self._computed(clients, batch, dropout)
        name = _name(clients, batch, dropout)
        if name not in self.recorded:
            if len(self.recorded) == MOST:
                self.forget()
            self.recorded[name] = None
            return self._computed(clients, batch, dropout)
        kept = self.recorded[name] or self._record(clients, batch, dropout)
        if kept is None:
            return self._computed(clients, batch, dropout)
        self.recorded[name] = kept
        for place, new in zip(kept.batch, batch, strict=True):
            place.copy_(new)
        if kept.dropout is not None and dropout is not None:
            kept.dropout.take(dropout)
        return kept.repeat()

    def _computed(self, clients: Clients, batch: Batch, dropout: KeyedDropout | None) -> Outcome:
        """Compute a pass of clients that the module may be already."""
        if self.installed is None or not _same(self.installed, clients):
            self.values = _trained(clients)
            self.install(clients, self.values, dropout)
            self.installed = clients
        self.module.drop(dropout)
        return self._step(batch, self.values)

    def _step(self, batch: Batch, values: Tensor) -> Outcome:
        values.grad = None
        with self.fabric.autocast():
            losses = self.module.training_step(batch)
        # Not fabric.setup_module: DDP would average the gradients of *different* clients.
        self.fabric.backward(losses.sum())
        assert values.grad is not None
        return losses.detach(), values.grad

    def _record(self, clients: Clients, batch: Batch, dropout: KeyedDropout | None) -> Recorded | None:
        """Record a pass of such clients; None where that does not go, which is said once."""
        places = batch[0].contiguous(), batch[1].contiguous()

        def work() -> Outcome:
            # With tensors of its own: what collects gradients must have begun on the stream that is recorded.
            values = _trained(clients)
            self.install(clients, values, dropout)
            return self._step(places, values)

        try:
            return Recorded(record(work, self.pool), places, dropout)
        except Exception as error:  # whatever a backbone does that cannot be recorded
            if is_out_of_memory(error):
                raise
            why = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"No CUDA graph could be recorded ({why}); the run goes on without (--cuda-graphs).", stacklevel=2
            )
            self.is_recorded = False
            self.forget()
            return None


def record(work: Callable[[], Outcome], pool: Any) -> Callable[[], Outcome]:
    """Record the kernels of `work` as a CUDA graph, whose memory is the pool's, and compute nothing.

    Returns what repeats them and returns their outcome, always in the same tensors.
    """
    graph, outcomes, stream = torch.cuda.CUDAGraph(), list[Outcome](), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, pool=pool):
            outcomes.append(work())
    finally:  # what fails inside leaves its own stream behind
        torch.cuda.set_stream(stream)

    def repeat() -> Outcome:
        graph.replay()
        return outcomes[0]

    return repeat


def _trained(clients: Clients) -> Tensor:
    """What these clients train, (k, P), in the stack's memory; it collects gradients.

    Not `detach`: autograd would look at every change of that memory, and views of this stay installed over steps.
    """
    start = clients.start
    return clients.stack.values[start : start + clients.rows.n_clients].data.requires_grad_()


def _same(one: Clients, other: Clients) -> bool:
    """Whether both are the same clients, with as many samples each at the same places."""
    rows, others = one.rows, other.rows
    alike = (rows.n_clients, rows.widest, one.start) == (others.n_clients, others.widest, other.start)
    return alike and rows.places is others.places and one.stack is other.stack and one.plan is other.plan


def _name(clients: Clients, batch: Batch, dropout: KeyedDropout | None) -> Hashable:
    """All that a recorded pass depends on, but for what lies in tensors that are copied."""
    plan, stack, start, rows = clients
    scales = stack.scales(start, start + rows.n_clients).items()
    numbers = tuple((tier, scale) for tier, scale in scales if not isinstance(scale, Tensor))
    kinds = tuple((each.shape, each.dtype) for each in batch)
    drops = None if dropout is None else dropout.name
    return stack.name, start, rows.n_clients, rows.widest, numbers, kinds, drops, in_words(plan.objective)


def in_words(objective: Callable[..., Tensor]) -> Hashable:
    """Objectives that are made anew in every round are the same if function and arguments are."""
    if not isinstance(objective, partial):
        return objective
    words = in_words(objective.func), objective.args, tuple(objective.keywords.items())
    try:
        hash(words)
    except TypeError:  # what cannot be compared is a new one each time
        return objective
    return words
