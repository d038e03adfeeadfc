"""The round loop. Start reading here: `simulate` checks and prepares, `Simulation.run_round` is one round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedsim.adapters.bank import NEVER, Bank
from fedsim.adapters.layout import Layout
from fedsim.aggregator import Aggregator, Workers
from fedsim.data.federated import FederatedData
from fedsim.engines.sequential import SequentialEngine
from fedsim.federation import check_cohort_size, population_of, sample_cohort
from fedsim.launch import launch, set_threads
from fedsim.models.client_module import ClientModule, LocalTraining
from fedsim.models.sites import QUERY_VALUE, check_classes, find_sites
from fedsim.parts.initialisation import lora_initial
from fedsim.plan import Engine, Method
from fedsim.randomness import generator
from fedsim.recorder import Recorder, restore_state
from fedsim.report.progress import LiveProgress
from fedsim.report.summary import Result
from fedsim.round import ClientUpdate, ServerState
from fedsim.run_folder import RunFolder, check_is_new, check_same_recipe, load_checkpoint


def simulate(
    *,
    method: Method,
    backbone: nn.Module,
    data: FederatedData,
    rounds: int,
    out: Path | str,
    local: LocalTraining | None = None,
    cohort_size: int | None = None,
    seed: int = 0,
    sites: str = QUERY_VALUE,
    head: str = "",
    threads: int | None = None,
    evaluate_every: int = 1,
    resume: bool = False,
    recipe: Mapping[str, Any] | None = None,
) -> Result | None:
    """Simulate a federation and return its result on worker 0 (None on the others).

    `backbone` is any `nn.Module` from inputs to logits; it is frozen, and adapters go to its linear maps whose names
    match `sites`; `head` is the path of its classifier. Everything is recorded in the folder `out`; with `resume` the
    run there is continued. `recipe` is what recipe.json records. Raises ValueError for anything that does not fit,
    before a process group, training or a file exists.
    """
    local, out = local or LocalTraining(), Path(out)
    recipe = dict(recipe or {"rounds": rounds, "seed": seed, "cohort_size": cohort_size})
    population = population_of(data)
    size = check_cohort_size(cohort_size, population)
    found = find_sites(backbone, sites, head)
    check_classes(found, data.n_classes)
    layout = Layout(found, method.tiers, method.lora_rank, method.head_policy)
    if rounds < 1 or evaluate_every < 1:
        raise ValueError(f"rounds is {rounds} and evaluate_every is {evaluate_every}; both must be 1 or more.")
    if Workers.is_first_or_alone():
        check_same_recipe(out, recipe) if resume else check_is_new(out)
    start, tensors = load_checkpoint(out) if resume else (0, {})

    fabric = launch()
    set_threads(threads)
    workers = Workers.from_environment()
    state = ServerState(int(workers.broadcast(str(start).encode())), rounds)
    initial = lora_initial(layout, generator(seed, "initial"))
    recorder = None
    if workers.is_first:
        fresh = replace(state, bank=Bank(initial), last_seen=torch.full((population.n_clients,), NEVER))
        state = restore_state(fresh, tensors)
        recorder = Recorder(RunFolder.reopen(out, start) if resume else RunFolder.create(out, recipe), population)
    progress = LiveProgress(type(method).__name__, rounds, start, workers.is_first)
    module = fabric.to_device(ClientModule(backbone, found, local))
    simulation = Simulation(
        aggregator=Aggregator(method, population, initial, workers, local),
        engine=SequentialEngine(fabric, module, data, seed, progress.client_done),
        cohort_size=size,
        seed=seed,
        evaluate_every=evaluate_every,
        progress=progress,
        recorder=recorder,
    )
    with progress:
        return simulation.run(state)


@dataclass(frozen=True)
class Simulation:
    """One prepared run. Every worker goes through the same calls; only worker 0 has a recorder."""

    aggregator: Aggregator
    engine: Engine
    cohort_size: int
    seed: int
    evaluate_every: int
    progress: LiveProgress
    recorder: Recorder | None

    def run(self, state: ServerState) -> Result | None:
        """Run the rounds that are left, then let the unseen clients meet the model."""
        while state.round_index < state.rounds:
            state = self.run_round(state)
        return self.meet_unseen(state)

    def run_round(self, state: ServerState) -> ServerState:
        """Plan and hand out, train, collect, combine; then evaluate and record."""
        server, population = self.aggregator, self.aggregator.population
        cohort = sample_cohort(population, self.cohort_size, self.seed, state.round_index)
        plan, mine = server.hand_out(state, cohort)
        self.progress.begin_phase(state.round_index, plan.stage, len(mine))
        updates = server.collect(self.engine.local_update(plan, mine))
        after, log = server.step(state, plan, updates)
        is_due = after.round_index % self.evaluate_every == 0 or after.round_index == after.rounds
        evaluated = self.evaluate(after, population.seen) if is_due else []
        if self.recorder:
            self.recorder.round_done(after, plan.stage, updates, evaluated, log)
            self.progress.end_round(updates, evaluated)
        return after

    def evaluate(self, state: ServerState, clients: Sequence[int]) -> list[ClientUpdate]:
        """Evaluate what clients hold, a cohort's worth at a time so that memory does not grow with the population."""
        evaluated: list[ClientUpdate] = []
        chunk = max(self.cohort_size, self.aggregator.workers.count)
        for begin in range(0, len(clients), chunk):
            plan, mine = self.aggregator.hand_out(state, clients[begin : begin + chunk])
            evaluated += self.aggregator.collect(self.engine.evaluate(plan, mine))
        return evaluated

    def meet_unseen(self, state: ServerState) -> Result | None:
        """Place the unseen clients where the method asks for it, evaluate them untuned, let them tune, and finish."""
        server, population = self.aggregator, self.aggregator.population
        state, admission = self.admit(state)
        untuned = self.evaluate(state, population.unseen)
        plan, mine = server.hand_out(state, population.unseen, epochs=server.local.tune_epochs)
        self.progress.begin_phase(state.round_index, "tuning", len(mine))
        tuned = server.collect(self.engine.local_update(plan, mine))
        if not self.recorder:
            return None
        self.recorder.clients_done(state.round_index, "unseen", untuned, {"after_aggregation": "unseen_untuned"})
        self.recorder.clients_done(state.round_index, "unseen", tuned, {"after_training": "unseen_tuned"})
        return self.recorder.finish(state, admission)

    def admit(self, state: ServerState) -> tuple[ServerState, Mapping[str, Any]]:
        """Let every client train the method's probe, if there is one, and place the unseen ones by it."""
        server, population = self.aggregator, self.aggregator.population
        plan, _ = server.hand_out(state, [])
        if plan.probe is None:
            return state, {}
        probe, mine = server.hand_out(state, list(range(population.n_clients)), probe=True)
        self.progress.begin_phase(state.round_index, "probe", len(mine))
        probes = server.collect(self.engine.local_update(probe, mine))
        if not self.recorder:
            return state, {}
        outcome = plan.admit(state, population, probes)
        return server.apply(state, plan, outcome), outcome.log
