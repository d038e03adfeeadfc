"""Who shares what: the group of every client, an integer vector (C,), for one slot."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fedsim.adapters.bank import NEVER
from fedsim.adapters.layout import HEAD_TIER, RANK_AXIS, HeadPolicy, Slot
from fedsim.round import ClientUpdate, Outcome, Population


def everyone(population: Population) -> Tensor:
    """One copy for all: group 0 for every client, (C,)."""
    return population.groupings["everyone"]


def alone(population: Population) -> Tensor:
    """A copy for each: every client its own group, (C,)."""
    return population.groupings["alone"]


def is_private(groups: Tensor) -> bool:
    """Whether every client is its own group, so nothing is merged and nothing needs to leave the client."""
    return _facts_of(groups).is_private


def leaves(groups: Tensor) -> bool:
    """Whether what clients train of a slot goes to the server: it is shared, and there are groups."""
    facts = _facts_of(groups)
    return not facts.is_private and facts.width > 0


def width(groups: Tensor) -> int:
    """Return how many groups there are at least: one more than the largest number, 0 without any group."""
    return _facts_of(groups).width


class _Facts(NamedTuple):
    """What is asked of a vector of groups again and again."""

    version: int
    is_private: bool
    width: int


_known: Any = WeakTensorKeyDictionary()
"""Facts by vector, while it lives: a population of a million would be gone through for every slot of every round."""


def _facts_of(groups: Tensor) -> _Facts:
    facts: _Facts | None = _known.get(groups)
    if facts is None or facts.version != groups._version:
        largest = int(groups.max()) if len(groups) else NEVER
        is_private = largest == len(groups) - 1 and torch.equal(groups, torch.arange(len(groups)))
        facts = _known[groups] = _Facts(groups._version, is_private, largest + 1)
    return facts


def ungrouped(population: Population) -> Tensor:
    """No copy yet: every client starts from the slot's initial value, (C,)."""
    return population.groupings["nobody"]


def share_all(slot: Slot, population: Population) -> Tensor:
    """FedAvg's sharing: one copy of every slot."""
    return everyone(population)


def with_head(policy: HeadPolicy, slot: Slot, groups: Tensor, population: Population) -> Tensor:
    """Return `groups`, but for a slot of the head tier the policy's own: alone under "local", else everyone."""
    if slot.tier != HEAD_TIER:
        return groups
    return alone(population) if policy == "local" else everyone(population)


def one_copy(policy: HeadPolicy, slot: Slot, population: Population) -> Tensor:
    """Everyone shares every slot, but for a head of its own under the policy "local"."""
    return with_head(policy, slot, everyone(population), population)


def owners(
    learnt: Mapping[str, Tensor], population: Population, updates: Sequence[ClientUpdate]
) -> tuple[Tensor, list[int]]:
    """Return which clients have an adapter of their own (C,), `has_own` of what was learnt and now those of these
    updates too, and the ids of the others."""
    has_own = learnt.get("has_own", torch.zeros(population.n_clients, dtype=torch.bool)).clone()
    has_own[[update.client for update in updates]] = True
    return has_own, (~has_own).nonzero().flatten().tolist()


def with_newcomers(
    merged: Outcome,
    learnt: Mapping[str, Tensor],
    population: Population,
    tiers: tuple[str, str],
    own: Sequence[ClientUpdate],
) -> Outcome:
    """Return what was merged with copies of the first tier in the second one, for whoever has none of its own there.

    Those of the updates `own` have one from now on.
    """
    has_own, others = owners(learnt, population, own)
    start = handed_down(merged.tensors, *tiers, others)
    slots = (*merged.tensors, *start)
    copies = {slot: {**start.get(slot, {}), **merged.tensors.get(slot, {})} for slot in slots}
    return Outcome(copies, {"has_own": has_own}, merged.log)


def handed_down(
    copies: Mapping[Slot, Mapping[int, Tensor]], source: str, target: str, clients: Iterable[int]
) -> dict[Slot, dict[int, Tensor]]:
    """Return the adapters of the tier `target` with which these clients start: the one copy of the tier `source`."""
    holders = list(clients)
    shared = {slot: held[0] for slot, held in copies.items() if slot.tier == source and slot.factor in RANK_AXIS}
    return {slot._replace(tier=target): dict.fromkeys(holders, value) for slot, value in shared.items() if holders}
