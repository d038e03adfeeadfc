"""What a round costs each client: bytes from the slots really sent, local steps, and who misses the deadline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod

import torch

from fedsim.adapters.bank import NEVER
from fedsim.adapters.layout import byte_count
from fedsim.costs.devices import ClientCost, Clock
from fedsim.costs.step_cost import Work, byte_size
from fedsim.parts.downlink import Downlink
from fedsim.parts.sharing import leaves
from fedsim.parts.uplink import Uplink
from fedsim.plan import Plan, corrected_clients, is_adapter, is_measured
from fedsim.round import Outcome, ServerState

EVERYTHING = Downlink()
"""Downloads that are not sparse."""


def round_costs(
    state: ServerState,
    plan: Plan,
    work_of: Callable[[Plan, int], Work],
    clients: Sequence[int],
    clock: Clock | None,
    uplink: Uplink,
    downlink: Downlink = EVERYTHING,
) -> list[ClientCost]:
    """Return what a round will cost these clients, on worker 0; who misses a deadline or goes away is dropped."""
    works = {client: [work_of(each, client) for each in plan.passes] for client in clients}
    sent = [
        traffic(state, each, {client: works[client][index] for client in clients}, uplink, downlink)
        for index, each in enumerate(plan.passes)
    ]
    costs = [
        ClientCost(
            client,
            sent[0][client][0],  # the second pass starts from what the first one received
            sum(of_pass[client][1] for of_pass in sent),
            sum(work.steps for work in works[client]),
        )
        for client in clients
    ]
    return (
        costs
        if clock is None
        else clock.on_time([clock.timed(cost, works[cost.client], state.second) for cost in costs])
    )


def traffic(
    state: ServerState, plan: Plan, works: Mapping[int, Work], uplink: Uplink, downlink: Downlink = EVERYTHING
) -> dict[int, tuple[int, int]]:
    """Return (down, up) bytes of each client in a round, before its update, from the slots really sent.

    Down: shared copies in the forward pass that were written since the client last took part (the initial values
    follow from the seed). Who missed a round of a tier that grows gets the whole tier; what a round adds to it is
    counted when it is added. Where downloads are sparse, each holds the largest entries of all shared copies that were
    ever written, but for tiers that grow, whatever the client received before. Up, of who takes a step: the trained
    slots that are shared, as `uplink` encodes them. Private slots never leave their client, nor do those without any
    group, but for those that the plan uploads. A correction down and what is measured up cost as much again,
    unencoded. The proxy client is the server's own.
    """
    clients = list(works)
    ids, down, up = torch.tensor(clients, dtype=torch.long), dict.fromkeys(clients, 0), dict.fromkeys(clients, 0)
    encoded, sparse = ({client: list[int]() for client in clients} for _ in range(2))
    measures = {client for client in clients if is_measured(plan, client)}
    for slot in works[clients[0]].shapes if works else ():
        groups = plan.groups(slot)
        stays = not leaves(groups)
        if stays and not plan.uploads(slot):
            continue
        grows, written = slot.tier in plan.whole_tiers, state.bank.written_in(slot, groups[ids])
        missed = written > state.last_seen[ids] if grows else written >= state.last_seen[ids]
        is_sparse = not (downlink.is_off or grows or stays)
        fresh = ((written != NEVER) & (missed | is_sparse) & (not stays)).tolist()
        whole = byte_count([state.bank.rows[slot][0]]) if grows and slot in state.bank.rows else 0
        corrected = set(corrected_clients(plan, slot, clients))
        is_sent = (plan.measure and plan.measure.what == "gradient") or is_adapter(slot)
        for is_fresh, (client, work) in zip(fresh, works.items(), strict=True):
            size = byte_size(work.shapes[slot])
            down[client] += (whole if grows else size) * (is_fresh and not is_sparse) + size * (client in corrected)
            sparse[client] += [prod(work.shapes[slot])] if is_fresh and is_sparse else []
            if slot in work.trained:
                up[client] += size * ((is_sent and client in measures) + (stays and work.steps > 0))
                encoded[client] += [] if stays or not work.steps else [prod(work.shapes[slot])]
    return {
        client: (down[client] + downlink.bytes(sparse[client]), up[client] + uplink.bytes(encoded[client]))
        for client in clients
    }


def account_round(
    costs: Sequence[ClientCost], outcome: Outcome, clock: Clock | None
) -> tuple[list[ClientCost], dict[str, object]]:
    """Return the costs of a round that is over, and their sums for the log: bytes, and with a clock time and drops.

    What was added to a tier that grows is sent to those who took part.
    """
    stack, log = outcome.stack_bytes, dict[str, object]()
    if clock is not None:
        dropped = sum(cost.is_dropped for cost in costs)
        log = {"simulated_seconds": clock.round_seconds(costs, stack), "dropped": dropped}
        costs = [cost if cost.is_dropped else clock.with_stack(cost, stack) for cost in costs]
    costs = [cost if cost.is_dropped else replace(cost, bytes_down=cost.bytes_down + stack) for cost in costs]
    up, down = sum(cost.bytes_up for cost in costs), sum(cost.bytes_down for cost in costs)
    return costs, {"bytes.up": up, "bytes.down": down, **log}
