"""The server's half of a round: hands out copies, collects updates, applies the server update.

A round has two exchanges: `dispatch` (worker 0 to each: what was learnt and the copies that its clients start from) and
`collect` (all to worker 0: the updates). An exchange is lengths and then flat buffers, on a gloo group, since the
server's state is in CPU memory. What travels grows with the cohort, never with the population.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedsim.adapters.bank import NEVER
from fedsim.adapters.layout import Slot, fit_rank, pad_rank
from fedsim.distributed.blocks import Load, deal, form_blocks
from fedsim.distributed.messages import pack_updates, scaled_update, unpack_updates
from fedsim.distributed.workers import Workers
from fedsim.parts.downlink import Downlink
from fedsim.parts.privacy import Guard, PrivateMean
from fedsim.parts.schedule import older
from fedsim.parts.server_optimizer import ServerOptimizer, ServerStep
from fedsim.parts.sharing import leaves, width
from fedsim.parts.uplink import kept_back
from fedsim.plan import Part, Plan, corrected_clients
from fedsim.randomness import generator
from fedsim.round import PRESENT, Assignment, ClientUpdate, Outcome, ServerState
from fedsim.server.cohort import Dispatch
from fedsim.server.ledger import Ledger
from fedsim.server.turns import older_row
from fedsim.server.workload import Workload

Holders = Mapping[Slot, Mapping[int, int]]
"""Which group's copy of a slot each of the clients at work holds."""
Dealt = tuple[Plan, Holders, frozenset[Slot], list[list[list[int]]], float]
"""A round's plan, who holds what, slots of sparse downloads, every worker's blocks of clients, and the utilisation."""
OF_ONE, OF_ALL = ("correction", "kept", "older"), ("clients", "cohort", "is_new")
"""What is sent beside copies that clients share: to the worker of one client, and to all."""


