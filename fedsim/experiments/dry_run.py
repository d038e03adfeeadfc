"""What a run would cost, without training: the first plan of each stage, times the stage's rounds.

Plans are made as if nothing had been learnt. What is merged in a round is sent in the next one; a frozen tier that
starts at zero is one that the server writes. Numbers are the mean client's, times the clients of a round.
"""

import time
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fedsim.adapters.bank import Bank
from fedsim.adapters.layout import Slot
from fedsim.costs.accounting import round_costs
from fedsim.costs.step_cost import byte_size
from fedsim.distributed.launch import check_threads, launch, set_threads
from fedsim.distributed.workers import Workers
from fedsim.experiments.tuning import check_equal_trials, trials_of
from fedsim.models.frozen import cast_weights
from fedsim.plan import is_adapter
from fedsim.report.table import print_table
from fedsim.round import ServerState
from fedsim.run_spec import RunSpec
from fedsim.server.cohort import clients_to_evaluate
from fedsim.server.workload import Workload

COLUMNS = ("one run of", "clients", "clients\na round", "steps\na round", "steps", "samples")
TRAFFIC = ("MB up\na round", "MB down\na round", "MB up", "MB down", "hours")
Estimate = namedtuple("Estimate", "steps samples flops up down is_rough")
"""All rounds of a run, up and down in bytes; rough where a plan depends on what is learnt, or a tier grows."""


