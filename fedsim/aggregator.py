"""Moves tensors between worker 0 and the others, and applies the server update. All collectives live here.

A round has two exchanges: `hand_out` (worker 0 to all: what was learnt and the copies that the cohort starts from) and
`collect` (all to worker 0: the updates). An exchange is a length and then one flat buffer, on a gloo group, since the
server's state is in CPU memory. What travels grows with the cohort, never with the population.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from fedsim.adapters.bank import NEVER
from fedsim.adapters.layout import HEAD_TIER, Slot, byte_count, fit_rank, pad_rank, parse_slot
from fedsim.adapters.wire import pack, unpack
from fedsim.federation import deal
from fedsim.models.client_module import LocalTraining
from fedsim.parts.sharing import is_private
from fedsim.plan import Method, Plan
from fedsim.round import Assignment, ClientUpdate, Outcome, Population, ServerState


@dataclass(frozen=True)
class Workers:
    """The processes of this run: `index` is this one's `fabric.global_rank`."""

    index: int = 0
    count: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is worker 0, the server."""
        return self.index == 0

    @staticmethod
    def is_first_or_alone() -> bool:
        """Whether this process may look at the run folder: worker 0, or any before there is a process group."""
        return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0

    @classmethod
    def from_environment(cls) -> "Workers":
        """Return all processes of the running process group, or one worker when there is none."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"))

    def broadcast(self, payload: bytes | None) -> bytes:
        """Give worker 0's bytes to everyone."""
        if self.count == 1:
            assert payload is not None
            return payload
        length = torch.tensor([len(payload) if payload is not None else 0])
        dist.broadcast(length, 0, group=self.group)
        buffer = _as_tensor(payload) if payload is not None else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(buffer, 0, group=self.group)
        return buffer.numpy().tobytes()

    def gather(self, payload: bytes) -> list[bytes]:
        """Return every worker's bytes on worker 0, in worker order, and nothing elsewhere."""
        if self.count == 1:
            return [payload]
        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.count)]
        dist.all_gather(lengths, torch.tensor([len(payload)]), group=self.group)
        widest = int(max(lengths))
        buffer = torch.zeros(widest, dtype=torch.uint8)
        buffer[: len(payload)] = _as_tensor(payload)
        buffers = [torch.empty(widest, dtype=torch.uint8) for _ in range(self.count)] if self.index == 0 else None
        dist.gather(buffer, buffers, 0, group=self.group)
        return [b[: int(n)].numpy().tobytes() for b, n in zip(buffers or [], lengths, strict=False)]


def _as_tensor(payload: bytes) -> Tensor:
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8)


