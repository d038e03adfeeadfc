"""Whose updates the server's next step takes: a round's cohort, or whoever arrives next in simulated time.

Only worker 0 decides; the others are told with what they are handed out. Time passes with costs alone, which follow
from the plan, so who arrives when is known before anybody trains: those of one step train together, whenever they
started.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import inf, isfinite

import torch
from torch import Tensor

from fedsim.adapters.bank import NEVER
from fedsim.adapters.layout import Slot
from fedsim.costs.accounting import round_costs
from fedsim.costs.devices import ClientCost, Clock, Seconds
from fedsim.parts.downlink import Downlink
from fedsim.parts.privacy_loss import Sampling
from fedsim.parts.schedule import Schedule, older
from fedsim.parts.sharing import leaves, width
from fedsim.parts.uplink import Uplink
from fedsim.plan import Plan
from fedsim.round import PRESENT, AtWork, ClientUpdate, ServerState
from fedsim.server.cohort import sample_cohort
from fedsim.server.workload import Workload

SECOND, AT_WORK = "schedule|second", "schedule|at_work"
"""What a checkpoint calls the simulated time, and the clients at work, a row each."""


@dataclass(frozen=True)
class Rounds:
    """Everyone of a round starts together, and the server waits for all of them but those who are dropped."""

    workload: Workload
    schedule: Schedule
    cohort_size: int
    seed: int
    uplink: Uplink
    downlink: Downlink
    clock: Clock | None
    sampling: Sampling = "fixed"

    def begin(self, state: ServerState) -> tuple[ServerState, list[ClientCost]]:
        """Return the state in which the step's clients are known, and what the step costs them."""
        second = self._next_second(state.second, ())
        state = replace(state, second=second)
        state = replace(state, cohort=tuple(self._sampled(state, self.cohort_size)))
        return state, self._costs(state, state.cohort)

    def before_step(
        self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]
    ) -> tuple[ServerState, list[ClientUpdate]]:
        """Return the state to step from, and the updates as if all had started from it."""
        return state, list(updates)

    def ended(
        self, begun: float, state: ServerState, after: ServerState, sums: Mapping[str, object]
    ) -> tuple[ServerState, dict[str, object]]:
        """Return the state after a step that began at the second `begun`, and the step's sums with its time."""
        if not isinstance(took := sums.get("simulated_seconds"), float):
            return after, dict(sums)
        waited = state.second - begun
        return replace(after, second=state.second + took), {**sums, "simulated_seconds": took + waited}

    def _sampled(self, state: ServerState, size: int, without: Sequence[int] = (), draw: int = 0) -> list[int]:
        """Clients that are there now."""
        population, clock, now = self.workload.population, self.clock, state.second
        there = (lambda client: clock.until(client, now) > now) if clock and clock.calendar else None
        key = size, self.seed, state.round_index
        return sample_cohort(population, *key, sampling=self.sampling, draw=draw, without=without, is_there=there)

    def _next_second(self, second: float, without: Sequence[int]) -> float:
        """The first second from this one on at which one of the other clients is there; infinity where none ever is."""
        if self.clock is None or self.clock.calendar is None:
            return second
        best, busy = inf, set(without)
        for client in self.workload.population.seen:
            if client not in busy:
                best = min(best, self.clock.calendar.since(client, second))
            if best == second:
                break
        return best

    def _costs(self, state: ServerState, clients: Sequence[int]) -> list[ClientCost]:
        plan = self.workload.plan(state)
        return round_costs(state, plan, self.workload.of, clients, self.clock, self.uplink, self.downlink)