class Nothing(Mapping[str, Any]):
    """What was learnt before the first round; it notes whether a plan asks for it."""

    is_read = False

    def __getitem__(self, name: str) -> Any:
        self.is_read = True
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def estimate(spec: RunSpec) -> Estimate:
    """Return what all rounds of a run would take."""
    learnt, seen, n_copies = Nothing(), spec.population.seen, spec.population.n_clients + 1
    work = Workload(spec.method, spec.population, spec.layout, spec.initial_slots(), spec.local)
    start = replace(spec.state(0, work.initial), learnt=learnt, cohort=seen[: spec.n_cohort])
    plans = [spec.method.plan(replace(start, round_index=index), spec.population) for index in range(spec.rounds)]
    started = {slot.tier for slot, value in work.initial.items() if slot.factor == "B" and bool(value.any())}
    share, total, before = spec.n_cohort / len(seen), torch.zeros(5, dtype=torch.float64), list[Slot]()
    for rounds in (list(stage) for _, stage in groupby(range(spec.rounds), lambda index: plans[index].stage)):
        plan = plans[rounds[0]]
        works = {client: [work.of(each, client) for each in plan.passes] for client in seen}
        pairs = [(slot, byte_size(each.shapes[slot])) for of in works.values() for each in of for slot in each.trained]
        trained = {slot for slot, _ in pairs}
        started |= {slot.tier for slot in trained}
        merged = [s for s in work.slots(plan) if s in trained or (is_adapter(s) and s.tier not in started)]
        later, first = (_after_writing(start, work.initial, {*merged, *more}, n_copies) for more in ((), before))
        before = merged  # what a stage merged last is sent in the first round of the next one
        for state, n in ((first if rounds[0] else start, 1), (later, len(rounds) - 1)):
            costs = round_costs(state, plan, work.of, seen, spec.clock, spec.uplink, spec.downlink)
            done = [each for cost in costs if not cost.is_dropped for each in works[cost.client]]
            sums = [(each.steps, each.samples, spec.profile.flops(each), 0, 0) for each in done]
            sums += [(0, 0, 0, cost.bytes_up, cost.bytes_down) for cost in costs]
            total += share * n * torch.tensor(sums, dtype=torch.float64).sum(0)
        growing = [slot for slot in {*merged} - trained if slot.tier in plan.whole_tiers]
        if widest := sum(4 * max(work.initial[slot].shape) ** 2 for slot in growing):
            added = share * sum(size for slot, size in pairs if is_adapter(slot))
            total[4] += spec.n_cohort * sum(added + (1 - share) * min(index * added, widest) for index in rounds)
            learnt.is_read = True
    tested = share * sum(len(plan.passes) for plan in plans) + 1  # after its own training, and after the last round
    between = clients_to_evaluate(spec.population, spec.evaluate_clients, spec.seed)
    n_samples = -(-spec.rounds // spec.evaluate_every) - 1, sum(map(spec.data.test_size, between))
    total[2] += spec.profile.forward * (tested * sum(map(spec.data.test_size, seen)) + n_samples[0] * n_samples[1])
    return Estimate(*total.tolist(), learnt.is_read)


def _after_writing(
    start: ServerState, initial: Mapping[Slot, Tensor], slots: Iterable[Slot], n_copies: int
) -> ServerState:
    """The state of a round after one in which all took part and every copy of these slots was written."""
    rows = {slot: initial[slot].expand(n_copies, *initial[slot].shape) for slot in slots}
    bank = Bank(dict(initial), rows, {slot: torch.zeros(n_copies, dtype=torch.long) for slot in rows})
    return replace(start, bank=bank, last_seen=torch.zeros_like(start.last_seen))


def flops_per_second(spec: RunSpec, threads: int | None) -> tuple[float, str]:
    """Return the speed of a forward pass here, and the kind of its device."""
    fabric = launch()
    set_threads(threads, fabric.device)
    rows = spec.data.train[max(spec.population.seen, key=spec.data.train_size)]
    rows = rows[: spec.local.batch_size if fabric.device.type == "cuda" else 8]
    inputs, _ = spec.data.batch(rows, device=fabric.device)
    with torch.no_grad(), fabric.autocast():
        backbone = fabric.to_device(cast_weights(spec.backbone, fabric.device))
        for _ in range(2):  # the first one warms up
            begun, output = time.perf_counter(), backbone(inputs)
            getattr(output, "logits", output).sum().item()
    return spec.profile.forward * len(rows) / (time.perf_counter() - begun), fabric.device.type


def print_costs(methods: Mapping[str, Any], data: Callable[[int], Any], seeds: Sequence[int], **common: Any) -> None:
    """Print what every method would cost on the first seed, and all of them; raises ValueError as a run would."""
    others, threads = {"out", "resume", "recipe", "timeout", "threads", "local"}, common.get("threads")
    fields = {name: common[name] for name in common.keys() - others} | {"data": data(seeds[0]), "seed": seeds[0]}
    trials = {name: trials_of(entry, common["local"]) for name, entry in methods.items()}
    specs = {name: RunSpec(method=of[0].method, local=of[0].local, **fields) for name, of in trials.items()}
    check_equal_trials(trials), check_threads(threads)
    fabric, hours, rows = launch(), 0.0, []
    speed, device = flops_per_second(next(iter(specs.values())), threads)
    for name, spec in specs.items():
        found, rounds, n_trials = estimate(spec), spec.rounds, len(trials[name])
        of_run = found.flops / speed / fabric.world_size / 3600
        hours += of_run * (len(seeds) + n_trials * (n_trials > 1))
        cells = [f"{n:,.0f}" for n in (len(spec.population.seen), spec.n_cohort, found.steps / rounds, *found[:2])]
        cells += [f"{n / 1e6:,.3f}" for n in (found.up / rounds, found.down / rounds, found.up, found.down)]
        rows.append([name + " ~" * found.is_rough, *cells, f"{of_run:.2g}"])
    console = Console(width=None if Console().is_terminal else 160, quiet=not Workers.is_first_or_alone())
    print_table(console, (*COLUMNS, *TRAFFIC), rows)
    console.print(
        f"All methods, {len(seeds)} seed(s), all trials: about {hours:.2g} hours of {fabric.world_size} worker(s), "
        f"{device}, at {speed / 1e9:.3g} GFLOP a second as timed here, without the server's work. ~ is rough: what is "
        "trained and sent depends on what is learnt, or on a growing tier. Nothing was trained or written.",
        highlight=False,
    )
