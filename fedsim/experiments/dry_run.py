"""A run without training: what it would take in local steps, samples and bytes.

The server plans, merges and learns in every round as it would, with updates that nobody trained, on adapters cut to a
few features. So stages, clusters and unequal LoRA ranks come and go as in a run, and what each round would send is
counted from the slots at full size. What depends on what is learnt (a stage that ends early, who shares a cluster) may
differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.adapters.layout import Layout, Slot, byte_count
from fedsim.costs.devices import ClientCost
from fedsim.distributed.workers import Workers
from fedsim.plan import Plan, is_measured
from fedsim.randomness import generator
from fedsim.report.progress import LiveProgress
from fedsim.round import Assignment, Block, ClientUpdate, Outcome, ServerState
from fedsim.run_spec import RunSpec
from fedsim.server.aggregator import Aggregator
from fedsim.server.cohort import Dispatch
from fedsim.server.workload import Workload, samples_of
from fedsim.simulation import Simulation

WIDTH = 16
"""Features that a site keeps in a rehearsal, at least; as many as the LoRA rank where that is larger."""


@dataclass(frozen=True)
class Cost:
    """What all rounds of one run take; bytes are (up, down) of every round."""

    clients: int
    cohort: int
    steps: int
    samples: int
    evaluated: int
    traffic: tuple[tuple[int, int], ...]

    @property
    def load(self) -> float:
        """Samples in all; an evaluated one, which has no backward pass, counts half."""
        return self.samples + self.evaluated / 2


def rehearsed(spec: RunSpec) -> Cost:
    """Return the cost of a run, by going through its rounds without training."""
    engine = _Rehearsal(spec)
    server = _Counting(spec, engine)
    state = spec.state(0, server.initial)
    progress = LiveProgress("dry run", spec.rounds, 0, is_shown=False)
    simulation = Simulation(replace(spec, evaluate_every=spec.rounds + 1), server, engine, progress, None)
    while state.round_index < spec.rounds:
        state = simulation.run_round(state)
    every = sum(map(spec.data.test_size, spec.population.seen))
    evaluated = engine.evaluated + every * -(-spec.rounds // spec.evaluate_every)
    clients = len(spec.population.seen)
    return Cost(clients, spec.n_cohort, engine.steps, engine.samples, evaluated, tuple(server.sent))


class _Rehearsal:
    """An engine that trains nothing: it counts the work, and returns the start with some noise."""

    block_size = 1

    def __init__(self, spec: RunSpec):
        self.spec, self.steps, self.samples, self.evaluated = spec, 0, 0, 0

    def local_update(self, plan: Plan, blocks: Sequence[Block]) -> list[ClientUpdate]:
        """Count what these clients would do."""
        return [self._update(plan, assignment) for block in blocks for assignment in block]

    def evaluate(self, plan: Plan, blocks: Sequence[Block]) -> list[ClientUpdate]:
        """Nobody is evaluated."""
        return []

    def measure(self, plan: Plan, blocks: Sequence[Block]) -> list[ClientUpdate]:
        """Count what the proxy client would look at."""
        return [replace(self._update(plan, replace(a, steps=0)), tensors={}) for block in blocks for a in block]

    def _update(self, plan: Plan, assignment: Assignment) -> ClientUpdate:
        client, n = assignment.client, self.spec.data.train_size(assignment.client)
        if assignment.trains and n:
            self.steps += assignment.steps
            self.samples += samples_of(n, assignment.steps, assignment.local.batch_size) + n * is_measured(plan, client)
        self.evaluated += self.spec.data.test_size(client)
        random = generator(self.spec.seed, "rehearsal", assignment.round_index, client)
        noise = {slot: 0.1 * torch.randn(value.shape, generator=random) for slot, value in assignment.tensors.items()}
        trained = {slot: value + noise[slot] for slot, value in assignment.tensors.items() if slot in assignment.trains}
        measured = {slot: noise[slot].square() for slot in trained} if is_measured(plan, client) else {}
        return ClientUpdate(client, n, trained, {"train_loss": 0.0}, measured)


class _Billed(Workload):
    """The work at full size; how wide a tier has grown is what was added to it, at most the width of the maps."""

    added = 0

    def width(self, state: ServerState, slot: Slot) -> int:
        """Return the LoRA rank to which a slot has grown."""
        pair = (self.initial[slot._replace(factor=factor)] for factor in "AB")
        return min(self.added, *(max(value.shape) for value in pair))


class _Counting(Aggregator):
    """A server of narrow adapters that counts bytes as one of the real ones would send them."""

    def __init__(self, spec: RunSpec, engine: _Rehearsal):
        small = _narrow(spec.layout)
        initial, parts = narrow_values(spec, small), (spec.method, spec.population)
        super().__init__(*parts, small, initial, Workers(), spec.local, clock=spec.clock)
        self.billed = self.real = _Billed(*parts, spec.layout, spec.initial_slots(), spec.local)
        self.sent: list[tuple[int, int]] = []

    def stack_bytes(self, outcome: Outcome) -> int:
        """Return what was added to a tier that grows, at full size."""
        first = self.method.tiers[0]
        real, small = (
            byte_count(value for slot, value in work.initial.items() if slot.tier == first and slot.factor in "AB")
            for work in (self.real, self.workload)
        )
        stack = super().stack_bytes(outcome)
        self.real.added += stack * self.method.lora_rank // small
        return round(stack * real / small)

    def step(
        self, state: ServerState, dispatch: Dispatch, updates: Sequence[ClientUpdate], excluded: Sequence[int] = ()
    ) -> tuple[ServerState, dict[str, object], list[ClientCost]]:
        """Update, and note the bytes."""
        after, log, costs = super().step(state, dispatch, updates, excluded)
        self.sent.append((int(log["bytes.up"]), int(log["bytes.down"])))  # type: ignore[call-overload]
        return after, log, costs


def narrow_values(spec: RunSpec, narrow: Layout) -> dict[Slot, Tensor]:
    """Return what the slots of a narrow layout hold at the start, on random weights."""
    random = generator(spec.seed, "rehearsal")
    sites = [site for site in narrow.sites if not site.is_head]
    weights = {site.name: torch.randn(site.out_features, site.in_features, generator=random) for site in sites}
    return spec.initial_slots(narrow, weights)


def _narrow(layout: Layout) -> Layout:
    """A layout with the same slots, of few features each."""
    width = max(layout.lora_rank, WIDTH)
    sites = [replace(site, in_features=width, out_features=width) for site in layout.sites]
    return replace(layout, sites=tuple(sites))
