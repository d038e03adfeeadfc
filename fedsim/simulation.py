"""The round loop. Start reading here: `simulate` checks and prepares, `Simulation.run_round` is one round."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedsim.adapters.layout import Slot
from fedsim.costs.accounting import account_round
from fedsim.costs.step_cost import allocation_log
from fedsim.data.placement import move_to_device
from fedsim.distributed.blocks import largest_size
from fedsim.distributed.launch import arithmetic, check_threads, launch, machine, set_threads
from fedsim.distributed.signals import handle_signals, stop_if_asked
from fedsim.distributed.workers import TIMEOUT, Workers, check_timeout
from fedsim.engines import Engine
from fedsim.engines.block_size import cpu_block_size, measured_block_size, trial_assignment
from fedsim.parts.sharing import leaves
from fedsim.parts.uplink import Uplink, sent_by
from fedsim.plan import Plan, slots_in_use
from fedsim.plan_checks import check_private
from fedsim.records.model_record import holders, record_model
from fedsim.records.recorder import HORIZON, Recorder, restore_state
from fedsim.records.resume import start_of
from fedsim.report.progress import LiveProgress
from fedsim.report.summary import Result
from fedsim.round import ClientUpdate, ServerState
from fedsim.run_spec import RunSpec
from fedsim.server.aggregator import Aggregator
from fedsim.server.cohort import Dispatch, clients_to_evaluate, sample_cohort
from fedsim.server.divergence import diverged_clients, event, merge_second_pass
from fedsim.server.ledger import Ledger
from fedsim.server.sample_ledger import SampleLedger
from fedsim.server.turns import Rounds, turns_of
from fedsim.server.workload import Workload
from fedsim.storage.disk import only_writer, writing
from fedsim.storage.run_folder import FINGERPRINT, RunFolder

if TYPE_CHECKING:
    from lightning.fabric import Fabric

PROBED = 50
"""Seen clients whose placing is checked at the end."""
EVALUATED = 32
"""Clients whose adapters are handed out at once for an evaluation, where the cohort is smaller."""


def simulate(
    *,
    out: Path | str,
    resume: bool = False,
    threads: int | None = None,
    timeout: float = TIMEOUT,
    recipe: Mapping[str, Any] | None = None,
    title: str = "",
    **fields: Any,
) -> Result | None:
    """Simulate a federation and return its result on worker 0 (None on the others).

    `fields` are the fields of `RunSpec`: method, backbone, data and rounds, and what else differs from its defaults.
    Everything is recorded in the folder `out`; with `resume` the run there is continued, also to more rounds than it
    had, unless what it has done depends on their number. `recipe` is what recipe.json records, `title` what lines of
    progress call the run, `threads` the CPU threads of a worker, `timeout` the seconds for which workers wait for each
    other. Raises ValueError for anything that does not fit, before a process group, training or a file exists, and
    `Stopped`, a SystemExit, between two rounds when a signal asks for it.
    """
    check_timeout(timeout), check_threads(threads)
    spec, out = RunSpec(**fields), Path(out)
    ledger, samples = ledgers_of(spec)
    recipe = dict(recipe or spec.describe() | {"threads": threads})
    loaded = spec.fingerprint()
    start = start_of(spec, out, recipe, loaded, resume, threads)
    if samples is not None and start.tensors:
        samples.restore(start.tensors)
    fabric, workers = launch(), Workers.from_environment(timeout)
    start = start.agreed(workers, loaded)
    n_threads = set_threads(start.threads, fabric.device, workers.count + workers.n_others == 1)
    workload = Workload(spec.method, spec.population, spec.layout, spec.initial_slots(), spec.local)
    title, shown = title or type(spec.method).__name__, (spec.data.task.metrics[0], workers.post)
    progress = LiveProgress(title, spec.rounds, start.round_index, workers.is_first, None, *shown)
    is_one_shape = spec.engine == "batched" and spec.is_static(fabric.device) and spec.data.pad_token is None
    computing = arithmetic(spec.deterministic, spec.tf32, has_cudnn_attention=is_one_shape)
    with handle_signals(), run_folder_lock(out, workers), progress, computing:
        engine = prepare_engine(spec, fabric, workload.initial, workers, start.block_size, progress.client_done)
        n_blocks = -(-spec.n_cohort // engine.block_size)
        aggregator = Aggregator(workload, workers, engine.block_size, n_blocks, spec.server, ledger, spec.downlink)
        codecs = spec.uplink, spec.downlink
        of_run = spec.schedule, spec.n_together, spec.seed, *codecs, spec.clock, spec.cohort_sampling
        turns = turns_of(workload, *of_run)
        state, recorder = spec.state(start.round_index), None
        if workers.is_first:
            state = restore_state(spec.state(start.round_index, workload.initial, out), start.tensors)
            made_with = recipe | {FINGERPRINT: loaded}, machine(fabric, workers.count, n_threads)
            folder = RunFolder.reopen(out, start.round_index, recipe) if resume else RunFolder.create(out, *made_with)
            record_model(out, spec, workload.initial)
            recorder = Recorder(folder, spec.population, engine.block_size, spec.data.task, spec.wandb)
        return Simulation(spec, aggregator, turns, engine, progress, recorder, samples).run(state)


def ledgers_of(spec: RunSpec) -> tuple[Ledger | None, SampleLedger | None]:
    """Return what counts what clients, and what their samples, give away under differential privacy."""
    privacy, local, who = spec.privacy, spec.local, spec.population
    of_clients = None if privacy.is_off else Ledger(privacy, spec.mechanism, who, spec.seed, spec.rounds)
    return of_clients, None if local.sample_clip is None else SampleLedger(local, privacy.delta, who)


def run_folder_lock(out: Path, workers: Workers) -> AbstractContextManager[None]:
    """Return what holds the run folder for worker 0, the only one that writes; for the others nothing."""
    return only_writer(out) if workers.is_first else nullcontext()


def prepare_engine(
    spec: RunSpec,
    fabric: "Fabric",
    initial: dict[Slot, Tensor],
    workers: Workers,
    kept_block_size: int | None = None,
    on_client: Callable[[ClientUpdate], None] = lambda update: None,
) -> Engine:
    """Return the engine that the setting asks for, with a block size that all workers have in common.

    `kept_block_size` is that of the run which is resumed. On a GPU it is measured: what fits on the fullest one.
    """
    from fedsim.engines.batched import BatchedEngine
    from fedsim.engines.sequential import SequentialEngine
    from fedsim.models.client_module import ClientModule
    from fedsim.models.frozen import cast_weights

    data, layout = move_to_device(spec.data, fabric.device), spec.layout
    with fabric.autocast():
        backbone = cast_weights(spec.backbone, fabric.device)
    module = fabric.to_device(ClientModule(backbone, layout.sites, spec.compile, layout.mixing))
    if spec.engine == "sequential":
        return SequentialEngine(fabric, module, data, spec.seed, on_client)
    block_size, is_static = spec.block_size or kept_block_size, spec.is_static(fabric.device)
    default_size = cpu_block_size(spec.local, spec.n_cohort)
    shapes = {"is_static": is_static, "is_recorded": spec.cuda_graphs}
    engine = BatchedEngine(fabric, module, data, spec.seed, block_size or default_size, **shapes)
    if block_size is None and fabric.device.type == "cuda":
        plan = spec.method.plan(spec.state(0), spec.population)
        client = max(spec.population.seen, key=spec.data.train_size)
        tensors = {slot: initial[slot] for slot in slots_in_use(plan, spec.method, initial)}
        fits = measured_block_size(engine, plan, trial_assignment(plan, client, tensors, spec.local))
        share = largest_size(spec.n_cohort, workers.count + workers.n_others)  # the same in teams
        engine.resize(min(share, *workers.all_numbers(fits)))
    engine.on_client = on_client
    return engine


@dataclass(frozen=True)
class Simulation:
    """One prepared run. Every worker goes through the same calls; only worker 0 has a recorder."""

    spec: RunSpec
    aggregator: Aggregator
    turns: Rounds
    engine: Engine
    progress: LiveProgress
    recorder: Recorder | None
    samples: SampleLedger | None = None

    def run(self, state: ServerState) -> Result | None:
        """Say how the data were made, run the rounds that are left, then let the unseen clients meet the model."""
        if self.recorder:
            self.recorder.started(state.round_index, self.spec.data)
            self.progress.show_data(self.spec.data.notes)
        while True:
            stop_if_asked(self.aggregator.workers, state.round_index, self.spec.rounds, self.progress.title)
            if state.round_index == self.spec.rounds:
                return self.evaluate_unseen(state)
            state = self.run_round(state)

    def run_round(self, state: ServerState) -> ServerState:
        """Plan and hand out, train, collect, combine; then evaluate and record."""
        aggregator, population, begun = self.aggregator, self.aggregator.population, state.second
        state, costs = self.turns.begin(state) if aggregator.workers.is_first else (state, [])
        dispatch = aggregator.dispatch(state, [cost.client for cost in costs if not cost.is_dropped])
        is_by_sample = self.samples is not None
        of_run = aggregator.method, aggregator.initial, self.spec.privacy, is_by_sample
        check_private(dispatch.plan, *of_run, must_send=False)  # later plans may ask for what the first one did not
        updates = self.train(state, dispatch)
        if dispatch.plan.second_pass is not None:
            more = self.train(state, aggregator.dispatch(state, dispatch.clients, part="second_pass"))
            updates = [merge_second_pass(update, second) for update, second in zip(updates, more, strict=True)]
        every = [*updates, *self.measure_on_proxy(state, dispatch.plan)]
        excluded = diverged_clients(every, self.spec.on_nan, state.round_index, dispatch.plan.stage)
        state, every = self.turns.before_step(state, dispatch.plan, every)
        with writing(state.bank.folder or Path()):
            after, outcome = aggregator.merge(state, dispatch.plan, every, excluded)
        costs, sums = account_round(costs, outcome, self.spec.clock)
        after, sums = self.turns.ended(begun, state, after, sums)
        horizon = torch.tensor([after.horizon.rounds, after.horizon.is_read])  # before the next round is looked at
        evaluated = self.evaluate(after, self.due(after.round_index))
        if self.recorder:
            log = {**self.resources(dispatch.plan, dispatch.clients), **outcome.log, **sums, **event(excluded)}
            log |= {"utilisation": dispatch.utilisation}
            log |= aggregator.ledger.log(state.round_index) if aggregator.ledger else {}
            if self.samples is not None:
                log |= self.samples.log(dispatch.plan, dispatch.clients, aggregator.workload, state.round_index)
            log |= {"evaluated_clients": len(evaluated)} if self.spec.evaluate_clients else {}
            log |= {"resources": self.spec.costs()} if state.round_index == 0 else {}
            held = holders(aggregator.method, replace(after, cohort=()), population, list(aggregator.initial))
            held |= {HORIZON: horizon} | (self.samples.kept if self.samples else {})
            self.recorder.round_done(after, dispatch.plan.stage, updates, evaluated, log, costs, held)
            self.progress.end_round(updates, evaluated, len(population.seen), log)
        return after

    def due(self, n_rounds: int) -> Sequence[int]:
        """Return the clients that are evaluated after so many rounds: all seen ones after the last."""
        spec, is_last = self.spec, n_rounds == self.spec.rounds
        is_due = is_last or n_rounds % spec.evaluate_every == 0
        few = None if is_last else spec.evaluate_clients
        return clients_to_evaluate(spec.population, few, spec.seed) if is_due else []

    def train(self, state: ServerState, dispatch: Dispatch) -> list[ClientUpdate]:
        """Train the clients that were handed out; worker 0 gets everyone's updates."""
        self.progress.begin_phase(state.round_index, dispatch.plan.stage, dispatch.n_clients)
        updates = self.engine.local_update(dispatch.plan, dispatch.blocks)
        sent = self.encoded(dispatch, updates, self.spec.uplink)
        return self.aggregator.collect(dispatch.plan, dispatch.from_dense(sent))

    def encoded(self, dispatch: Dispatch, updates: list[ClientUpdate], uplink: Uplink) -> list[ClientUpdate]:
        """Return updates as they arrive at the server, where a client clips, noises or encodes what it sends."""
        plan, aggregator = dispatch.plan, self.aggregator
        if uplink.is_off and aggregator.ledger is None:
            return updates
        assignments = {assignment.client: assignment for block in dispatch.blocks for assignment in block}
        shared = [slot for slot in aggregator.workload.slots(plan) if leaves(plan.groups(slot))]
        of_run = shared, self.spec.seed, plan.stage
        return [
            sent_by(uplink, aggregator.guard(plan, u.client, shared), u, assignments[u.client], *of_run)
            for u in updates
        ]

    def resources(self, plan: Plan, clients: Sequence[int]) -> dict[str, object]:
        """Return what is logged of who trained which depths, where a plan allocates them."""
        return allocation_log(self.spec.profile, plan.allocations, clients, partial(self.aggregator.workload.of, plan))

    def measure_on_proxy(self, state: ServerState, plan: Plan) -> list[ClientUpdate]:
        """Let the server's proxy client measure the model of this round, where the plan asks for it."""
        if plan.measure is None or plan.measure.by != "proxy":
            return []
        if (proxy := self.aggregator.population.proxy) is None:
            raise ValueError("The method measures on the server's own data and there are none (--data.proxy-samples).")
        dispatch = self.aggregator.dispatch(state, [proxy])
        return self.aggregator.collect(dispatch.plan, self.engine.measure(dispatch.plan, dispatch.blocks))

    def evaluate(self, state: ServerState, clients: Sequence[int]) -> list[ClientUpdate]:
        """Evaluate what clients hold, a cohort's worth at a time so that memory does not grow with the population."""
        evaluated: list[ClientUpdate] = []
        chunk = max(self.spec.n_cohort, EVALUATED)
        for begin in range(0, len(clients), chunk):
            some = clients[begin : begin + chunk]
            test_sizes = {client: self.spec.data.test_size(client) for client in some}
            dispatch = self.aggregator.dispatch(state, some, test_sizes=test_sizes)
            evaluated += self.aggregator.collect(dispatch.plan, self.engine.evaluate(dispatch.plan, dispatch.blocks))
        return evaluated

    def evaluate_unseen(self, state: ServerState) -> Result | None:
        """Place the unseen clients where the method asks for it, evaluate them untuned, let them tune, and finish."""
        aggregator, population = self.aggregator, self.aggregator.population
        state, admission, excluded = self.admit(state)
        untuned = self.evaluate(state, population.unseen)
        dispatch = aggregator.dispatch(state, population.unseen, epochs=aggregator.local.tune_epochs)
        self.progress.begin_phase(state.round_index, "tuning", dispatch.n_clients)
        tuned = aggregator.collect(dispatch.plan, self.engine.local_update(dispatch.plan, dispatch.blocks))
        excluded = [*excluded, *diverged_clients(tuned, self.spec.on_nan, state.round_index, "tuning")]
        if not self.recorder:
            return None
        self.recorder.clients_done(state.round_index, "unseen", untuned, {"global": "unseen.untuned"})
        self.recorder.clients_done(state.round_index, "unseen", tuned, {"personal": "unseen.tuned"})
        return self.recorder.finish(state, {**admission, **event(sorted(set(excluded)))})

    def admit(self, state: ServerState) -> tuple[ServerState, Mapping[str, Any], list[int]]:
        """Let unseen clients train the method's probe, if there is one, and place them by it.

        Up to `PROBED` seen clients train it too, to see whether they would be placed where they belong. Returns the
        state, what to log and the clients whose probe was set aside; those are not placed.
        """
        aggregator, population = self.aggregator, self.aggregator.population
        plan = aggregator.dispatch(state, []).plan
        if plan.unseen is None:
            return state, {}, []
        seen = sample_cohort(population, min(PROBED, len(population.seen)), self.spec.seed, state.round_index)
        dispatch = aggregator.dispatch(state, [*population.unseen, *seen], part="probe")
        self.progress.begin_phase(state.round_index, "probe", dispatch.n_clients)
        probes = self.encoded(dispatch, self.engine.local_update(dispatch.plan, dispatch.blocks), Uplink())
        probes = aggregator.collect(dispatch.plan, probes)
        excluded = diverged_clients(probes, self.spec.on_nan, state.round_index, "probe")
        if not self.recorder:
            return state, {}, []
        outcome = plan.unseen.admit(state, population, [probe for probe in probes if probe.client not in excluded])
        return aggregator.apply(state, plan, outcome), outcome.log, excluded
