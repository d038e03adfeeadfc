"""Whether an option of a run has a meaning for a method: looks at plans, and refuses by name and reason."""

from collections.abc import Iterable
from typing import Any

from fedsim.adapters.layout import MIDDLE, Slot
from fedsim.parts.aggregation import mean_factors
from fedsim.parts.sharing import is_private
from fedsim.plan import Method, Plan, allocated_update, fedavg_update, slots_in_use
from fedsim.round import Population, ServerState

VARYING = {
    "round_index": "the round",
    "is_last": "the number of rounds",
    "rounds": "the number of rounds",
    "horizon": "the number of rounds",
    "learnt": "what the server has learnt",
    "bank": "what the server holds",
    "last_seen": "when clients last took part",
    "cohort": "who takes part in the round",
}
"""Fields of a state that are other ones in another round, in words."""


def why_no_means(plan: Plan, method: Method) -> str:
    """Why there is no mean of each factor, "" where there is; a server update that leaves it alone `keeps_means`."""
    if plan.combine is not mean_factors:
        return "merges products of factors, not factors"
    if plan.server_update not in (fedavg_update, allocated_update) and not getattr(method, "keeps_means", False):
        return "has a server update of its own"
    return ""


def check_takes_steps(plan: Plan, method: Method, slots: Iterable[Slot]) -> None:
    """Raise ValueError where there is no mean of each factor that the server could step to."""
    used, why = slots_in_use(plan, method, slots), why_no_means(plan, method)
    if not why and all(is_private(plan.groups(slot)) for each in plan.passes for slot in used if each.trains(slot)):
        why = "merges nothing"
    if why:
        raise ValueError(f"{type(method).__name__} {why}, so there is no mean to step to (--server.optimizer none).")


class _Read(Exception):
    """A method asked for a field of the state."""


class _Watched(ServerState):
    """A state that says which field that varies is asked for first."""

    def __getattribute__(self, name: str) -> Any:
        if name in VARYING:
            raise _Read(VARYING[name])
        return super().__getattribute__(name)


def check_plans_alike(method: Method, state: ServerState, population: Population) -> None:
    """Raise ValueError where clients that started in different rounds would not have trained by the same plan."""
    why = ""
    try:
        plan = method.plan(_Watched(**vars(state)), population)
        why = why_no_means(plan, method)
        if plan.correction or plan.measure:
            why = "corrects gradients or measures them, by what the server holds in the round"
    except _Read as read:
        why = f"plans by {read}"
    if why:
        raise ValueError(f"{type(method).__name__} {why}, so it has a meaning in rounds only (--schedule rounds).")


def check_merges_middle(plan: Plan, method: Method, slots: Iterable[Slot]) -> None:
    """Raise ValueError where an H is trained and a merge sees products of B and A, which are not what adapters do."""
    used = slots_in_use(plan, method, slots)
    if plan.combine is not mean_factors and any(slot.factor == MIDDLE and plan.trains(slot) for slot in used):
        raise ValueError(
            f"{type(method).__name__} merges products of B and A, and its adapters are B H A with an H that is "
            "trained. Let H be frozen, or let `combine` of its plan merge factors."
        )
