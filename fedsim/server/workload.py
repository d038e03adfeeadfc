"""What a plan asks of each client: slots at its LoRA rank, which of them it trains, steps and samples.

Every worker works it out for itself.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from fedsim.adapters.layout import Layout, Slot, fit_rank
from fedsim.costs.step_cost import Work
from fedsim.distributed.blocks import Load
from fedsim.options import LocalTraining
from fedsim.plan import Method, Plan, is_measured, scaled_factor_of, slots_in_use
from fedsim.round import Population, ServerState


class Workload:
    """A method's clients and slots, from which any plan's work follows; `initial` are the bank's starting values."""

    def __init__(
        self,
        method: Method,
        population: Population,
        layout: Layout,
        initial: Mapping[Slot, Tensor],
        local: LocalTraining,
    ):
        self.method, self.population, self.initial, self.local = method, population, dict(initial), local
        self.scaled_factor = scaled_factor_of(method)
        self.depths = layout.depths
        self.heads = {site.name for site in layout.sites if site.is_head}
        self._planned: tuple[Mapping[str, Tensor], tuple[object, ...], Plan] | None = None

    def plan(self, state: ServerState) -> Plan:
        """Return the method's plan for this state; a round is planned once, however many exchanges it has."""
        key = (state.round_index, state.cohort)
        if self._planned is None or self._planned[0] is not state.learnt or self._planned[1] != key:
            self._planned = state.learnt, key, self.method.plan(state, self.population)
        return self._planned[2]

    def slots(self, plan: Plan) -> list[Slot]:
        """Return the slots of the plan's forward pass."""
        return slots_in_use(plan, self.method, self.initial)

    def lora_rank(self, plan: Plan, client: int) -> int:
        """Return a client's LoRA rank; the proxy has the largest."""
        is_largest = plan.lora_ranks is None or client == self.population.proxy
        return self.method.lora_rank if is_largest else plan.lora_ranks[client]

    def scale(self, plan: Plan, client: int) -> float:
        """Return what the server's `scaled_factor` is divided by when it is handed to a client: its α/R."""
        alpha = self.method.lora_alpha
        return alpha / self.lora_rank(plan, client) if self.scaled_factor and alpha is not None else 1.0

    def trains(self, plan: Plan, slot: Slot, client: int) -> bool:
        """Whether a client trains a slot, by the plan and by its allocation of depths."""
        if plan.allocations is None or client == self.population.proxy or not plan.trains(slot):
            return plan.trains(slot)
        depths = plan.allocations[client]
        return bool(depths) if slot.site in self.heads else self.depths[slot.site] in depths

    def trainers(self, plan: Plan) -> dict[Slot, int]:
        """Return how many of those that take part have samples and train a slot, for each that any of them trains."""
        clients = [client for client in self.population.seen if self.population.samples[client]]
        slots = [slot for slot in self.slots(plan) if plan.trains(slot)]
        if plan.allocations is None:
            return dict.fromkeys(slots, len(clients))
        counts = {slot: sum(self.trains(plan, slot, client) for client in clients) for slot in slots}
        return {slot: n for slot, n in counts.items() if n}

    def steps(self, plan: Plan, client: int, epochs: int | None = None) -> int:
        """Return a client's local steps; `epochs` overrides the recipe's."""
        per_epoch = math.ceil(self.local.share * -(-self.population.samples[client] // self.local.batch_size))
        if plan.steps is not None:
            return plan.steps if per_epoch else 0
        return (epochs or self.local.epochs) * per_epoch

    def of(self, plan: Plan, client: int) -> Work:
        """Return what a client does in a round: nothing where it has nothing to train, or nothing to train on."""
        rank, slots, n = self.lora_rank(plan, client), self.slots(plan), self.population.samples[client]
        shapes = {slot: fit_rank(self.initial[slot], slot.factor, rank).shape for slot in slots}
        trained = frozenset(slot for slot in slots if self.trains(plan, slot, client))
        steps = self.steps(plan, client) if trained and n else 0
        samples = samples_of(n, steps, self.local.batch_size) if steps else 0
        samples += n * (is_measured(plan, client) and bool(trained))
        return Work(shapes, trained, self.local, steps, samples)

    def load(self, plan: Plan, client: int, epochs: int | None) -> Load:
        """Return what a client's work is like, for `blocks.form_blocks`."""
        trained = [self.depths[slot.site] for slot in self.slots(plan) if self.trains(plan, slot, client)]
        whole = max(self.depths.values()) + 1
        lowest, steps = min(trained, default=whole), self.steps(plan, client, epochs)
        samples = samples_of(self.population.samples[client], steps, self.local.batch_size) if steps else 0
        return Load((lowest, -steps), samples, whole + whole - lowest)


def samples_of(n: int, steps: int, batch_size: int) -> int:
    """Return how many samples so many local steps see of a client that has n; its last batch of an epoch is smaller."""
    epochs, rest = divmod(steps, -(-n // batch_size))
    return epochs * n + min(rest * batch_size, n)