class Aggregator:
    """The server's half of a round. Every worker has one; only worker 0's holds a bank."""

    def __init__(
        self,
        method: Method,
        population: Population,
        initial: Mapping[Slot, Tensor],
        workers: Workers,
        local: LocalTraining,
    ):
        self.method, self.population, self.initial = method, population, dict(initial)
        self.workers, self.local = workers, local

    def hand_out(
        self, state: ServerState, clients: Sequence[int], *, probe: bool = False, epochs: int | None = None
    ) -> tuple[Plan, list[Assignment]]:
        """Return this round's plan and this worker's assignments: its hand of `clients`, dealt by local steps.

        `probe` asks for the plan's probe instead of its training; `epochs` overrides the recipe's.
        """
        payload = self._pack_copies(state, clients, probe) if self.workers.index == 0 else None
        arrived = unpack(self.workers.broadcast(payload))
        learnt = {key.removeprefix("learnt|"): t for key, t in arrived.items() if key.startswith("learnt|")}
        plan = self._plan(replace(state, learnt=learnt), probe)
        loads = [self.steps(plan, client, epochs) for client in clients]
        mine = deal(clients, loads, self.workers.count)[self.workers.index]
        return plan, [self._assignment(plan, state.round_index, client, arrived, epochs) for client in mine]

    def collect(self, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
        """Return everyone's updates in client order on worker 0, and nothing elsewhere."""
        tensors = {
            f"{update.client}|{slot}": t.contiguous() for update in updates for slot, t in update.tensors.items()
        }
        logs = {str(update.client): [update.n_samples, update.logs] for update in updates}
        payload = pack(tensors | {"logs": _as_tensor(json.dumps(logs).encode())})
        collected = [update for part in self.workers.gather(payload) for update in _updates_of(unpack(part))]
        return sorted(collected, key=lambda update: update.client)

    def step(
        self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]
    ) -> tuple[ServerState, dict[str, object]]:
        """Run the method's server update; return the state with which the next round begins, and what to log.

        Only worker 0 has a server's state to update; on the others the round's number goes up.
        """
        after = replace(state, round_index=state.round_index + 1)
        if not self.workers.is_first:
            return after, {}
        clients = [update.client for update in updates]
        up, down = self.traffic(state, plan, clients)
        outcome = plan.server_update(state, plan, updates)
        last_seen = state.last_seen.clone()
        last_seen[clients] = state.round_index
        after = replace(self.apply(state, plan, outcome), round_index=after.round_index, last_seen=last_seen)
        return after, {**outcome.log, "bytes.up": up, "bytes.down": down}

    def apply(self, state: ServerState, plan: Plan, outcome: Outcome) -> ServerState:
        """Write the outcome's copies into the bank and return the state with what was learnt."""
        bank = state.bank
        for slot, copies in outcome.tensors.items():
            n_groups = max(int(plan.groups(slot).max()), *copies) + 1
            full = {group: pad_rank(value, slot.factor, self.method.lora_rank) for group, value in copies.items()}
            bank.write(slot, full, n_groups, state.round_index)
        return state if outcome.learnt is None else replace(state, learnt=outcome.learnt)

    def steps(self, plan: Plan, client: int, epochs: int | None = None) -> int:
        """Return a client's local steps under this plan."""
        per_epoch = -(-self.population.samples[client] // self.local.batch_size)
        if plan.steps is not None:
            return plan.steps if per_epoch else 0
        return (epochs or self.local.epochs) * per_epoch

    def traffic(self, state: ServerState, plan: Plan, clients: Sequence[int]) -> tuple[int, int]:
        """Return (up, down) bytes of a round, counted on worker 0 before the update, from the slots really sent.

        Down: shared copies in the forward pass that were written since the client last took part (the initial values
        follow from the seed). Up: the trained slots that are shared. Private slots never leave their client.
        """
        up = down = 0
        ids = torch.tensor(clients)
        for slot in self._slots(plan):
            groups = plan.groups(slot)
            if is_private(groups):
                continue
            ranks = [self._lora_rank(plan, client) for client in clients]
            sizes = torch.tensor([byte_count([fit_rank(self.initial[slot], slot.factor, rank)]) for rank in ranks])
            written = state.bank.written_in(slot, groups[ids])
            fresh = (written != NEVER) & (written >= state.last_seen[ids])
            down += int(sizes[fresh].sum())
            up += int(sizes.sum()) * plan.trains(slot)
        return up, down

    def _plan(self, state: ServerState, probe: bool) -> Plan:
        plan = self.method.plan(state, self.population)
        if not probe:
            return plan
        assert plan.probe is not None
        return plan.probe

    def _lora_rank(self, plan: Plan, client: int) -> int:
        return self.method.lora_rank if plan.lora_ranks is None else plan.lora_ranks[client]

    def _slots(self, plan: Plan) -> list[Slot]:
        tiers = plan.tiers or self.method.tiers
        return [slot for slot in self.initial if slot.tier in tiers or slot.tier == HEAD_TIER]

    def _pack_copies(self, state: ServerState, clients: Sequence[int], probe: bool) -> bytes:
        """Serialise what was learnt and, once each, the written copies that these clients hold."""
        tensors = {f"learnt|{name}": t.contiguous() for name, t in state.learnt.items()}
        plan = self._plan(state, probe)
        for slot in self._slots(plan):
            groups = plan.groups(slot)[torch.tensor(clients, dtype=torch.long)].unique()
            groups = groups[state.bank.written_in(slot, groups) != NEVER]
            for group, value in zip(groups.tolist(), state.bank.read(slot, groups), strict=True):
                tensors[f"{slot}|{group}"] = value.contiguous()
        return pack(tensors)

    def _assignment(
        self, plan: Plan, round_index: int, client: int, arrived: Mapping[str, Tensor], epochs: int | None
    ) -> Assignment:
        rank, alpha = self._lora_rank(plan, client), self.method.lora_alpha
        tensors = {}
        for slot in self._slots(plan):
            value = arrived.get(f"{slot}|{int(plan.groups(slot)[client])}", self.initial[slot])
            tensors[slot] = fit_rank(value, slot.factor, rank)
        return Assignment(
            client=client,
            round_index=round_index,
            tensors=tensors,
            trains=frozenset(slot for slot in tensors if plan.trains(slot)),
            scales={} if alpha is None else dict.fromkeys(self.method.tiers, alpha / rank),
            steps=self.steps(plan, client, epochs),
            batch_size=self.local.batch_size,
        )


def _updates_of(tensors: Mapping[str, Tensor]) -> list[ClientUpdate]:
    by_client: dict[str, dict[Slot, Tensor]] = {}
    for key in sorted(tensors.keys() - {"logs"}):  # safetensors returns them in no particular order
        client, _, slot = key.partition("|")
        by_client.setdefault(client, {})[parse_slot(slot)] = tensors[key]
    logs = json.loads(tensors["logs"].numpy().tobytes())
    return [
        ClientUpdate(int(client), n_samples, by_client.get(client, {}), entries)
        for client, (n_samples, entries) in logs.items()
    ]
