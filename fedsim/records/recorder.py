"""What is written down after a round and at the end. Used by worker 0 only."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fedsim.adapters.bank import NEVER
from fedsim.costs.devices import ClientCost
from fedsim.data.federated import FederatedData
from fedsim.data.task import Task
from fedsim.plan import Method, slots_in_use
from fedsim.report.evaluation import STATISTICS, client_rows, mean_loss, pooled, prefixes, summarise_updates
from fedsim.report.figures import draw_figures, record_split
from fedsim.report.summary import EPSILONS, Result, summarise_run
from fedsim.round import ClientUpdate, Horizon, Population, ServerState
from fedsim.server.sample_ledger import SAMPLES
from fedsim.server.turns import schedule_tensors, with_schedule
from fedsim.storage.loggers import Curves, Wandb
from fedsim.storage.run_folder import RunFolder
from fedsim.storage.tables import compact
from fedsim.storage.wire import digest_of

BLOCK_SIZE = "block_size"
"""Where a checkpoint keeps the number of clients that are trained together; it is no part of the server's state."""
HORIZON = "horizon"
"""Where it keeps the number of rounds of the run, and whether anything up to it depended on that number, (2,)."""


KEPT = ("learnt", "bank", "last_seen", "holders", "schedule", BLOCK_SIZE, HORIZON, SAMPLES)
"""What the names of a checkpoint's tensors begin with."""


