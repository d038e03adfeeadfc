"""How many clients fit into one pass."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsim.adapters.layout import Slot
from fedsim.data.federated import FederatedData
from fedsim.distributed.blocks import largest_size
from fedsim.options import LocalTraining
from fedsim.plan import Plan
from fedsim.round import Assignment

if TYPE_CHECKING:
    from fedsim.engines.batched import BatchedEngine

CPU_SAMPLES = 128
"""Samples of a pass on a CPU: enough that overhead is small, few enough that activations stay in the cache."""
MEMORY_SHARE = 0.85
"""Share of the free memory of a GPU that a pass may fill."""


def cpu_block_size(local: LocalTraining, n_cohort: int) -> int:
    """Return the default clients of a pass on a CPU: about `CPU_SAMPLES` samples, in an even number of blocks.

    It does not depend on the number of workers, lest results do; an even number suits one worker and two alike. Within
    that number it is as large as can be, so that blocks of unequal clients can cost the same.
    """
    most = max(1, CPU_SAMPLES // local.batch_size)
    n_blocks = -(-n_cohort // most)
    n_blocks += n_blocks % 2
    return max(-(-n_cohort // n_blocks), min(most, largest_size(n_cohort, n_blocks)))


def measured_block_size(engine: "BatchedEngine", plan: Plan, trial: Assignment) -> int:
    """Return how many clients like `trial` fit into the GPU's free memory, from one step with one and with two.

    Memory is linear in clients: what the second one adds is the price of each. Where two do not fit, one has to.
    """
    engine.resize(2)
    data, engine.data = engine.data, longest_batches(engine.data, trial.client, trial.local.batch_size)
    try:
        peaks = _peaks(engine, plan, trial)
    finally:
        engine.data = data
    if engine.pass_size < 2:
        return 1
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(engine.module.device)
    return clients_that_fit(free + torch.cuda.memory_allocated(engine.module.device), *peaks)


def _peaks(engine: "BatchedEngine", plan: Plan, trial: Assignment) -> list[int]:
    """The peaks of memory of a pass with one client and with two."""
    device = engine.module.device
    peaks = []
    for n_clients in (1, 2):
        engine.passes.forget()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        engine.local_update(plan, [[trial] * n_clients])
        peaks.append(torch.cuda.max_memory_allocated(device))
    return peaks


def longest_batches(data: FederatedData, client: int, batch_size: int) -> FederatedData:
    """Return data in which a client has one batch to train on and one to be tested on, of the longest text of all."""

    def batch(table: Tensor, size: int) -> Tensor:
        return table[:size] if data.pad_token is None else data.lengths.argmax().expand(min(len(table), size))

    train, test = list(data.train), list(data.test)
    train[client], test[client] = batch(train[client], batch_size), batch(test[client], 2 * batch_size)
    return replace(data, train=train, test=test)


def clients_that_fit(available: int, peak_of_one: int, peak_of_two: int) -> int:
    """Return how many clients fit into `available` bytes, given the peaks of a pass with one and with two."""
    each = max(peak_of_two - peak_of_one, 1)
    fixed = peak_of_one - each
    return max(1, int((MEMORY_SHARE * available - fixed) // each))


def trial_assignment(plan: Plan, client: int, initial: dict[Slot, Tensor], local: LocalTraining) -> Assignment:
    """Return one step of a client at full LoRA rank: no client of the run needs more memory for its batch size.

    Which texts it is shown, `longest_batches` says.
    """
    trains = frozenset(slot for slot in initial if plan.trains(slot))
    return Assignment(client, 0, initial, trains, {}, 1, local)
