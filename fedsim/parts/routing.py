"""How HiLoRA places clients that were not clustered: by the cluster whose subspace is nearest to what they trained."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedsim.adapters.bank import NEVER, Bank
from fedsim.adapters.layout import RANK_AXIS, Slot
from fedsim.parts.clustering import column_basis, common_basis, group_similarities
from fedsim.parts.directions import TIER, Found, Kind, changes, column_bases
from fedsim.round import ClientUpdate, Population


def adapters_of(tier: str, slot: Slot) -> bool:
    """Train the LoRA factors of one tier, and no head."""
    return slot.tier == tier and slot.factor in RANK_AXIS


class Prototypes(NamedTuple):
    """What stands for one cluster at each site: a subspace (O, R), and those that single members are left out of."""

    centres: dict[Slot, Tensor]
    without: dict[int, dict[Slot, Tensor]]


class Routes(NamedTuple):
    """The nearest cluster of every client, and of those whose own direction is in a prototype, the nearest without."""

    nearest: dict[int, int]
    left_out: dict[int, int]


def route_by_members(
    bank: Bank, labels: Tensor, updates: Sequence[ClientUpdate], tier: str, kind: Kind, checked: Sequence[int] = ()
) -> Routes:
    """Return argmax_j of mean cos² between what moved in B and each cluster, for each update's client.

    A cluster's subspace is what its members' directions have most in common, so both sides live in the same space.
    Members that were routed themselves have no direction and do not count. Clients of `checked` that are members are
    also routed with their own direction left out; the cluster of one alone then has no subspace, and is not its own.
    """
    place = next(slot for slot in bank.rows if slot.tier == TIER and slot.factor == "B")
    has_direction = bank.written_in(place, torch.arange(len(labels))) != NEVER
    members = [((labels == j) & has_direction).nonzero().flatten().tolist() for j in range(int(labels.max()) + 1)]
    clusters = [_prototypes(bank, clients, set(checked)) for clients in members]
    return _routes(clusters, changes(bank, updates, tier, kind), [update.client for update in updates])


def _prototypes(bank: Bank, members: Sequence[int], checked: set[int]) -> Prototypes:
    centres, without = {}, {client: dict[Slot, Tensor]() for client in members if client in checked}
    for slot, bases in column_bases(bank, {}, members):
        centres[slot] = common_basis(bases)
        for row, client in enumerate(members):
            if client in without:
                others = torch.cat([bases[:row], bases[row + 1 :]])
                without[client][slot] = common_basis(others) if len(others) else torch.zeros_like(centres[slot])
    return Prototypes(centres, without)


def route_by_adapters(bank: Bank, labels: Tensor, updates: Sequence[ClientUpdate], tier: str) -> Routes:
    """Return argmax_j of mean cos² between B, trained from the start of this tier, and the B of each cluster's adapter.

    A cluster that nobody trained has no subspace. What a member trained is part of its cluster's B and cannot be left
    out, so no client is routed without it.
    """
    moved, groups = changes(bank, updates, tier, "factor"), torch.arange(int(labels.max()) + 1)
    trained = {slot: bank.read(slot, groups) for slot in moved}
    is_trained = torch.stack([B.flatten(1).any(1) for B in trained.values()]).any(0)
    clusters = [
        Prototypes({slot._replace(tier=TIER): column_basis(B[j]) * is_trained[j] for slot, B in trained.items()}, {})
        for j in range(len(groups))
    ]
    return _routes(clusters, moved, [update.client for update in updates])


def _routes(clusters: Sequence[Prototypes], moved: Mapping[Slot, Tensor], clients: Sequence[int]) -> Routes:
    """Compare what moved, (n, O, R) a slot, at the sites and in the columns that all clusters have."""
    own = {client: j for j, cluster in enumerate(clusters) for client in cluster.without}
    checked = [row for row, client in enumerate(clients) if client in own]
    bases, prototypes, without = [], [], []
    for slot, change in sorted(moved.items()):
        place = slot._replace(tier=TIER)
        if all(place in cluster.centres for cluster in clusters):
            centres = [cluster.centres[place] for cluster in clusters]
            width = min(basis.shape[-1] for basis in (change, *centres))
            bases.append(column_basis(change[..., :width]))
            prototypes.append(torch.stack([centre[..., :width] for centre in centres]))
            own_centres = (clusters[own[clients[row]]].without[clients[row]] for row in checked)
            without.append([centre[place][None, :, :width] for centre in own_centres])
    similarities = group_similarities(bases, prototypes)
    left_out = similarities[checked]
    for index, row in enumerate(checked):
        alike = group_similarities([basis[row : row + 1] for basis in bases], [site[index] for site in without])
        left_out[index, own[clients[row]]] = alike[0, 0]
    nearest = dict(zip(clients, similarities.argmax(1).tolist(), strict=True))
    return Routes(nearest, dict(zip([clients[row] for row in checked], left_out.argmax(1).tolist(), strict=True)))


def with_routed(
    bank: Bank, learnt: Mapping[str, Tensor], updates: Sequence[ClientUpdate], tier: str
) -> dict[str, Tensor]:
    """Return `learnt` in which participants without a cluster have one, by the B that they trained from zero.

    They are clients that were never sampled in the root stage; this round's work serves as their probe.
    """
    labels = learnt["labels"].clone()
    lost = [update for update in updates if labels[update.client] == NEVER]
    for client, cluster in (route_by_members(bank, labels, lost, tier, "factor").nearest if lost else {}).items():
        labels[client] = cluster
    return {**learnt, "labels": labels}


def admit_by_route(
    bank: Bank, labels: Tensor, population: Population, updates: Sequence[ClientUpdate], tier: str, kind: Kind
) -> Found:
    """Place unseen clients; seen ones are only checked: the log tells how many are routed to their own cluster.

    Probes of the root tier are compared with what members moved, those of another tier with that tier's adapters.
    The check is made twice where it can be: with a client's own direction left out of its cluster, and with it in.
    """
    if tier == "root":
        routes = route_by_members(bank, labels, updates, tier, kind, population.seen)
    else:
        routes = route_by_adapters(bank, labels, updates, tier)
    placed = labels.clone()
    for client in population.unseen:
        placed[client] = routes.nearest.get(client, NEVER)
    seen = {client: cluster for client, cluster in routes.nearest.items() if client in population.seen}
    log: dict[str, object] = {"routed": {str(c): j for c, j in routes.nearest.items() if c in population.unseen}}
    log["routing_agreement"] = _agreement(labels, routes.left_out)
    return placed, {**log, "routing_agreement_with_own": _agreement(labels, seen)}


def _agreement(labels: Tensor, routed: Mapping[int, int]) -> float | None:
    agreed = [cluster == int(labels[client]) for client, cluster in routed.items() if labels[client] != NEVER]
    return sum(agreed) / len(agreed) if agreed else None