class Recorder:
    """Turns a round's updates into rows, events, curves and a checkpoint; the task says what clients are scored by."""

    def __init__(
        self, folder: RunFolder, population: Population, block_size: int, task: Task, wandb: Wandb | None = None
    ):
        self.folder, self.population, self.block_size = folder, population, torch.tensor(block_size)
        self.task = task
        self.curves = Curves(folder, wandb)
        self.clock = time.perf_counter()

    def started(self, round_index: int, data: FederatedData) -> None:
        """Record, before the first round, how the data were made and split over clients."""
        if not round_index:
            record_split(self.folder, data)
            if data.notes:
                self.folder.log_event(0, {"stage": "data", **data.notes})

    def round_done(
        self,
        after: ServerState,
        stage: str,
        updates: Sequence[ClientUpdate],
        evaluated: Sequence[ClientUpdate],
        log: Mapping[str, Any],
        costs: Sequence[ClientCost] = (),
        beside: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Record the round before `after`: tables, then the checkpoint, which keeps `beside` too."""
        self.folder.check_is_ours()
        round_index, excluded = after.round_index - 1, log.get("diverged_clients", ())
        metrics: dict[str, Any] = {"round": after.round_index, "stage": stage, "clients": len(updates)}
        metrics |= {"diverged_clients": sum(update.client in excluded for update in updates)}
        metrics |= {"train_loss": mean_loss(updates)}
        for evaluation, source in (("personal", updates), ("global", evaluated)):
            summary = summarise_updates(source, evaluation, self.task.metrics)
            names = [f"{prefix}.{name}" for prefix in prefixes(evaluation, self.task.metrics) for name in STATISTICS]
            metrics |= {name: summary.get(name, "") for name in names}
        together = pooled(evaluated, "global", self.task)
        metrics |= {f"global.{name}": value for name, value in together.items()}
        metrics |= {
            name: log.get(name, "")
            for name in ("bytes.up", "bytes.down", "discarded_energy", "relative_change", "utilisation")
        }
        optional = ("evaluated_clients", "simulated_seconds", "dropped", "staleness", *EPSILONS, "delta")
        metrics |= {name: log[name] for name in optional if name in log}
        self.folder.append("metrics.csv", [metrics])
        self.folder.append("costs.csv", [cost.row(round_index) for cost in costs])
        self.clients_done(round_index, stage, updates, {"personal": "personal"})
        self.clients_done(round_index, stage, evaluated, {"global": "global"})
        self.folder.log_event(round_index, {"stage": stage, **log})
        seconds = time.perf_counter() - self.clock
        self.clock = time.perf_counter()
        timing = {"round": after.round_index, "seconds": seconds, "clients_per_second": len(updates) / seconds}
        self.folder.append("timing.csv", [timing])
        curves = metrics | {"clients_per_second": timing["clients_per_second"]}
        self.curves.log({name: value for name, value in curves.items() if _is_number(value)}, after.round_index)
        changes = {f"bank|{name}": value for name, value in after.bank.changes().items()}
        kept = but_for_bank(after) | changes | schedule_tensors(after)
        kept |= {BLOCK_SIZE: self.block_size, **beside}
        self.folder.save_checkpoint(after.round_index, kept)

    def clients_done(
        self, round_index: int, stage: str, updates: Sequence[ClientUpdate], evaluations: Mapping[str, str]
    ) -> None:
        """Add rows to clients.csv; `evaluations` maps what a client logged to what the row calls it."""
        rows = client_rows(updates, evaluations, round_index, stage, self.population.domains, self.task.columns)
        if rows:
            self.folder.append("clients.csv", rows)

    def finish(self, state: ServerState, admission: Mapping[str, Any]) -> Result:
        """Write result.json and return it, with the digest of the final state."""
        self.folder.log_event(state.round_index, {"stage": "unseen", **admission})
        summary: dict[str, Any] = summarise_run(
            self.folder.read_table("metrics.csv"), self.folder.rows_of("clients.csv"), self.task.metrics
        )
        summary |= {f"unseen.{name}": value for name, value in admission.items() if _is_number(value)}
        summary |= cluster_summary(state.learnt.get("labels"), self.population)
        self.folder.append(
            "timing.csv", [{"round": state.round_index + 1, "seconds": time.perf_counter() - self.clock}]
        )
        summary["seconds"] = sum(float(row["seconds"]) for row in self.folder.read_table("timing.csv"))
        parts = {f"bank|{name}": make for name, make in state.bank.state_parts().items()}
        digest = digest_of({**but_for_bank(state), **parts})
        draw_figures(self.folder)
        compact(self.folder.path / "clients.csv")
        self.curves.finish()
        self.folder.finish(summary | {"digest": digest})  # last: with this file the run is complete
        return Result(self.folder.path, summary, digest)


def state_tensors(state: ServerState) -> dict[str, Tensor]:
    """Return all tensors of worker 0's state under flat names, for a checkpoint and for the digest."""
    return but_for_bank(state) | {f"bank|{name}": value for name, value in state.bank.state_tensors().items()}


def but_for_bank(state: ServerState) -> dict[str, Tensor]:
    """Return those of them that are not the bank's."""
    return {f"learnt|{name}": value for name, value in state.learnt.items()} | {"last_seen": state.last_seen}


def restore_state(state: ServerState, tensors: Mapping[str, Tensor]) -> ServerState:
    """Return the state that `state_tensors` took apart; without tensors, `state` itself.

    Raises ValueError for tensors of another run, and for those that no run writes.
    """
    if not tensors:
        return state
    of = {
        prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        for prefix in ("learnt|", "bank|")
    }
    last_seen = tensors.get("last_seen")
    if last_seen is None or last_seen.shape != state.last_seen.shape:
        known = "no clients" if last_seen is None else f"{len(last_seen)} clients"
        raise ValueError(f"The checkpoint knows {known} and this run has {len(state.last_seen)} (--resume).")
    strange = [name for name in tensors if name.partition("|")[0] not in KEPT]
    rounds, size = state.round_index, tensors.get(BLOCK_SIZE, torch.tensor(1))
    if last_seen.dtype != torch.int64 or int(last_seen.min()) < NEVER or int(last_seen.max()) >= rounds:
        strange.append("last_seen")
    if size.dtype != torch.int64 or size.shape or not 0 < int(size) < 2**31:
        strange.append(BLOCK_SIZE)
    if not _is_horizon(tensors.get(HORIZON), rounds):
        strange.append(HORIZON)
    strange += [name for name, value in of["learnt|"].items() if not bool(value.isfinite().all())]
    if strange:
        raise ValueError(f"The checkpoint's '{strange[0]}' is nothing that a run writes (--resume).")
    state = with_schedule(state, tensors)
    state.bank.load_state_tensors(of["bank|"], rounds, most_groups(state))
    horizon = Horizon(state.horizon.rounds, is_read=HORIZON not in tensors or bool(tensors[HORIZON][1]))
    return replace(state, learnt=of["learnt|"], last_seen=last_seen, horizon=horizon)


def check_rounds(rounds: int, method: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError where the run of a checkpoint cannot go on to become one of so many rounds."""
    before, is_read = tensors[HORIZON].tolist()
    if rounds < before:
        raise ValueError(f"rounds is {rounds}, and the resumed run has {before}; they can only grow (--rounds).")
    if rounds > before and is_read:
        raise ValueError(
            f"This run of {before} rounds cannot go on to {rounds}: what {method} has done depends on the number of "
            f"rounds; of {rounds} it would have done otherwise. Resume it with --rounds {before}, or start a new run."
        )


def _is_horizon(kept: Tensor | None, round_index: int) -> bool:
    """Whether a checkpoint before this round may keep this number of rounds; earlier versions kept none."""
    if kept is None:
        return True
    return kept.dtype == torch.int64 and kept.shape == (2,) and int(kept[0]) >= round_index and int(kept[1]) in (0, 1)


def most_groups(state: ServerState) -> int:
    """Return more groups than any slot has: one for each client and some that have none, for each version in use."""
    return (2 * len(state.last_seen) + 2) * (len(state.at_work) + 1)


def check_learnt(state: ServerState, method: Method, population: Population) -> None:
    """Raise ValueError where a method cannot plan a round from what a checkpoint says that it has learnt."""
    try:
        plan = method.plan(state, population)
        parts = [part for part in (plan, plan.second_pass, plan.eval_plan) if part is not None]
        groups = [part.groups(slot) for part in parts for slot in slots_in_use(part, method, state.bank.initial)]
    except Exception as error:  # whatever a method stumbles over
        raise ValueError(f"The checkpoint's learnt tensors do not fit: {type(error).__name__}: {error}.") from error
    largest, ranks = method.lora_rank, [rank for part in parts for rank in part.lora_ranks or ()]
    are_groups = all(
        g.dtype == torch.int64 and g.shape == state.last_seen.shape and int(g.min()) >= NEVER
        and int(g.max()) < most_groups(state) for g in groups
    )  # fmt: skip
    if not are_groups or not all(0 <= rank <= largest for rank in ranks):
        raise ValueError("The checkpoint's learnt tensors do not fit: a client's group or LoRA rank is out of range.")


def cluster_summary(labels: Tensor | None, population: Population) -> dict[str, float]:
    """Return how many clusters of seen clients there are and their adjusted Rand index against domains."""
    if labels is None:
        return {}
    placed = [client for client in population.seen if labels[client] != NEVER]
    found = [int(labels[client]) for client in placed]
    summary: dict[str, float] = {"clusters.count": len(set(found))}
    if population.domains is not None:
        from sklearn.metrics import adjusted_rand_score

        summary["clusters.ari"] = float(adjusted_rand_score([population.domains[client] for client in placed], found))
    return summary


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
