"""The picture of a tree of clients: the dendrogram with its cuts, the groups at every depth, how many, and λ."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY, INK = "#9a9a9a", "#333333"
LABELLED = 60
"""Clients up to which leaves bear their ids."""

Event = Mapping[str, Any]


def draw_tree(events: Sequence[Event]) -> "Figure | None":
    """Return a figure of the last tree that the events hold and of the λ after it; None when there is no tree."""
    found = [index for index, event in enumerate(events) if event.get("trees")]
    if not found:
        return None
    from matplotlib.figure import Figure  # here: half a second that only runs with a tree pay for

    event = events[found[-1]]
    lambdas = [later for later in events[found[-1] :] if "lambda" in later]
    n_clients, n_depths = len(event["tree_clients"]), len(event["cuts"])
    figure = Figure(figsize=(min(20.0, max(10.0, 6.0 + 0.09 * n_clients)), 6.4), layout="constrained")
    columns = figure.add_gridspec(1, 2, width_ratios=[1.55, 1])
    left = columns[0].subgridspec(2, 1, height_ratios=[2.4, 0.35 + 0.11 * min(n_depths, 24)], hspace=0.02)
    right = columns[1].subgridspec(2 if lambdas else 1, 1)
    upper, lower = figure.add_subplot(left[0]), figure.add_subplot(left[1])
    leaves = _dendrogram(upper, event)
    _groups(lower, event, leaves)
    _staircase(figure.add_subplot(right[0]), event)
    if lambdas:
        _lambdas(figure.add_subplot(right[1]), event, lambdas)
    return figure


def _finest(event: Event) -> np.ndarray:
    """The group of every leaf at the last depth, (n,)."""
    return np.asarray(event["groups"][-1])


def _colours(groups: np.ndarray, leaves: Sequence[int]) -> np.ndarray:
    """A colour for each client (n, 3), its group's; neighbours in the tree have neighbouring hues."""
    from matplotlib import colormaps

    few = ["#5b4ea3", "#0072b2", "#56b4e9", "#009e73", "#8fb339", "#e69f00", "#d55e00", "#cc79a7"]  # colour-blind safe
    order = list(dict.fromkeys(groups[leaves].tolist()))
    if len(order) > len(few):
        shades = np.asarray(colormaps["turbo"](np.linspace(0.05, 0.95, len(order))))[:, :3]
    else:
        chosen = [few[round(place)] for place in np.linspace(1, len(few) - 2 + (len(order) > 6), len(order))]
        chosen = few if len(order) == len(few) else chosen
        shades = np.asarray([[int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)] for text in chosen])
    return shades[[order.index(group) for group in groups.tolist()]]


def _dendrogram(axes: "Axes", event: Event) -> list[int]:
    """Draw the tree with a line for each cut; return the leaves from left to right."""
    from scipy.cluster.hierarchy import dendrogram

    tree, groups = np.asarray(event["trees"][-1]), _finest(event)
    drawn = dendrogram(tree, no_plot=True)
    leaves = drawn["leaves"]
    colours = _colours(groups, leaves)
    for xs, ys in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        below = leaves[int(np.ceil(xs[0] / 10 - 0.501)) : int(np.floor(xs[3] / 10 - 0.499)) + 1]
        is_one_group = len(set(groups[below].tolist())) == 1
        axes.plot(xs, ys, color=colours[below[0]] if is_one_group else GREY, linewidth=1.4)
    _cut_lines(axes, event, tree)
    axes.set(xlim=(0, 10 * len(leaves)), ylabel="distance of B", xticks=[])
    axes.set_ylim(0.9 * float(tree[0, 2]), 1.06 * float(tree[-1, 2]))
    which = "all depths" if len(event["trees"]) == 1 else "the last depth"
    axes.set_title(f"Tree of {len(leaves)} clients, from {which}", loc="left", fontsize=10, color=INK)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    return leaves


def _cut_lines(axes: "Axes", event: Event, tree: np.ndarray) -> None:
    """A dashed line where the tree is cut into c groups, with the depths that do so; of a depth's own tree, its cut."""
    n, own = len(tree) + 1, len(event["cuts"]) - 1 if len(event["trees"]) > 1 else 0
    cuts = list(zip(event["depths"], event["cuts"], strict=True))[own:]
    for count in sorted({cut for _, cut in cuts} - {1, n}):
        height = float(tree[n - count - 1, 2] + tree[n - count, 2]) / 2
        depths = [depth for depth, cut in cuts if cut == count]
        span = f"depth {depths[0]}" if len(depths) == 1 else f"depths {depths[0]}–{depths[-1]}"
        axes.axhline(height, color=INK, linewidth=0.8, linestyle=(0, (5, 4)))
        axes.annotate(
            f"c = {count}, {span}", (1, height), (4, 0), ("axes fraction", "data"), "offset points",
            va="center", fontsize=7, color=INK, annotation_clip=False,
        )  # fmt: skip


