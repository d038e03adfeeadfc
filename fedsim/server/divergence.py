"""Clients whose numbers are no longer finite: which they are, and whether the run stops or goes on without them.

Decided on worker 0, once everyone's updates are there, so that it does not depend on engine or number of workers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedsim.errors import Fault, OnNan
from fedsim.round import ClientError, ClientUpdate

SECOND_LOSS = "second_pass.train_loss"
"""Where an update keeps the training loss of what its client trained besides."""


class Diverged(ClientError, Fault):
    """A client's training loss, or a value in its update, is not finite."""


def merge_second_pass(update: ClientUpdate, second: ClientUpdate) -> ClientUpdate:
    """Return a client's update with what it trained besides; of the second one's logs only the loss is kept."""
    logs = {SECOND_LOSS: second.logs["train_loss"]} if "train_loss" in second.logs else {}
    tensors, kept = {**second.tensors, **update.tensors}, {**second.kept, **update.kept}
    return replace(update, tensors=tensors, kept=kept, logs={**update.logs, **logs})


def diverged(updates: Sequence[ClientUpdate]) -> dict[int, str]:
    """Return those clients that sent or logged something that is not finite, and what it is."""
    return {update.client: problem for update in updates if (problem := _problem(update))}


def diverged_clients(updates: Sequence[ClientUpdate], on_nan: OnNan, round_index: int, stage: str) -> list[int]:
    """Return the clients whose updates must not be merged; raises `Diverged` when the run is to stop at the first."""
    problems = diverged(updates)
    if problems and on_nan == "stop":
        first, *others = problems
        also = f"So did {len(others)} more client{'s' * (len(others) > 1)}: {_listed(others)}. " if others else ""
        raise Diverged(
            [first],
            round_index,
            stage,
            ValueError(
                f"{problems[first]}. {also}Nothing of this round was kept; the rounds before it are. Look at the "
                "client's data, train more carefully (--local.learning-rate, --local.clip-norm) in a new run, or "
                "continue this one without such updates: --resume with --on-nan skip."
            ),
        )
    return list(problems)


def event(excluded: Sequence[int]) -> Mapping[str, object]:
    """Return what events.jsonl says of those set aside: nothing when there are none."""
    return {"diverged_clients": list(excluded)} if excluded else {}


def _problem(update: ClientUpdate) -> str:
    """What is not finite in an update ("": nothing)."""
    for name in ("train_loss", SECOND_LOSS):
        if not math.isfinite(loss := update.logs.get(name, 0.0)):
            return f"its training loss is {loss}"
    for slot, tensor in update.tensors.items():
        if not bool(tensor.isfinite().all()):
            return f"its '{slot}' is not finite"
    if not all(bool(tensor.isfinite().all()) for tensor in update.measured.values()):
        return "what it measured is not finite"
    return ""


def _listed(clients: Sequence[int]) -> str:
    return ", ".join(map(str, clients[:8])) + (" …" if len(clients) > 8 else "")
