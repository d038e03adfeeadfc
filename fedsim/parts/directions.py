"""HiLoRA's server-side use of subspaces: smooth each client's direction and cluster by it.

Reads copies from the bank and client updates; the linear algebra is in clustering.py, the choice of the number of
clusters in cluster_count.py, and how newcomers are placed in routing.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.adapters.bank import NEVER, Bank
from fedsim.adapters.layout import RANK_AXIS, Slot, fit_rank, pad_rank
from fedsim.parts.cluster_count import LEAST, Rule, clusters_by
from fedsim.parts.clustering import (
    column_basis,
    common_basis,
    kmeans_clusters,
    mean_overlap,
    smoothed_direction,
    subspace_distances,
    subspace_similarities,
)
from fedsim.parts.sharing import is_private
from fedsim.round import ClientUpdate, Population, ServerState

TIER = "directions"
"""The server's own tier: every client's smoothed B. It is never part of a forward pass, hence never sent."""

LOGGED = 256
"""Clients up to which all distances are logged; of a thousand they would be 20 MB of text."""

MOST, ROUTED = 10_000, 1000
"""Clients that are clustered at most where nothing is said, and that are routed at once."""

Kind = Literal["change", "factor"]
"""What moved: B_i − B_broadcast, or B_i itself."""

Copies = Mapping[Slot, Mapping[int, Tensor]]
Found = tuple[Tensor, dict[str, object]]
"""The cluster of every client (C,), and what to log about it."""


@dataclass(frozen=True, kw_only=True)
class SubspaceClustering:
    """How clients are clustered by their adapters (HiLoRA, arXiv 2603.02785, section 3.2).

    The printed rule smooths the factor B_i itself. After the server's re-setting B := U that factor is nearly the same
    for all clients, so "change" (B_i − B_broadcast) is the default. The average is rotated to its predecessor before
    it is updated, since the basis of B is arbitrary.
    """

    by: Literal["subspaces", "updates"] = "subspaces"
    """Spectral clustering of subspaces; or, the paper's ablation, k-means with the cosine on all that clients changed
    in the last root round (K by silhouette, which the paper leaves open)."""
    directions: Kind = "change"
    """Cluster by what local training changed in B, or by B itself (the literal reading)."""
    decay: float = 0.9
    """λ of the moving average over rounds."""
    rule: Rule = "stability"
    """What decides the number of clusters of subspaces. "eigengap" is the paper's; it splits IID clients and misses
    groups that the default finds (RESULTS.md). See `parts.cluster_count`."""
    k_min: int | None = None
    """Smallest number of clusters considered; None: 1 under "silhouette" and "stability", else 2. The same as `k_max`:
    the number is given."""
    k_max: int = 10
    """Largest number of clusters considered."""
    routing: Literal["members", "adapter"] = "members"
    """What stands for a cluster where newcomers are placed: what its members' directions have most in common, with
    which a probe of the root adapter is compared; or the columns of its own B, and of a probe that starts as a cluster
    adapter does (by members while no cluster has trained)."""
    probe_steps: int = 10
    """Local steps of a newcomer's probe."""
    on_gpu: bool = False
    """Compare subspaces on worker 0's GPU, where there is one: thousands of clients in seconds, other bits."""

    most: int | None = None
    """Clients that are clustered at most, default 10,000: memory grows with the square. Of more clients with a
    direction so many are clustered, at even distances, and the others are routed to their clusters."""

    def __post_init__(self) -> None:
        if self.most is not None and self.most <= self.k_max:
            given = f"most is {self.most}; it must exceed k_max, {self.k_max}"
            raise ValueError(f"{given} (--method.clustering.most, --method.clustering.k-max).")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay is {self.decay}; it must lie in [0, 1) (--method.clustering.decay).")
        if not 1 <= self.least <= self.k_max:
            raise ValueError(
                f"k_min … k_max is {self.least} … {self.k_max}, which is no range of cluster numbers from 1 on "
                "(--method.clustering.k-min, --method.clustering.k-max)."
            )
        if (steps := self.probe_steps) < 1:
            raise ValueError(f"probe_steps is {steps}; it must be positive (--method.clustering.probe-steps).")

    @property
    def least(self) -> int:
        """The smallest number of clusters considered."""
        return (LEAST.get(self.rule, 2) if self.by == "subspaces" else 2) if self.k_min is None else self.k_min

    def probed_tiers(self, state: ServerState) -> tuple[str, ...]:
        """The tiers below a newcomer's probe and the one that it trains, once there are clusters."""
        begun = int(state.learnt.get("since", 0))
        no_cluster_yet = int(state.learnt["stage"]) == 1 and begun == state.round_index
        return ("root",) if self.routing == "members" or no_cluster_yet else ("root", "cluster")

    def check(self, population: Population) -> None:
        """Raise ValueError where there would be one cluster, since fewer clients take part than k_min needs."""
        if (k := self.least) > max((n := len(population.seen)) - 1, 2):
            why = f"{n} clients take part; it must be below that"
            raise ValueError(f"k_min is {k} and {why} (--method.clustering.k-min).")

    def smoothed(self, bank: Bank, updates: Sequence[ClientUpdate], tier: str = "root") -> Copies:
        """Return the new moving average of every participant's direction, as copies of the directions tier."""
        clients = [update.client for update in updates]
        result = {}
        for slot, moved in changes(bank, updates, tier, self.directions).items():
            place = slot._replace(tier=TIER)
            before = fit_rank(bank.read(place, torch.tensor(clients)), "B", moved.shape[-1])
            average = smoothed_direction(before, moved, self.decay)
            result[place] = dict(zip(clients, average, strict=True))
        return result

    def cluster(self, bank: Bank, fresh: Copies, updates: Sequence[ClientUpdate], population: Population) -> Found:
        """Return the cluster of every client (C,), `NEVER` for those without a direction, and what to log about it."""
        if self.by == "updates":
            return self._by_updates(bank, updates, population)
        slot = next(iter(fresh))
        known = set(fresh[slot])
        if slot in bank.rows:
            known |= set((bank.written[slot] != NEVER).nonzero().flatten().tolist())
        met = [client for client in population.seen if client in known]
        clients = evenly(met, self.most or MOST)
        log: dict[str, object] = {"n_clusters": 1}
        found = torch.zeros(len(clients), dtype=torch.long)
        if len(clients) > max(self.least, 2):
            device = "cuda" if self.on_gpu and torch.cuda.is_available() else "cpu"
            distances = subspace_distances((basis for _, basis in column_bases(bank, fresh, clients)), device)
            clusters = clusters_by(self.rule, distances, self.least, self.k_max)
            found = clusters.labels
            log = {
                "n_clusters": clusters.n_clusters,
                "rule": self.rule,
                "rule_scores": list(map(list, clusters.scores.items())),
                "rule_margin": clusters.margin,
                "eigenvalues": clusters.eigenvalues,
                "distances": distances.tolist() if len(clients) <= LOGGED else None,
            }
        others = sorted(set(met) - set(clients))
        if others:
            log["n_routed"] = len(others)
            found = torch.cat((found, _nearest(bank, fresh, clients, found, others)))
        return _placed([*clients, *others], found, population, log)

    def _by_updates(self, bank: Bank, updates: Sequence[ClientUpdate], population: Population) -> Found:
        moved = changes(bank, updates, "root", "change", factors=(*RANK_AXIS, "W", "b"))
        vectors = torch.cat([change.flatten(1) for change in moved.values()], 1)
        found, scores = kmeans_clusters(vectors, self.least, self.k_max)
        log = {"n_clusters": int(found.max()) + 1, "silhouettes": list(map(list, scores.items()))}
        return _placed([update.client for update in updates], found, population, log)