def _groups(axes: "Axes", event: Event, leaves: Sequence[int]) -> None:
    """A row of cells for each depth, from input to output: who is in one group with whom."""
    colours, n_depths = _colours(_finest(event), leaves), len(event["cuts"])
    image = np.ones((n_depths, len(leaves), 3))
    for row, labels in enumerate(map(np.asarray, event["groups"])):
        for group in set(labels.tolist()):
            mean = colours[labels == group].mean(0) if event["cuts"][row] > 1 else np.full(3, 0.85)
            image[row, labels[leaves] == group] = mean
        edges = np.flatnonzero(np.diff(labels[leaves])) + 1
        axes.vlines(edges, row, row + 1, color="white", linewidth=2.0)
    axes.imshow(image, extent=(0, len(leaves), n_depths, 0), aspect="auto", interpolation="nearest", zorder=0)
    axes.hlines(range(1, n_depths), 0, len(leaves), color="white", linewidth=0.5)
    step = max(1, n_depths // 8)
    axes.set_yticks(np.arange(0, n_depths, step) + 0.5, event["depths"][::step])
    axes.set(ylabel="depth", xlabel="client", xticks=[])
    if len(leaves) <= LABELLED:
        names = [event["tree_clients"][leaf] for leaf in leaves]
        axes.set_xticks(np.arange(len(leaves)) + 0.5, names, fontsize=8 if len(leaves) <= 32 else 6)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _staircase(axes: "Axes", event: Event) -> None:
    """c*_l by depth, over the scores φ(c) that it was chosen by."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    cuts, position = event["cuts"], np.arange(len(event["cuts"]))
    scores = [(x, c, score) for x, window in enumerate(event["silhouettes"]) for c, score in window]
    if scores:
        x, c, score = np.asarray(scores).T
        shades = ScalarMappable(Normalize(float(score.min()), float(score.max())), "YlGnBu")
        axes.bar(x, np.full(len(x), 0.9), 0.9, c - 0.45, color=shades.to_rgba(score), zorder=0)
        bar = axes.figure.colorbar(shades, ax=axes, pad=0.02, aspect=30)
        bar.set_label("silhouette (τ for c = 1)", fontsize=8)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    axes.step(position, cuts, where="mid", color="#d55e00", linewidth=1.6)
    axes.plot(position, cuts, "o", color="#d55e00", markersize=4)
    axes.set_title("Groups at each depth, c*", loc="left", fontsize=10, color=INK)
    _depth_axis(axes, event)
    axes.set_ylim(0.4, max([*cuts, *(c for _, c, _ in scores)]) + 0.6)
    axes.yaxis.get_major_locator().set_params(integer=True)


def _lambdas(axes: "Axes", event: Event, lambdas: Sequence[Event]) -> None:
    """λ by depth: every client's latest, and the mean after the first and the last round."""
    latest: dict[str, list[float]] = {}
    for later in lambdas:
        latest |= later["lambda_by_client"]
    position, values = np.arange(len(event["cuts"])), np.asarray(list(latest.values()))
    is_split = np.asarray(event["cuts"]) > 1
    for offset, of_client in zip(np.linspace(-0.3, 0.3, len(values)), values, strict=True):
        axes.plot((position + offset)[is_split], of_client[is_split], ".", color=GREY, markersize=3, zorder=1)
    first, last = lambdas[0], lambdas[-1]
    axes.plot(position, first["lambda"], "--", color="#0072b2", linewidth=1, label=f"mean, round {first['round']}")
    axes.plot(position, values.mean(0), "-o", color="#0072b2", markersize=4, label=f"mean, round {last['round']}")
    axes.plot([], [], ".", color=GREY, label="each client")
    axes.set_title("Weight of a client's own group, λ", loc="left", fontsize=10, color=INK)
    axes.set_ylim(-0.03, 1.03)
    axes.legend(fontsize=8, frameon=False, loc="best")
    _depth_axis(axes, event)


def _depth_axis(axes: "Axes", event: Event) -> None:
    step = max(1, len(event["cuts"]) // 12)
    axes.set_xticks(np.arange(0, len(event["cuts"]), step), event["depths"][::step])
    axes.set(xlabel="depth", xlim=(-0.6, len(event["cuts"]) - 0.4))
    axes.spines[["top", "right"]].set_visible(False)
