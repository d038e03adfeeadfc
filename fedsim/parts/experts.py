"""A group's own expert and the one of all outsiders (FedTreeLoRA, arXiv 2603.13282, phase 3)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsim.adapters.bank import NEVER, Bank
from fedsim.adapters.layout import Slot
from fedsim.parts.tree import Distance, pairwise_distances
from fedsim.round import ClientUpdate, Population


def inside_and_outside(values: Tensor, groups: Tensor, n_groups: int) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Return for every group the mean of its members' values (n, *shape) and that of all others, each client alike.

    Group 0 stands for whom no group holds: both its means are everyone's. A group of 1 … `n_groups` − 1 without a
    member has no mean inside, one without others none outside. ext = (total − group's sum) / (n − |S|).
    """
    wide, n = values.double(), len(values)
    total = wide.sum(0)
    everyone = (total / n).to(values.dtype)
    inside, outside = {0: everyone}, {0: everyone}
    for group in range(1, n_groups):
        members = wide[groups == group]
        if len(members):
            inside[group] = members.mean(0).to(values.dtype)
        if len(members) < n:
            outside[group] = ((total - members.sum(0)) / (n - len(members))).to(values.dtype)
    return inside, outside


def both_experts(
    updates: Sequence[ClientUpdate], groups: Callable[[Slot], Tensor], active: Callable[[Slot], bool], external: str
) -> dict[Slot, Mapping[int, Tensor]]:
    """Return new copies of the updates' slots and, where they are in use, of those of the tier `external`."""
    clients, copies = [update.client for update in updates], dict[Slot, Mapping[int, Tensor]]()
    for slot in updates[0].tensors:
        values, outsider = torch.stack([update.tensors[slot] for update in updates]), slot._replace(tier=external)
        inside, outside = inside_and_outside(values, groups(slot)[clients], int(groups(slot).max()) + 1)
        copies |= {slot: inside, outsider: outside} if active(outsider) else {slot: inside}
    return copies


def with_latecomers(
    bank: Bank,
    learnt: Mapping[str, Tensor],
    updates: Sequence[ClientUpdate],
    groups: Callable[[Slot], Tensor],
    kind: Distance,
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return `learnt` (see `TreeCuts.group`) with a place for updates' clients that had none, and a log of these.

    A client joins the group of the last depth whose experts, averaged over slots, are nearest to the B that it trained,
    and with it that group's ancestors. `groups` gives the group (C,) of every client for a slot.
    """
    joined, labels = {name: value.clone() for name, value in learnt.items()}, learnt["labels"]
    late = [update for update in updates if labels[update.client] == NEVER]
    members = [int((labels == label).nonzero()[0]) for label in range(int(labels.max()) + 1)]
    for update in late:
        total = torch.zeros(len(members), dtype=torch.float64)
        for slot in [slot for slot in update.tensors if slot.factor == "B"]:
            experts = bank.read(slot, groups(slot)[members])
            total += pairwise_distances(torch.cat([update.tensors[slot][None], experts]), kind)[0, 1:]
        for value in joined.values():
            value[update.client] = value[members[int(total.argmin())]]
    log = {"joined": {str(u.client): int(joined["labels"][u.client]) for u in late}} if late else {}
    return joined, dict[str, object](log)


def last_uploads(bank: Bank, updates: Sequence[ClientUpdate], tier: str, population: Population) -> list[ClientUpdate]:
    """Return the updates and, for other seen clients with data, what the bank last kept of theirs in `tier`.

    The slots are those of the updates; a client of whom nothing was ever kept is left out. In client order.
    """
    here, slots = {update.client: update for update in updates}, list(updates[0].tensors)
    for client in [client for client in population.seen if population.samples[client] and client not in here]:
        group = torch.tensor([client])
        places = {slot: slot._replace(tier=tier) for slot in slots}
        if all(int(bank.written_in(place, group)) != NEVER for place in places.values()):
            tensors = {slot: bank.read(place, group)[0] for slot, place in places.items()}
            here[client] = ClientUpdate(client, population.samples[client], tensors)
    return [here[client] for client in sorted(here)]


def logged_lambdas(bank: Bank, updates: Sequence[ClientUpdate]) -> dict[str, object]:
    """Return λ = σ(θ) for each depth, the mean over updates and each client's own; 1 at depths that are not split."""
    gates = [slot for slot in bank.initial if slot.factor == "gate"]
    of_client = {
        str(update.client): [float(update.tensors[s].sigmoid()) if s in update.tensors else 1.0 for s in gates]
        for update in updates
        if any(slot in update.tensors for slot in gates)
    }
    means = np.mean(list(of_client.values()), axis=0).tolist() if of_client else []
    return {"lambda": means, "lambda_by_client": of_client} if of_client else {}


def rename_tiers(update: ClientUpdate, names: Mapping[str, str]) -> ClientUpdate:
    """Return what an update holds in the tiers that `names` renames; the others are left out."""
    tensors = {s._replace(tier=names[s.tier]): tensor for s, tensor in update.tensors.items() if s.tier in names}
    return replace(update, tensors=tensors)