class Buffered(Rounds):
    """Some clients are always at work; the server steps as soon as some have arrived, and who arrived is replaced.

    Updates that arrive in the same second are taken together; of more than a step takes, those of the lowest ids, and
    the others by the next step. Who arrived or was dropped is drawn again after the step at the earliest.
    """

    def begin(self, state: ServerState) -> tuple[ServerState, list[ClientCost]]:
        """Let time pass until the step's updates have arrived, or nobody is left who could send one."""
        limit, wanted = self.schedule.per_step(self.cohort_size), self.schedule.at_work(self.cohort_size)
        at_work, done, room = list(state.at_work), list[AtWork](), limit
        for draw in count():
            busy = [each.client for each in (*at_work, *done)]
            at_work += self._start(state, wanted - len(at_work), busy, draw)
            second = min(each.ends for each in at_work) if at_work else self._next_second(state.second, busy)
            if not isfinite(second) or len(done) == len(self.workload.population.seen):
                break
            state = replace(state, second=max(second, state.second))
            arriving = sorted(each for each in at_work if each.ends <= state.second)
            on_time = [each for each in arriving if not each.is_dropped][:room]
            ended = on_time + [each for each in arriving if each.is_dropped]
            at_work, room = [each for each in at_work if each not in ended], room - len(on_time)
            done += ended
            if not room:
                break
        arrived = tuple(sorted(done))
        return replace(state, at_work=tuple(at_work), arrived=arrived), [cost_of(each) for each in arrived]

    def before_step(
        self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]
    ) -> tuple[ServerState, list[ClientUpdate]]:
        """Return the state to step from, in which the bank keeps what clients at work have received of it.

        Updates are as if all had started from what the server holds (`Schedule.as_of_now`).
        """
        of_client = {each.client: each for each in state.arrived}
        updates = [self._as_of_now(state, plan, update, of_client[update.client]) for update in updates]
        new = {each.client for each in state.at_work if each.place == PRESENT}
        place = next(place for place in count() if place not in {each.place for each in state.at_work})
        for slot in self._received(plan) if new else ():
            groups = plan.groups(slot)
            held = {int(groups[client]) for client in new} - {NEVER}
            copies = {place * width(groups) + group: state.bank.read(slot, torch.tensor([group]))[0] for group in held}
            if copies:
                state.bank.write(older(slot), copies, (place + 1) * width(groups), state.round_index)
        kept = tuple(each._replace(place=place) if each.client in new else each for each in state.at_work)
        return replace(state, at_work=kept), updates

    def ended(
        self, begun: float, state: ServerState, after: ServerState, sums: Mapping[str, object]
    ) -> tuple[ServerState, dict[str, object]]:
        """Return the state after a step, and the step's sums with its time and the mean staleness."""
        stale = [state.round_index - each.version for each in state.arrived if not each.is_dropped]
        last_seen = after.last_seen.clone()
        for each in state.arrived:
            last_seen[each.client] = min(int(last_seen[each.client]), each.version)
        more = {"simulated_seconds": state.second - begun, "staleness": sum(stale) / max(1, len(stale))}
        return replace(after, arrived=(), last_seen=last_seen), {**sums, **more}

    def _start(self, state: ServerState, n: int, busy: Sequence[int], draw: int) -> list[AtWork]:
        clients = self._sampled(state, n, busy, draw) if n else []
        costs = self._costs(state, clients) if clients else []
        return [at_work_of(cost, state.round_index, state.second) for cost in costs]

    def _received(self, plan: Plan) -> dict[Slot, None]:
        """The slots of which clients receive a copy that others change."""
        slots = ((each, slot) for each in plan.passes for slot in self.workload.slots(each))
        return {slot: None for each, slot in slots if each.trains(slot) and leaves(plan.groups(slot))}

    def _as_of_now(self, state: ServerState, plan: Plan, update: ClientUpdate, work: AtWork) -> ClientUpdate:
        tensors = dict(update.tensors)
        for slot, trained in update.tensors.items():
            groups = plan.groups(slot)
            group, entries = groups[[update.client]], tuple(map(slice, trained.shape))
            if leaves(groups) and int(group) != NEVER:
                held = received = state.bank.read(slot, group)[0][entries]
                if work.place != PRESENT:
                    row = torch.tensor([older_row(groups, work)])
                    received = state.bank.read(older(slot), row)[0][entries]
                tensors[slot] = self.schedule.as_of_now(trained, received, held, state.round_index - work.version)
        return replace(update, tensors=tensors)


def turns_of(
    workload: Workload,
    schedule: Schedule,
    cohort_size: int,
    seed: int,
    uplink: Uplink,
    downlink: Downlink,
    clock: Clock | None,
    sampling: Sampling = "fixed",
) -> Rounds:
    """Return what decides whose updates a step takes."""
    kind = Rounds if schedule.is_rounds else Buffered
    return kind(workload, schedule, cohort_size, seed, uplink, downlink, clock, sampling)


def older_row(groups: Tensor, work: AtWork) -> int:
    """Return the row of what a client received, where that is an older version."""
    return work.place * width(groups) + int(groups[work.client])


def at_work_of(cost: ClientCost, version: int, second: float) -> AtWork:
    """Return a client that starts at this second."""
    assert cost.seconds is not None, "a schedule needs devices"
    ends = second + min(cost.seconds.total, cost.leaves)
    sent = (cost.bytes_down, cost.bytes_up, cost.steps)
    return AtWork(cost.client, version, PRESENT, ends, cost.is_dropped, *sent, *cost.seconds)


def cost_of(work: AtWork) -> ClientCost:
    """Return what a client's work has cost it, now that it has ended."""
    seconds = Seconds(work.down, work.compute, work.up)
    return ClientCost(work.client, work.bytes_down, work.bytes_up, work.steps, seconds, work.is_dropped)


def schedule_tensors(state: ServerState) -> dict[str, Tensor]:
    """Return what a checkpoint keeps of simulated time: nothing where none has passed."""
    if not state.second and not state.at_work:
        return {}
    rows = torch.tensor(state.at_work, dtype=torch.float64).reshape(-1, len(AtWork._fields))
    return {SECOND: torch.tensor(state.second, dtype=torch.float64), AT_WORK: rows}


def with_schedule(state: ServerState, tensors: Mapping[str, Tensor]) -> ServerState:
    """Return the state with what `schedule_tensors` took from it; raises ValueError for what no run writes."""
    if SECOND not in tensors and AT_WORK not in tensors:
        return state
    second, rows = tensors.get(SECOND), tensors.get(AT_WORK)
    are_sound = second is not None and rows is not None and second.dtype == rows.dtype == torch.float64
    are_sound = are_sound and not second.shape and rows.shape == (len(rows), len(AtWork._fields))
    if not are_sound or not bool(rows.isfinite().all()) or not 0 <= float(second) < inf:
        raise ValueError("The checkpoint's simulated time is nothing that a run writes (--resume).")
    kinds = AtWork.__annotations__.values()
    at_work = tuple(AtWork(*(kind(value) for kind, value in zip(kinds, row, strict=True))) for row in rows.tolist())
    clients, n = [each.client for each in at_work], len(state.last_seen)
    if len(set(clients)) < len(clients) or not all(
        0 <= each.client < n and 0 <= each.version < state.round_index and 0 <= each.place < n for each in at_work
    ):
        raise ValueError("The checkpoint's clients at work are none that a run writes (--resume).")
    return replace(state, second=float(second), at_work=at_work)
