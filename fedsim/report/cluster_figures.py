"""Figures of what a method found out about clients: clusters against domains, and who is like whom."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.report.drawing import Picture, new_figure, picture
from fedsim.report.reading import PERSONAL, Run
from fedsim.report.run_figures import NAMED

DARK, PALE = "#101418", "#fdfdfd"
"""Of numbers inside cells, whose ground is the same by day and by night."""


@dataclass(frozen=True)
class ClusterEvent:
    """The last partition of clients that a run's events hold: a cluster for each, and who has what domain."""

    round_number: int
    labels: Mapping[int, int]
    domains: Mapping[int, str]
    distances: np.ndarray | None
    clients: Sequence[int]

    @property
    def is_compared(self) -> bool:
        """Whether there are domains."""
        return any(self.domains.get(client, "") != "" for client in self.labels)

    def table(self) -> tuple[list[str], list[int], np.ndarray]:
        """Return domains, clusters and how many clients each pair has in common, (G, K)."""
        domains = sorted({self.domains[client] for client in self.labels}, key=lambda name: (len(name), name))
        clusters = sorted(set(self.labels.values()))
        counts = np.zeros((len(domains), len(clusters)), dtype=int)
        for client, cluster in self.labels.items():
            counts[domains.index(self.domains[client]), clusters.index(cluster)] += 1
        return domains, clusters, counts


def clusters_of(run: Run) -> ClusterEvent | None:
    """Return the clusters that a run found, None where its events hold none."""
    domains = {
        int(row["client"]): run.domain_names.get(row.get("domain", ""), row.get("domain", "")) for row in run.clients
    }
    for event in reversed(run.events):
        clients, labels = _partition(event, run)
        if labels is not None and len(clients) == len(labels):
            found = {c: int(label) for c, label in zip(clients, labels, strict=True) if c in domains}
            distances = np.asarray(event["distances"], dtype=float) if event.get("distances") else None
            if distances is not None and distances.shape != (len(clients), len(clients)):
                distances = None
            return ClusterEvent(int(event["round"]), found, domains, distances, clients) if found else None
    return None


def _partition(event: Mapping[str, Any], run: Run) -> tuple[list[int], Sequence[int] | None]:
    """An event's clients and the cluster of each; clusters without clients are those of who trained in that round."""
    if event.get("trees"):
        return list(event["tree_clients"]), event["groups"][-1]
    if event.get("stage") == "unseen" or not event.get("labels"):
        return [], None
    if "clients" in event:
        return list(event["clients"]), event["labels"]
    trained = (r for r in run.clients if r["evaluation"] == PERSONAL and int(r["round"]) == event["round"])
    return sorted(int(row["client"]) for row in trained), event["labels"]


def draw_clusters(run: Run) -> Iterator[Picture]:
    """Yield the table of clusters against domains and the matrix of similarities, where events hold them."""
    found = clusters_of(run)
    if found is None:
        return
    if found.is_compared:
        yield _contingency(found)
    if found.distances is not None and len(found.clients) > 1:
        yield _similarity(found, found.distances)


def _contingency(found: ClusterEvent) -> Picture:
    domains, clusters, counts = found.table()
    figure, axes = new_figure(
        max(3.4, min(9.0, 1.6 + 0.42 * len(clusters))), max(2.2, min(9.0, 1.1 + 0.34 * len(domains)))
    )
    axes.imshow(np.ma.masked_equal(counts, 0), cmap="Blues", vmin=0, aspect="auto", interpolation="none")
    for row, column in zip(*np.nonzero(counts), strict=True):
        count = counts[row, column]
        colour = PALE if count > 0.55 * counts.max() else DARK
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(clusters)), [str(cluster) for cluster in clusters])
    axes.set_yticks(range(len(domains)), domains)
    axes.set(xlabel="cluster", ylabel="domain")
    _bare(axes)
    pure = counts.max(0).sum()
    words = (
        f"{len(clusters)} clusters against {len(domains)} domains, found in round {found.round_number}: "
        f"{pure} of {counts.sum()} clients are in a cluster where their domain has the most"
    )
    return picture(figure, "clusters", "Clusters against domains", words, len(clusters) > 12)


def _similarity(found: ClusterEvent, distances: np.ndarray) -> Picture:
    n = len(found.clients)
    order = sorted(range(n), key=lambda i: (found.labels.get(found.clients[i], -1), found.clients[i]))
    similarity = 1 - distances[np.ix_(order, order)]
    figure, axes = new_figure(4.2, 3.9)
    off = similarity[~np.eye(n, dtype=bool)]
    shown = axes.imshow(similarity, cmap="viridis", vmin=off.min(), vmax=off.max(), interpolation="none")
    clients = [found.clients[i] for i in order]
    labels = [found.labels.get(client, -1) for client in clients]
    for edge in np.flatnonzero(np.diff(labels)) + 0.5:
        axes.axhline(edge, color=PALE, linewidth=0.9)
        axes.axvline(edge, color=PALE, linewidth=0.9)
    if n <= NAMED:
        size = 8 if n <= 20 else 6
        axes.set_xticks(range(n), clients, fontsize=size, rotation=90)
        axes.set_yticks(range(n), clients, fontsize=size)
    else:
        axes.set(xticks=[], yticks=[])
    axes.set(xlabel="client", ylabel="client, by cluster")
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.02)
    bar.outline.set_visible(False)
    _bare(axes)
    inside = np.equal.outer(labels, labels) & ~np.eye(n, dtype=bool)
    pairs = f", on average {similarity[inside].mean():.3f} inside a cluster" if inside.any() else ""
    apart = ~np.equal.outer(labels, labels)
    pairs += f" and {similarity[apart].mean():.3f} across" if apart.any() else ""
    words = f"similarity of {n} clients, ordered by cluster{pairs}"
    return picture(figure, "similarity", "Who is like whom (1 − distance)", words)


def _bare(axes: Any) -> None:
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
