"""What a plan asks of each client: slots at its LoRA rank, which of them it trains, steps, samples, and bytes sent.

Every worker works it out for itself, but for bytes, which depend on what the server has written (worker 0).
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedsim.adapters.bank import NEVER
from fedsim.adapters.layout import RANK_AXIS, Layout, Slot, byte_count, fit_rank
from fedsim.costs.step_cost import Work
from fedsim.distributed.blocks import Load
from fedsim.local_training import LocalTraining
from fedsim.parts.sharing import is_private
from fedsim.plan import Method, Plan, is_adapter, is_measured, slots_in_use
from fedsim.round import Population, ServerState


class Workload:
    """A method's clients and slots, from which any plan's work follows; `initial` are the slots' starting values."""

    def __init__(
        self,
        method: Method,
        population: Population,
        layout: Layout,
        initial: Mapping[Slot, Tensor],
        local: LocalTraining,
    ):
        self.method, self.population, self.initial, self.local = method, population, dict(initial), local
        self.depths = layout.depths
        self.seen = frozenset(population.seen)
        self.heads = {site.name for site in layout.sites if site.is_head}

    def slots(self, plan: Plan) -> list[Slot]:
        """Return the slots of the plan's forward pass."""
        return slots_in_use(plan, self.method, self.initial)

    def lora_rank(self, plan: Plan, client: int) -> int:
        """Return a client's LoRA rank; the proxy has the largest."""
        is_largest = plan.lora_ranks is None or client == self.population.proxy
        return self.method.lora_rank if is_largest else plan.lora_ranks[client]

    def trains(self, plan: Plan, slot: Slot, client: int) -> bool:
        """Whether a client trains a slot, by the plan and by its allocation of depths."""
        if plan.allocations is None or client == self.population.proxy or not plan.trains(slot):
            return plan.trains(slot)
        depths = plan.allocations[client]
        return bool(depths) if slot.site in self.heads else self.depths[slot.site] in depths

    def corrected(self, plan: Plan, slot: Slot, clients: Sequence[int]) -> list[int]:
        """Return those of the clients whose gradients of the slot are corrected: only who takes part in training."""
        if plan.correction is None or not plan.trains(slot):
            return []
        return [client for client in clients if client in self.seen]

    def steps(self, plan: Plan, client: int, epochs: int | None = None) -> int:
        """Return a client's local steps; `epochs` overrides the recipe's."""
        per_epoch = math.ceil(self.local.share * -(-self.population.samples[client] // self.local.batch_size))
        if plan.steps is not None:
            return plan.steps if per_epoch else 0
        return (epochs or self.local.epochs) * per_epoch

    def steps_done(self, plan: Plan, client: int) -> int:
        """Return the local steps that a client takes: none where it has nothing to train, or nothing to train on."""
        is_training = any(self.trains(plan, slot, client) for slot in self.slots(plan))
        return self.steps(plan, client) * (is_training and self.population.samples[client] > 0)

    def samples(self, plan: Plan, client: int) -> int:
        """Return the samples that a client passes forward and backward: in its local steps, and where it measures."""
        n, steps = self.population.samples[client], self.steps_done(plan, client)
        if not steps:
            return 0
        return samples_of(n, steps, self.local.batch_size) + n * is_measured(plan, client)

    def of(self, plan: Plan, client: int) -> Work:
        """Return what a client does in a local step, from which its cost follows."""
        rank, slots = self.lora_rank(plan, client), self.slots(plan)
        shapes = {slot: fit_rank(self.initial[slot], slot.factor, rank).shape for slot in slots}
        trained = frozenset(slot for slot in slots if self.trains(plan, slot, client))
        return Work(shapes, trained, self.local)

    def load(self, plan: Plan, client: int, epochs: int | None) -> Load:
        """Return what a client's work is like, for `blocks.form_blocks`."""
        trained = [self.depths[slot.site] for slot in self.slots(plan) if self.trains(plan, slot, client)]
        whole = max(self.depths.values()) + 1
        lowest, steps = min(trained, default=whole), self.steps(plan, client, epochs)
        samples = samples_of(self.population.samples[client], steps, self.local.batch_size) if steps else 0
        return Load((lowest, -steps), samples, whole + whole - lowest)

    def traffic(self, state: ServerState, plan: Plan, clients: Sequence[int]) -> list[tuple[int, int]]:
        """Return (down, up) bytes of each client in a round, before its update, from the slots really sent.

        Down: shared copies in the forward pass that were written since the client last took part (the initial values
        follow from the seed). Who missed a round of a tier that grows gets the whole tier; what a round adds to it is
        counted when it is added. Up: the trained slots that are shared. Private slots never leave their client, nor do
        those without any group, but for those that the plan uploads. A correction down and what is measured up cost as
        much again. The proxy client is the server's own.
        """
        ids, ranks = torch.tensor(clients, dtype=torch.long), [self.lora_rank(plan, client) for client in clients]
        down, up = [0] * len(clients), [0] * len(clients)
        for slot in self.slots(plan):
            groups = plan.groups(slot)
            stays = is_private(groups) or bool((groups == NEVER).all())
            if stays and not plan.uploads(slot):
                continue
            grows, written = slot.tier in plan.whole_tiers, state.bank.written_in(slot, groups[ids])
            missed = written > state.last_seen[ids] if grows else written >= state.last_seen[ids]
            fresh = ((written != NEVER) & missed & (not stays)).tolist()
            sizes = {rank: byte_count([fit_rank(self.initial[slot], slot.factor, rank)]) for rank in set(ranks)}
            whole = self._whole(state, slot) if grows else 0
            corrected = set(self.corrected(plan, slot, clients))
            for place, client in enumerate(clients):
                size = sizes[ranks[place]]
                is_sent = is_measured(plan, client) and (plan.measure.what == "gradient" or is_adapter(slot))
                down[place] += (whole if grows else size) * fresh[place] + size * (client in corrected)
                up[place] += size * self.trains(plan, slot, client) * (1 + is_sent)
        return list(zip(down, up, strict=True))

    def width(self, state: ServerState, slot: Slot) -> int:
        """Return the LoRA rank to which a slot has grown."""
        return state.bank.rows[slot].shape[RANK_AXIS[slot.factor]] if slot in state.bank.rows else 0

    def _whole(self, state: ServerState, slot: Slot) -> int:
        start, axis = self.initial[slot], RANK_AXIS.get(slot.factor)
        if axis is None:  # a classifier does not grow
            return byte_count([start])
        return byte_count([start]) // start.shape[axis] * self.width(state, slot)


def samples_of(n: int, steps: int, batch_size: int) -> int:
    """Return how many samples so many local steps see of a client that has n; its last batch of an epoch is smaller."""
    epochs, rest = divmod(steps, -(-n // batch_size))
    return epochs * n + min(rest * batch_size, n)
