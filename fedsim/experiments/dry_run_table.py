"""What runs would cost, printed without training: a rehearsal's counts, and time from a local step measured here."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning.fabric import Fabric
from rich.console import Console
from rich.table import Table

from fedsim.data.federated import FederatedData
from fedsim.distributed.launch import check_threads, launch, set_threads
from fedsim.distributed.workers import Workers
from fedsim.engines.block_size import trial_assignment
from fedsim.experiments.dry_run import Cost, rehearsed
from fedsim.experiments.tuning import Grid, check_equal_trials, trials_of
from fedsim.local_training import LocalTraining
from fedsim.plan import Method, slots_in_use
from fedsim.run_spec import RunSpec
from fedsim.simulation import prepare_engine

PROBE_SAMPLES, QUICK = 8, 0.5
"""On a CPU the probe's first local step has so many samples; if it took longer, in seconds, there is no larger one."""


def seconds_per_sample(spec: RunSpec, threads: int | None = None) -> tuple[float, str]:
    """Return how long one worker here takes to train on a sample, and the kind of its device, from a local step.

    The step is that of a block of clients; on a CPU that of one client with few samples, if that already takes long.
    """
    check_threads(threads)
    fabric = launch()
    set_threads(threads, fabric.device)
    few = replace(spec.local, batch_size=min(spec.local.batch_size, PROBE_SAMPLES), dropout=0.0)
    seconds = float("inf")
    if fabric.device.type == "cpu":
        seconds = _timed_step(spec, few, fabric, 1)
        if seconds * few.batch_size > QUICK:
            return seconds, "cpu"
    return min(seconds, _timed_step(spec, replace(spec.local, dropout=0.0), fabric)), fabric.device.type


def _timed_step(spec: RunSpec, local: LocalTraining, fabric: Fabric, block_size: int | None = None) -> float:
    """Seconds per sample of the second of two local steps of a block."""
    nothing = [rows[:0] for rows in spec.data.test]
    spec = replace(spec, data=replace(spec.data, test=nothing), local=local)
    state = spec.state(0)
    plan = replace(spec.method.plan(state, spec.population), correction=None, measure=None, second_pass=None)
    initial = spec.initial_slots()
    engine = prepare_engine(spec, fabric, initial, Workers(), block_size)
    client = max(spec.population.seen, key=spec.data.train_size)
    tensors = {slot: initial[slot] for slot in slots_in_use(plan, spec.method, initial)}
    block = [trial_assignment(plan, client, tensors, local)] * engine.block_size
    engine.local_update(plan, [block])
    begun = time.perf_counter()
    engine.local_update(plan, [block])
    return (time.perf_counter() - begun) / (min(local.batch_size, spec.data.train_size(client)) * len(block))


def print_costs(
    methods: Mapping[str, Method | Grid],
    data: Callable[[int], FederatedData],
    seeds: Sequence[int],
    *,
    local: LocalTraining,
    threads: int | None = None,
    **common: Any,
) -> None:
    """Print what every method would cost on the first seed, and all of them together; write nothing.

    Raises ValueError for anything that does not fit, as a run would.
    """
    fields = {name: value for name, value in common.items() if name not in ("out", "resume", "recipe", "timeout")}
    federation, trials = data(seeds[0]), {name: trials_of(entry, local) for name, entry in methods.items()}
    settings = {
        name: RunSpec(method=found[0].method, local=found[0].local, data=federation, seed=seeds[0], **fields)
        for name, found in trials.items()
    }
    check_equal_trials(trials)
    fabric = launch()
    if not Workers.is_first_or_alone():
        return
    costs = {name: rehearsed(spec) for name, spec in settings.items()}
    each, device = seconds_per_sample(next(iter(settings.values())), threads)
    hours = {name: cost.load * each / fabric.world_size / 3600 for name, cost in costs.items()}
    tuned = {name: len(found) if len(found) > 1 else 0 for name, found in trials.items()}
    in_all = sum(hours[name] * (len(seeds) + tuned[name]) for name in hours)
    console = Console(width=None if Console().is_terminal else 160)
    console.print(_table(costs, hours))
    console.print(
        f"Runs: {len(seeds)} seed(s) × {len(costs)} method(s), and {sum(tuned.values())} trials of a grid. In all "
        f"about {in_all:.2g} hours of {fabric.world_size} worker(s) on {device}: {1 / each:.0f} samples a second each "
        f"in a local step of {next(iter(settings))} measured here, evaluated samples at half the price, every trial as "
        "its method's first, without the server's work and reading of data. Bytes: from a rehearsal of the server. "
        "Nothing was trained or written.",
        highlight=False,
    )


def _table(costs: Mapping[str, Cost], hours: Mapping[str, float]) -> Table:
    table = Table(title="What a run of each method would cost, on one seed", title_justify="left")
    per_round, in_all = ("steps/round", "MB up/round", "MB down/round"), ("steps", "samples", "MB up", "MB down")
    for column in ("method", "clients", "a round", *per_round, *in_all, "hours"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, cost in costs.items():
        rounds, ways = len(cost.traffic), [sum(way) / 1e6 for way in zip(*cost.traffic, strict=True)]
        row = [f"{cost.clients:,}", f"{cost.cohort:,}", f"{cost.steps / rounds:,.0f}"]
        row += [f"{mega / rounds:.3f}" for mega in ways]
        row += [f"{cost.steps:,}", f"{cost.samples:,}", *(f"{mega:.3f}" for mega in ways), f"{hours[name]:.2g}"]
        table.add_row(name, *row)
    return table