class Aggregator:
    """Hands out, collects and merges. Every worker has one; only worker 0's state holds a bank.

    `workload` says what a plan asks of each client, `block_size` how many clients the engine trains together, and
    `n_blocks` how many blocks there are at least where there are clients enough, so that no worker waits while few are
    at work; `optimizer` steps to the mean of clients' results, which is private where there is a `ledger`; `downlink`
    is how they receive what they train.
    """

    def __init__(
        self,
        workload: Workload,
        workers: Workers,
        block_size: int = 1,
        n_blocks: int = 1,
        optimizer: ServerOptimizer | None = None,
        ledger: Ledger | None = None,
        downlink: Downlink | None = None,
    ):
        self.workload, self.workers, self.block_size, self.n_blocks = workload, workers, block_size, n_blocks
        self.optimizer, self.ledger = optimizer or ServerOptimizer(), ledger
        self.downlink = downlink or Downlink()
        self.method, self.population = workload.method, workload.population
        self.initial, self.local = workload.initial, workload.local
        self._learnt: Mapping[str, Tensor] | None = None

    def dispatch(
        self,
        state: ServerState,
        clients: Sequence[int],
        *,
        part: Part | None = None,
        epochs: int | None = None,
        test_sizes: Mapping[int, int] | None = None,
    ) -> Dispatch:
        """Return this round's plan and this worker's blocks of `clients`, dealt by load; worker 0 says who they are.

        A load is local steps x samples x depths passed forward and backward; for an evaluation, `test_sizes` are the
        loads. `part` asks for a plan inside the plan instead; `epochs` overrides the recipe's.
        """
        part, dealt, to_send = part if test_sizes is None else "eval_plan", None, None
        if self.workers.is_first:
            dealt = self._deal(state, clients, part, epochs, test_sizes)
            in_round = test_sizes is None and epochs is None and part != "probe"  # who trains in a round
            to_send = self._shares(self._copies(state, clients, dealt, in_round), dealt)
        arrived = self.workers.scatter_tensors(to_send)
        if dealt is None:
            clients = arrived["clients"].tolist()
            if "is_new" in arrived or self._learnt is None:
                self._learnt = {k.removeprefix("learnt|"): t for k, t in arrived.items() if k.startswith("learnt|")}
            sampled = replace(state, learnt=self._learnt, cohort=tuple(arrived["cohort"].tolist()))
            dealt = self._deal(sampled, clients, part, epochs, test_sizes)
        plan, groups, sparse, hands, utilisation = dealt
        mine = [
            [self._assignment(plan, state.round_index, client, groups, sparse, arrived, epochs) for client in block]
            for block in hands[self.workers.index]
        ]
        return Dispatch(plan, mine, utilisation, list(clients))

    def collect(self, plan: Plan, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
        """Return everyone's updates in client order on worker 0, and nothing elsewhere.

        The method's `scaled_factor` arrives times α/R, as the bank holds it, and its gradient divided by that.
        """
        power = 1 if plan.measure and plan.measure.what == "gradient" else 2
        collected = [
            scaled_update(update, self.workload.scaled_factor, self.workload.scale(plan, update.client), power)
            for update in updates
        ]
        if self.workers.count > 1:
            collected = [u for part in self.workers.gather(pack_updates(collected)) for u in unpack_updates(part)]
        return sorted(collected, key=lambda update: update.client)

    def merge(
        self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate], excluded: Sequence[int] = ()
    ) -> tuple[ServerState, Outcome]:
        """Run the method's server update; return the state with which the next round begins, and what was decided.

        Nothing of the `excluded` clients is merged, as if they had not been sampled. Only worker 0 has a server's state
        to update; on the others the round's number goes up.
        """
        after = replace(state, round_index=state.round_index + 1)
        if not self.workers.is_first:
            return after, Outcome()
        sound = [update for update in updates if update.client not in excluded]
        merged = [update.client for update in sound if update.client != self.population.proxy]
        if self.ledger is not None:  # how many samples a client has is not told, so all weigh alike
            sound = [replace(update, n_samples=min(update.n_samples, 1)) for update in sound]
        step = ServerStep(self.optimizer, state.bank) if self.optimizer.optimizer != "none" else None
        private = self._private(state, plan, sound, step)
        of_round = replace(plan, server_step=private or step, weights=private.weights if private else plan.weights)
        outcome = plan.server_update(state, of_round, sound) if merged else Outcome()
        if private is not None:
            outcome = replace(outcome, tensors={**outcome.tensors, **private.rest()})
        if step is not None:
            outcome = replace(outcome, tensors={**outcome.tensors, **step.moments})
        kept: dict[Slot, dict[int, Tensor]] = {}
        for update in sound:
            for slot, back in update.kept.items():
                kept.setdefault(kept_back(slot), {})[update.client] = back
        outcome = replace(outcome, tensors={**outcome.tensors, **kept})
        state.last_seen[merged] = state.round_index  # in place, like the bank: a copy would cost as much as all clients
        return replace(self.apply(state, plan, outcome), round_index=after.round_index), outcome

    def guard(self, plan: Plan, client: int, shared: Sequence[Slot]) -> Guard:
        """Return what a client does to its change of the slots that leave it."""
        if self.ledger is None:
            return Guard()
        scale, privacy = self.workload.scale(plan, client), self.ledger.privacy
        units = {slot: scale for slot in shared if slot.factor == self.workload.scaled_factor}
        return Guard(privacy.clip or 0.0, self.ledger.deviation if privacy.local else 0.0, units)

    def _private(
        self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate], step: ServerStep | None
    ) -> PrivateMean | None:
        """What merges this round's changes with noise, where the server adds it."""
        if self.ledger is None or self.ledger.privacy.local:
            return None
        of_all = self.ledger.mechanism
        expected = {
            slot: of_all.cohort * n / of_all.clients
            for each in plan.passes
            for slot, n in self.workload.trainers(each).items()
            if leaves(each.groups(slot))
        }
        random = generator(state.seed, "privacy", state.round_index)
        return PrivateMean(state.bank, updates, expected, self.ledger.deviation, random, step)

    def apply(self, state: ServerState, plan: Plan, outcome: Outcome) -> ServerState:
        """Write the outcome's copies into the bank and return the state with what was learnt."""
        bank = state.bank
        for slot, copies in outcome.tensors.items():
            n_groups = max(width(plan.groups(slot)), 1 + max(copies, default=NEVER))
            if slot.tier not in plan.whole_tiers:
                copies = {group: pad_rank(value, slot.factor, self.method.lora_rank) for group, value in copies.items()}
            bank.write(slot, copies, n_groups, state.round_index)
        return state if outcome.learnt is None else replace(state, learnt=outcome.learnt)

    def _deal(
        self,
        state: ServerState,
        clients: Sequence[int],
        part: Part | None,
        epochs: int | None,
        test_sizes: Mapping[int, int] | None,
    ) -> Dealt:
        """What is at work in a round, and where."""
        whole = self.workload.plan(state)
        plan = whole.part(part)
        if test_sizes is not None and plan.evaluate_largest:
            plan = replace(plan, lora_ranks=None)
        if test_sizes is None:
            loads = {client: self.workload.load(plan, client, epochs) for client in clients}
        else:
            loads = {client: Load((-test_sizes[client],), test_sizes[client]) for client in clients}
        ids, sparse = torch.tensor(clients, dtype=torch.long), frozenset[Slot]()
        groups = {slot: plan.groups(slot) for slot in self.workload.slots(plan)}
        if not self.downlink.is_off and part in (None, "second_pass") and epochs is None:  # in a round
            received = {s: whole.groups(s) for s in self.workload.slots(whole) if s.tier not in whole.whole_tiers}
            sparse = frozenset(slot for slot, holders in received.items() if leaves(holders))
            groups |= {slot: received[slot] for slot in received if slot in sparse}  # also of what the first pass saw
        holders = {slot: dict(zip(clients, held[ids].tolist(), strict=True)) for slot, held in groups.items()}
        return plan, holders, sparse, *deal(*form_blocks(loads, self.block_size, self.n_blocks), self.workers.count)

    def _shares(self, copies: Mapping[str, Tensor], dealt: Dealt) -> list[dict[str, Tensor]]:
        """What each worker is sent of these copies: what its own clients start from, and what concerns all."""
        _, groups, _, hands, _ = dealt
        if self.workers.count == 1:
            return [dict(copies)]
        shares = []
        for hand in hands:
            own = [client for block in hand for client in block]
            keys = {f"{slot}|{of_client[client]}" for slot, of_client in groups.items() for client in own}
            keys |= {f"{slot}|{what}|{client}" for what in OF_ONE for slot in groups for client in own}
            shares.append({k: t for k, t in copies.items() if k in keys or k.startswith(("learnt|", *OF_ALL))})
        return shares

    def _copies(self, state: ServerState, clients: Sequence[int], dealt: Dealt, in_round: bool) -> dict[str, Tensor]:
        """Who takes part, what was learnt since the last time and, once each, the written copies that clients hold.

        To train in a round also what they kept back when they last sent something.
        """
        tensors = {"clients": (everyone := torch.tensor(clients, dtype=torch.long))}
        tensors["cohort"] = torch.tensor(state.cohort, dtype=torch.long)
        if self._learnt is not state.learnt:
            self._learnt = state.learnt
            tensors |= {"is_new": torch.tensor(True)}
            tensors |= {f"learnt|{name}": t.contiguous() for name, t in state.learnt.items()}
        plan, holders, *_ = dealt
        for slot, of_client in holders.items():
            groups = torch.tensor(sorted(set(of_client.values())), dtype=torch.long)
            groups = groups[state.bank.written_in(slot, groups) != NEVER]
            for group, value in zip(groups.tolist(), state.bank.read(slot, groups), strict=True):
                tensors[f"{slot}|{group}"] = value.contiguous()
            if in_round and (place := kept_back(slot)) in state.bank.rows:
                ids = everyone[state.bank.written_in(place, everyone) != NEVER]
                kept = zip(ids.tolist(), state.bank.read(place, ids), strict=True)
                tensors |= {f"{slot}|kept|{client}": value.contiguous() for client, value in kept}
            for work in (each for each in state.arrived if in_round and each.place != PRESENT):
                row = torch.tensor([older_row(plan.groups(slot), work)])
                if work.client in of_client and int(state.bank.written_in(older(slot), row)) != NEVER:
                    tensors[f"{slot}|older|{work.client}"] = state.bank.read(older(slot), row)[0].contiguous()
            for client in corrected_clients(plan, slot, clients):
                assert plan.correction is not None
                tensors[f"{slot}|correction|{client}"] = plan.correction(
                    state.bank, slot, client, self.workload.lora_rank(plan, client)
                ).contiguous()
        return tensors

    def _assignment(
        self,
        plan: Plan,
        round_index: int,
        client: int,
        groups: Holders,
        sparse: frozenset[Slot],
        arrived: Mapping[str, Tensor],
        epochs: int | None,
    ) -> Assignment:
        work, alpha = self.workload, self.method.lora_alpha
        rank, scale = work.lora_rank(plan, client), work.scale(plan, client)
        tensors, sent, corrections, kept = {}, {}, {}, {}
        for slot, holders in groups.items():
            copy = arrived.get(f"{slot}|older|{client}", arrived.get(f"{slot}|{holders[client]}"))
            value = self.initial[slot] if copy is None else copy
            value = value if slot.tier in plan.whole_tiers else fit_rank(value, slot.factor, rank)
            is_scaled = slot.factor == work.scaled_factor and scale != 1
            tensors[slot] = value / scale if is_scaled else value
            if slot in sparse and copy is not None and client != self.population.proxy:
                is_first = f"{slot}|older|{client}" in arrived and torch.equal(copy, self.initial[slot])
                sent |= {} if is_first else {slot: tensors[slot]}
            if (correction := arrived.get(f"{slot}|correction|{client}")) is not None:
                corrections[slot] = correction * scale if is_scaled else correction
            if (back := arrived.get(f"{slot}|kept|{client}")) is not None:
                kept[slot] = fit_rank(back, slot.factor, rank)
        tensors |= (received := self.downlink.received(sent))
        tensors = {slot: tensors[slot] for slot in work.slots(plan)} if sparse else tensors
        trains = [slot for slot in tensors if work.trains(plan, slot, client)]
        rates = {slot: plan.rate(slot, self.local.learning_rate) for slot in trains}
        return Assignment(
            client=client,
            round_index=round_index,
            tensors=tensors,
            trains=frozenset(trains),
            scales={tier: (alpha or rank) / rank * plan.tier_scales.get(tier, 1.0) for tier in self.method.tiers},
            steps=work.steps(plan, client, epochs),
            local=self.local,
            corrections=corrections,
            rates={slot: rate for slot, rate in rates.items() if rate != self.local.learning_rate},
            kept=kept,
            withheld={slot: sent[slot] - received[slot] for slot in trains if slot in received},
        )
