"""The server's half of a round: hands out copies, collects updates, applies the server update.

A round has two exchanges: `hand_out` (worker 0 to all: what was learnt and the copies that the cohort starts from) and
`collect` (all to worker 0: the updates). An exchange is a length and then one flat buffer, on a gloo group, since the
server's state is in CPU memory. What travels grows with the cohort, never with the population.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedsim.adapters.bank import NEVER
from fedsim.adapters.layout import Layout, Slot, byte_count, fit_rank, pad_rank
from fedsim.federation import Hand, deal, form_blocks
from fedsim.local_training import LocalTraining
from fedsim.messages import folded_update, pack_updates, unpack_updates
from fedsim.parts.sharing import is_private
from fedsim.plan import Method, Part, Plan, is_adapter, is_measured, slots_in_use
from fedsim.resources import Work
from fedsim.round import Assignment, ClientUpdate, Outcome, Population, ServerState
from fedsim.workers import Workers


class Aggregator:
    """The server's half of a round. Every worker has one; only worker 0's holds a bank.

    `block_size` is the number of clients that the engine trains together.
    """

    def __init__(
        self,
        method: Method,
        population: Population,
        layout: Layout,
        initial: Mapping[Slot, Tensor],
        workers: Workers,
        local: LocalTraining,
        block_size: int = 1,
    ):
        self.method, self.population, self.initial = method, population, dict(initial)
        self.workers, self.local, self.block_size = workers, local, block_size
        self.depths = layout.depths
        self.seen = frozenset(population.seen)
        self.heads = {site.name for site in layout.sites if site.is_head}

    def hand_out(
        self,
        state: ServerState,
        clients: Sequence[int],
        *,
        part: Part | None = None,
        epochs: int | None = None,
        test_sizes: Mapping[int, int] | None = None,
    ) -> Hand:
        """Return this round's plan and this worker's blocks of `clients`, dealt by load.

        A load is local steps x samples x depths passed forward and backward; for an evaluation, `test_sizes` are the
        loads. `part` asks for a plan inside the plan instead; `epochs` overrides the recipe's.
        """
        part = part if test_sizes is None else "evaluates"
        arrived = self.workers.share(self._copies(state, clients, part) if self.workers.is_first else None)
        learnt = {key.removeprefix("learnt|"): t for key, t in arrived.items() if key.startswith("learnt|")}
        plan = self._plan(replace(state, learnt=learnt), part)
        if test_sizes is not None and plan.evaluate_largest:
            plan = replace(plan, lora_ranks=None)
        if test_sizes is None:
            work = {client: self._work(plan, client, epochs) for client in clients}
        else:
            work = {client: ((-test_sizes[client],), float(test_sizes[client])) for client in clients}
        blocks = form_blocks({client: key for client, (key, _) in work.items()}, self.block_size)
        hands, utilisation = deal(blocks, [sum(work[c][1] for c in block) for block in blocks], self.workers.count)
        groups = {slot: plan.groups(slot).tolist() for slot in self._slots(plan)}
        mine = [
            [self._assignment(plan, state.round_index, client, groups, arrived, epochs) for client in block]
            for block in hands[self.workers.index]
        ]
        return Hand(plan, mine, utilisation)

    def collect(self, plan: Plan, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
        """Return everyone's updates in client order on worker 0, and nothing elsewhere.

        Where the plan folds the scale α/R into a factor, that arrives times it and its gradient divided by it.
        """
        power = 1 if plan.measures == "gradient" else 2
        collected = [folded_update(update, plan.fold, self._fold(plan, update.client), power) for update in updates]
        if self.workers.count > 1:
            collected = [u for part in self.workers.gather(pack_updates(collected)) for u in unpack_updates(part)]
        return sorted(collected, key=lambda update: update.client)

    def step(
        self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate], aside: Sequence[int] = ()
    ) -> tuple[ServerState, dict[str, object]]:
        """Run the method's server update; return the state with which the next round begins, and what to log.

        Nothing of the clients set `aside` is merged, as if they had not been sampled, but their bytes count: they were
        sent. Only worker 0 has a server's state to update; on the others the round's number goes up.
        """
        after = replace(state, round_index=state.round_index + 1)
        if not self.workers.is_first:
            return after, {}
        clients = [update.client for update in updates if update.client != self.population.proxy]
        up, down = self.traffic(state, plan, clients)
        up += self.traffic(state, plan.also, clients)[0] if plan.also else 0
        sound = [update for update in updates if update.client not in aside]
        merged = [client for client in clients if client not in aside]
        outcome = plan.server_update(state, plan, sound) if merged else Outcome()
        down += int(outcome.log.get("bytes.stack", 0)) * len(clients)  # of what was added to a tier that grows
        last_seen = state.last_seen.clone()
        last_seen[merged] = state.round_index
        after = replace(self.apply(state, plan, outcome), round_index=after.round_index, last_seen=last_seen)
        return after, {**outcome.log, "bytes.up": up, "bytes.down": down}

    def apply(self, state: ServerState, plan: Plan, outcome: Outcome) -> ServerState:
        """Write the outcome's copies into the bank and return the state with what was learnt."""
        bank = state.bank
        for slot, copies in outcome.tensors.items():
            n_groups = max(int(plan.groups(slot).max()), *copies) + 1
            if slot.tier not in plan.whole_tiers:
                copies = {group: pad_rank(value, slot.factor, self.method.lora_rank) for group, value in copies.items()}
            bank.write(slot, copies, n_groups, state.round_index)
        return state if outcome.learnt is None else replace(state, learnt=outcome.learnt)

    def steps(self, plan: Plan, client: int, epochs: int | None = None) -> int:
        """Return a client's local steps under this plan."""
        local = plan.local(client, self.local)
        per_epoch = math.ceil(local.share * -(-self.population.samples[client] // local.batch_size))
        if plan.steps is not None:
            return plan.steps if per_epoch else 0
        return (epochs or local.epochs) * per_epoch

    def work_of(self, plan: Plan, client: int) -> Work:
        """Return what a client does under this plan, from which its cost follows."""
        rank, slots = self._lora_rank(plan, client), self._slots(plan)
        shapes = {slot: fit_rank(self.initial[slot], slot.factor, rank).shape for slot in slots}
        trained = frozenset(slot for slot in slots if self._trains(plan, slot, client))
        return Work(shapes, trained, plan.local(client, self.local))

    def _work(self, plan: Plan, client: int, epochs: int | None) -> tuple[tuple[float, ...], float]:
        """What a client's work is like (see `form_blocks`), and its load."""
        trained = [self.depths[slot.site] for slot in self._slots(plan) if self._trains(plan, slot, client)]
        whole = max(self.depths.values()) + 1
        lowest, steps = min(trained, default=whole), self.steps(plan, client, epochs)
        batch_size = plan.local(client, self.local).batch_size
        return (lowest, -steps, -batch_size), float(steps * batch_size * (whole + whole - lowest))

    def _trains(self, plan: Plan, slot: Slot, client: int) -> bool:
        if plan.allocations is None or client == self.population.proxy or not plan.trains(slot):
            return plan.trains(slot)
        depths = plan.allocations[client]
        return bool(depths) if slot.site in self.heads else self.depths[slot.site] in depths

    def traffic(self, state: ServerState, plan: Plan, clients: Sequence[int]) -> tuple[int, int]:
        """Return (up, down) bytes of a round, counted on worker 0 before the update, from the slots really sent.

        Down: shared copies in the forward pass that were written since the client last took part (the initial values
        follow from the seed). Up: the trained slots that are shared. Private slots never leave their client, but for
        those that the plan uploads. A correction down and what is measured up cost as much again. The proxy client is
        the server's own.
        """
        up = down = 0
        ids, ranks = torch.tensor(clients), [self._lora_rank(plan, client) for client in clients]
        for slot in self._slots(plan):
            groups = plan.groups(slot)
            is_own = is_private(groups)
            if (is_own and not plan.uploads(slot)) or slot.tier in plan.whole_tiers:
                continue
            of_rank = {rank: byte_count([fit_rank(self.initial[slot], slot.factor, rank)]) for rank in set(ranks)}
            written, corrected = state.bank.written_in(slot, groups[ids]), set(self._corrected(plan, slot, clients))
            fresh = ((written != NEVER) & (written >= state.last_seen[ids]) & (not is_own)).tolist()
            for client, rank, is_fresh in zip(clients, ranks, fresh, strict=True):
                is_sent = is_measured(plan, client) and (plan.measures == "gradient" or is_adapter(slot))
                up += of_rank[rank] * self._trains(plan, slot, client) * (1 + is_sent)
                down += of_rank[rank] * (is_fresh + (client in corrected))
        return up, down

    def _plan(self, state: ServerState, part: Part | None) -> Plan:
        plan = self.method.plan(state, self.population)
        return getattr(plan, part) or plan if part else plan

    def _lora_rank(self, plan: Plan, client: int) -> int:
        is_largest = plan.lora_ranks is None or client == self.population.proxy
        return self.method.lora_rank if is_largest else plan.lora_ranks[client]

    def _fold(self, plan: Plan, client: int) -> float:
        """The scale α/R of a client that the bank's copies hold; 1 where it is not folded."""
        alpha = self.method.lora_alpha
        return alpha / self._lora_rank(plan, client) if plan.fold and alpha is not None else 1.0

    def _slots(self, plan: Plan) -> list[Slot]:
        return slots_in_use(plan, self.method, self.initial)

    def _copies(self, state: ServerState, clients: Sequence[int], part: Part | None) -> dict[str, Tensor]:
        """What was learnt and, once each, the written copies that these clients hold."""
        tensors = {f"learnt|{name}": t.contiguous() for name, t in state.learnt.items()}
        plan = self._plan(state, part)
        for slot in self._slots(plan):
            groups = plan.groups(slot)[torch.tensor(clients, dtype=torch.long)].unique()
            groups = groups[state.bank.written_in(slot, groups) != NEVER]
            for group, value in zip(groups.tolist(), state.bank.read(slot, groups), strict=True):
                tensors[f"{slot}|{group}"] = value.contiguous()
            for client in self._corrected(plan, slot, clients):
                assert plan.correction is not None
                tensors[f"{slot}|correction|{client}"] = plan.correction(
                    state.bank, slot, client, self._lora_rank(plan, client)
                ).contiguous()
        return tensors

    def _corrected(self, plan: Plan, slot: Slot, clients: Sequence[int]) -> list[int]:
        """Those of the clients whose gradients of the slot are corrected: only who takes part in training."""
        if plan.correction is None or not plan.trains(slot):
            return []
        return [client for client in clients if client in self.seen]

    def _assignment(
        self,
        plan: Plan,
        round_index: int,
        client: int,
        groups: Mapping[Slot, Sequence[int]],
        arrived: Mapping[str, Tensor],
        epochs: int | None,
    ) -> Assignment:
        rank, alpha, fold = self._lora_rank(plan, client), self.method.lora_alpha, self._fold(plan, client)
        tensors, corrections = {}, {}
        for slot, holders in groups.items():
            copy = arrived.get(f"{slot}|{holders[client]}")
            value = self.initial[slot] if copy is None else copy
            value = value if slot.tier in plan.whole_tiers else fit_rank(value, slot.factor, rank)
            is_folded = slot.factor == plan.fold and fold != 1
            tensors[slot] = value / fold if is_folded and copy is not None else value
            if (correction := arrived.get(f"{slot}|correction|{client}")) is not None:
                corrections[slot] = correction * fold if is_folded else correction
        local, trains = plan.local(client, self.local), [slot for slot in tensors if self._trains(plan, slot, client)]
        rates = {slot: plan.rate(slot, local.learning_rate) for slot in trains}
        return Assignment(
            client=client,
            round_index=round_index,
            tensors=tensors,
            trains=frozenset(trains),
            scales={tier: (alpha or rank) / rank * plan.tier_scales.get(tier, 1.0) for tier in self.method.tiers},
            steps=self.steps(plan, client, epochs),
            local=local,
            corrections=corrections,
            rates={slot: rate for slot, rate in rates.items() if rate != local.learning_rate},
        )