def evenly(clients: Sequence[int], most: int) -> list[int]:
    """Return at most so many of the clients, at even distances in their order."""
    n = min(len(clients), most)
    return [clients[len(clients) * index // n] for index in range(n)]


def _nearest(bank: Bank, fresh: Copies, clients: Sequence[int], labels: Tensor, others: Sequence[int]) -> Tensor:
    """The cluster of each of the others, to whose common subspace theirs is nearest; some at a time."""
    n_clusters, found = int(labels.max()) + 1, []
    centres = {
        slot: torch.stack([common_basis(basis[labels == cluster]) for cluster in range(n_clusters)])
        for slot, basis in column_bases(bank, fresh, clients)
    }
    for begin in range(0, len(others), ROUTED):
        alike = torch.zeros(len(others[begin : begin + ROUTED]), n_clusters)
        for slot, basis in column_bases(bank, fresh, others[begin : begin + ROUTED]):
            if slot in centres:
                width = min(basis.shape[-1], centres[slot].shape[-1])
                alike += subspace_similarities(basis[..., :width], centres[slot][..., :width])
        found.append(alike.argmax(1))
    return torch.cat(found)


def _placed(clients: list[int], found: Tensor, population: Population, log: dict[str, object]) -> Found:
    labels = torch.full((population.n_clients,), NEVER)
    labels[clients] = found
    return labels, {**log, "clients": clients, "labels": found.tolist()}


def changes(
    bank: Bank, updates: Sequence[ClientUpdate], tier: str, kind: Kind, factors: Sequence[str] = ("B",)
) -> dict[Slot, Tensor]:
    """Return for each B slot (or of other factors) of a shared tier what updates did to it: B_i − B_broadcast, or B_i.

    Only slots that all of them trained, and of unequal LoRA ranks the columns that all of them have: a subspace that a
    client was never free to move would tell what it can afford, not what its data are like.
    """
    result = {}
    for slot in updates[0].tensors:
        if slot.tier == tier and slot.factor in factors and all(slot in update.tensors for update in updates):
            axis = RANK_AXIS.get(slot.factor, -1)
            width = min(update.tensors[slot].shape[axis] for update in updates)
            trained = torch.stack([fit_rank(update.tensors[slot], slot.factor, width) for update in updates])
            before = fit_rank(bank.read(slot, torch.tensor([0])), slot.factor, width)
            result[slot] = trained - before if kind == "change" else trained
    return result


def column_bases(bank: Bank, fresh: Copies, clients: Sequence[int]) -> Iterator[tuple[Slot, Tensor]]:
    """Yield a (n, O, R) stack of column bases per site, from this round's directions or else from the bank's.

    Sites and columns are those that all of these clients have; who moved nothing at a site does not narrow its columns.
    """
    slots = sorted({slot for slot in (*bank.rows, *fresh) if slot.tier == TIER and slot.factor == "B"})
    for slot in slots:
        new = fresh.get(slot, {})
        known = bank.written_in(slot, torch.tensor(clients)) != NEVER
        if not all(client in new or bool(known[row]) for row, client in enumerate(clients)):
            continue
        values = bank.read(slot, torch.tensor(clients))
        for row, client in enumerate(clients):
            if client in new:
                values[row] = pad_rank(new[client], "B", values.shape[-1])
        yield slot, column_basis(values[..., : _common_width(values)])


def _common_width(values: Tensor) -> int:
    """Leading columns of (n, O, R) that are not zero in any of those that are not zero altogether; R if all are."""
    is_used = values.abs().amax(1) > 0
    is_common = is_used[is_used.any(1)].all(0)
    return int(is_common.long().cumprod(0).sum()) or values.shape[-1]


def tier_overlaps(
    bank: Bank, fresh: Copies, tiers: Sequence[str], groups: Callable[[Slot], Tensor]
) -> dict[str, object]:
    """Return the normalised overlap (mean cos²) of the last of `tiers`, in training, with each finished one.

    Averaged over sites and over the new copies `fresh`; `groups` gives the group of every client for a slot.
    """
    stage, log = tiers[-1], dict[str, object]()
    for tier in tiers[:-1]:
        frozen, trained = [], []
        for slot, copies in fresh.items():
            if (slot.tier, slot.factor) == (stage, "B"):
                below, holders = slot._replace(tier=tier), groups(slot)
                for group, value in copies.items():
                    client = torch.tensor([group]) if is_private(holders) else (holders == group).nonzero()[0]
                    frozen.append(fit_rank(bank.read(below, groups(below)[client])[0], "B", value.shape[-1]))
                    trained.append(value)
        log[f"overlap.{tier}_{stage}"] = mean_overlap(frozen, trained) if trained else None
    return log
