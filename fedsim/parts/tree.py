"""One tree of clients and how far down each depth goes in it (FedTreeLoRA, arXiv 2603.13282, phases 1 and 2).

Distances of B per depth, average linkage, nested cuts chosen by silhouette. What groups hold is in experts.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.adapters.bank import NEVER
from fedsim.parts.clustering import first_appearance
from fedsim.round import ClientUpdate

Distance = Literal["frobenius", "cosine"]
"""‖B_i − B_j‖_F, or 1 − cos of the two matrices as vectors."""


class Cuts(NamedTuple):
    """Labels (n,) for each depth, how many groups these are, the scores by number of groups, and the trees' merges.

    A tree is SciPy's linkage (n − 1, 4); there is one, or one for each depth.
    """

    labels: list[Tensor]
    counts: list[int]
    scores: list[dict[int, float]]
    trees: list[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class TreeCuts:
    """How clients are grouped. The paper states neither τ, K nor the linkage; these defaults are our choice.

    On noise in thousands of dimensions silhouettes are 0.00 to 0.01, and 0.02 to 0.28 where groups account for 5 % to
    100 % of the noise's variance, hence τ.
    """

    distance: Distance = "frobenius"
    """Distance of two clients' B."""
    tau: float = 0.05
    """τ: the score of not splitting; a first split needs a silhouette above it."""
    window: int = 3
    """K: a depth has fewer than K groups more than the depth before it; 1 never splits."""
    clusters: int | None = None
    """A fixed number of groups at all depths instead (the paper's ablation; at most one for each client)."""
    one_tree: bool = True
    """Cut one tree of all depths; False grows a tree from each depth's own distances (the paper's ablation)."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window is {self.window}; it must be 1 or more (--method.tree.window).")
        if self.clusters is not None and self.clusters < 1:
            raise ValueError(f"clusters is {self.clusters}; it must be 1 or more, or None (--method.tree.clusters).")

    def cut(self, distances: Sequence[Tensor]) -> Cuts:
        """Return the groups of n clients at every depth from the depths' distances, each (n, n), input to output."""
        if len(distances[0]) < 2:
            alone = torch.zeros(len(distances[0]), dtype=torch.long)
            return Cuts([alone] * len(distances), [1] * len(distances), [{}] * len(distances), [])
        trees = [merge_tree(global_distance(distances))] if self.one_tree else []
        trees = trees or [merge_tree(matrix) for matrix in distances]
        of_depth = trees * len(distances) if self.one_tree else trees
        if self.clusters is not None:
            counts = [min(self.clusters, len(distances[0]))] * len(distances)
            scores = [dict[int, float]() for _ in distances]
        else:
            counts, scores = staircase(of_depth, distances, self.tau, self.window)
        labels = [cut_into(tree, count) for tree, count in zip(of_depth, counts, strict=True)]
        return Cuts(labels, counts, scores, trees)

    def group(
        self, updates: Sequence[ClientUpdate], depths: Mapping[str, int], n_clients: int
    ) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Return what is learnt from the B of these updates, and what to log of it.

        `groups.D` (C,) holds the group of every client at depth D: 0 for all where there is no split, else 1, 2, … and
        0 for who is not among the updates. Depths that carry a classifier only go with the last one. `labels` (C,) are
        those of the last depth from 0 on, `NEVER` for who is not among the updates.
        """
        clients, distances = [update.client for update in updates], depth_distances(updates, depths, self.distance)
        cuts = self.cut(list(distances.values()))
        found = {}
        for depth, labels, count in zip(distances, cuts.labels, cuts.counts, strict=True):
            found[depth] = torch.zeros(n_clients, dtype=torch.long)
            found[depth][clients] = labels + 1 if count > 1 else labels
        finest = found[max(found)]
        learnt = {f"groups.{depth}": found.get(depth, finest) for depth in sorted(set(depths.values()))}
        learnt["labels"] = torch.full((n_clients,), NEVER)
        learnt["labels"][clients] = cuts.labels[-1]
        return learnt, {
            "trees": [tree.tolist() for tree in cuts.trees],
            "tree_clients": clients,
            "depths": list(distances),
            "cuts": cuts.counts,
            "silhouettes": [list(map(list, scores.items())) for scores in cuts.scores],
            "groups": [labels.tolist() for labels in cuts.labels],
        }


def pairwise_distances(B: Tensor, kind: Distance) -> Tensor:
    """Return the distances (n, n) in float64 of n matrices (n, O, R); a zero matrix is at cosine distance 1."""
    vectors = B.flatten(1).double()
    if kind == "frobenius":
        return torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    unit = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return (1 - unit @ unit.T).clamp(min=0).fill_diagonal_(0)


def depth_distances(updates: Sequence[ClientUpdate], depths: Mapping[str, int], kind: Distance) -> dict[int, Tensor]:
    """Return D^(l) (n, n) by depth, ascending: the mean over a depth's sites of the distances of the updates' B."""
    by_depth: dict[int, list[Tensor]] = {}
    for slot in [slot for slot in updates[0].tensors if slot.factor == "B"]:
        stacked = torch.stack([update.tensors[slot] for update in updates])
        by_depth.setdefault(depths[slot.site], []).append(pairwise_distances(stacked, kind))
    return {depth: torch.stack(by_depth[depth]).mean(0) for depth in sorted(by_depth)}


def global_distance(distances: Sequence[Tensor]) -> Tensor:
    """Return the mean of the depths' distances, (n, n)."""
    return torch.stack(list(distances)).mean(0)


