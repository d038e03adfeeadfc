"""Whether an option of a run has a meaning for a method: looks at plans, and refuses by name and reason."""

from collections.abc import Iterable
from typing import Any

from fedsim.adapters.layout import MIDDLE, Slot
from fedsim.parts.aggregation import mean_factors
from fedsim.parts.privacy import Privacy
from fedsim.parts.sharing import is_private, leaves
from fedsim.plan import Method, Plan, allocated_update, by_samples, equally, fedavg_update, slots_in_use
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
        return str(getattr(method, "takes_no_steps", "has a server update of its own"))
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


def check_private(
    plan: Plan, method: Method, slots: Iterable[Slot], privacy: Privacy, is_by_sample: bool, must_send: bool = True
) -> None:
    """Raise ValueError where clipping and noise would not protect clients under a plan, or protect nothing.

    Of `privacy` the server may only add changes up, unless clients add the noise themselves; and all that leaves a
    client must be changes of shared slots, and with `must_send` some. A method whose server update takes means of
    `merge_groups` alone says `only_merges`. With `is_by_sample` clients train by DP-SGD: what leaves them must be
    trained.
    """
    if is_by_sample and (why := _untrained(plan)):
        raise ValueError(f"{type(method).__name__} {why}; DP-SGD cannot cover that (--local.sample-clip None).")
    if privacy.is_off:
        return
    used, is_local = list(slots), privacy.local
    sent = [[slot for slot in slots_in_use(each, method, used) if each.trains(slot)] for each in plan.passes]
    sent = [[s for s in trained if leaves(each.groups(s))] for each, trained in zip(plan.passes, sent, strict=True)]
    why, hint = _leaves_besides(plan, slots_in_use(plan, method, used), sent), "--privacy.clip None"
    if not why and must_send and not any(sent):
        why = "sends nothing that is merged"
    if not why and not is_local:
        has_groups = any(bool(plan.groups(slot).any()) for trained in sent for slot in trained)
        why, hint = _looks_at(plan, method, has_groups), f"--privacy.local, or {hint}"
    if why:
        raise ValueError(f"{type(method).__name__} {why}; differential privacy cannot cover that ({hint}).")


def _leaves_besides(plan: Plan, used: list[Slot], sent: list[list[Slot]]) -> str:
    """What leaves a client beside the change of its shared slots."""
    if any(plan.uploads(slot) for slot in used):
        return "has clients upload private slots"
    if all(sent) and len(sent) > 1:
        return "trains shared slots twice in a round, and a change is clipped once"
    return _measures(plan)


def _untrained(plan: Plan) -> str:
    """What clients compute from their data beside noisy steps, or by steps with the same noise."""
    parts, stages = [*plan.passes, plan.unseen.plan] if plan.unseen else plan.passes, [p.stage for p in plan.passes]
    if len(set(stages)) < len(stages):
        return f"trains twice in a round as one stage, '{stages[0]}', and so with the same noise"
    return next(filter(None, map(_measures, parts)), "")


def _measures(plan: Plan) -> str:
    """What clients measure on their data beside training."""
    if plan.measure is not None and plan.measure.by == "clients":
        return f"has clients measure a {plan.measure.what.replace('_', ' ')} and send it"
    return ""


def _looks_at(plan: Plan, method: Method, has_groups: bool) -> str:
    """What the server makes of single updates beside their sum."""
    if plan.combine is not mean_factors:
        return "merges products of factors, not factors"
    if plan.lora_ranks is not None and len(set(plan.lora_ranks)) > 1:
        return "counts as zero what clients of smaller LoRA rank lack, which no clipping bounds"
    if plan.weights not in (by_samples, equally):
        return "weighs clients by what they sent"
    if plan.correction is not None:
        return "keeps control variates of single clients"
    if plan.server_update not in (fedavg_update, allocated_update) and not getattr(method, "only_merges", False):
        return "has a server update that looks at single updates"
    return "merges clients by groups, which it found in single updates" if has_groups else ""