def merge_tree(distances: Tensor) -> np.ndarray:
    """Return the merges (n − 1, 4) of average-linkage agglomeration, in SciPy's form."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    return np.asarray(linkage(squareform(distances.numpy(), checks=False), method="average"))


def cut_into(tree: np.ndarray, n_groups: int) -> Tensor:
    """Return the labels (n,), numbered by first appearance, when all but the last `n_groups` − 1 merges are made.

    So a cut into more groups only splits those of one into fewer, whatever ties there are.
    """
    members = {leaf: [leaf] for leaf in range(len(tree) + 1)}
    for step, (left, right) in enumerate(tree[: len(tree) + 1 - n_groups, :2].astype(int).tolist()):
        members[len(tree) + 1 + step] = members.pop(left) + members.pop(right)
    labels = torch.empty(len(tree) + 1, dtype=torch.long)
    for label, leaves in enumerate(members.values()):
        labels[leaves] = label
    return first_appearance(labels)


def agglomerated(distances: Tensor, n_groups: int) -> Tensor:
    """Return the labels (n,) of n clients in `n_groups` groups, at most one for each, by average linkage."""
    if len(distances) < 2:
        return torch.zeros(len(distances), dtype=torch.long)
    return cut_into(merge_tree(distances), min(n_groups, len(distances)))


def best_clusters(
    updates: Sequence[ClientUpdate], n_clients: int, most: int, n_clusters: int | None = None
) -> tuple[Tensor, dict[str, object]]:
    """Return the cluster (C,) of every client, `NEVER` for who is not among the updates, and what to log of it.

    Average linkage on the cosine distances of B, averaged over sites; of 2 … `most` clusters as many as have the
    largest silhouette, or `n_clusters` (FedLEASE, arXiv 2509.15087).
    """
    slots = [slot for slot in updates[0].tensors if slot.factor == "B"]
    stacks = [torch.stack([update.tensors[slot] for update in updates]) for slot in slots]
    distances, clients = global_distance([pairwise_distances(B, "cosine") for B in stacks]), [u.client for u in updates]
    counts = range(2, min(most, len(updates) - 1) + 1) if n_clusters is None else ()
    scores = {count: silhouette(distances, agglomerated(distances, count)) for count in counts}
    best = n_clusters or max(scores, key=lambda count: (scores[count], -count), default=1)
    labels = torch.full((n_clients,), NEVER)
    labels[clients] = agglomerated(distances, best)
    found = {"n_clusters": int(labels.max()) + 1, "labels": labels[clients].tolist(), "clients": clients}
    return labels, {**found, "silhouettes": list(map(list, scores.items()))}


def staircase(
    trees: Sequence[np.ndarray], distances: Sequence[Tensor], tau: float, window: int
) -> tuple[list[int], list[dict[int, float]]]:
    """Return c*_l for every depth, and the scores φ(c) that it was chosen by.

    c*_l = argmax φ over c*_{l−1} ≤ c < min(n, c*_{l−1} + K), the smallest on ties, from c*_0 = 1; φ(1) = τ and φ(c) the
    mean silhouette of the cut into c groups under D^(l), singletons counting 0. An empty window keeps c*_{l−1}.
    """
    counts, scores, count = list[int](), list[dict[int, float]](), 1
    for tree, matrix in zip(trees, distances, strict=True):
        candidates = range(count, min(len(matrix), count + window))
        scores.append({c: silhouette(matrix, cut_into(tree, c)) if c > 1 else tau for c in candidates})
        count = max(candidates, key=lambda c: (scores[-1][c], -c), default=count)
        counts.append(count)
    return counts, scores


def silhouette(distances: Tensor, labels: Tensor) -> float:
    """Mean silhouette of a grouping (n,) under distances (n, n)."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(distances.numpy(), labels.numpy(), metric="precomputed"))
