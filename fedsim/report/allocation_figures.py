"""Pictures of who trained which layers, and of the layers' Fisher scores, over rounds."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SHADES = "#333333", "YlGnBu"
LABELLED = 40
"""Clients up to which rows bear their ids."""
COLUMNS = 80
"""Columns up to which every round has its own; of more rounds some share one."""

Event = Mapping[str, Any]


def draw_allocations(events: Sequence[Event]) -> "Figure | None":
    """Return a figure of how often clients trained layers, and how many trained each in every round; None without."""
    rounds = [event for event in events if event.get("allocations")]
    depths = sorted({depth for event in rounds for each in event["allocations"] for depth in each})
    if not depths:
        return None
    from matplotlib.figure import Figure  # here: half a second that only runs with allocations pay for

    n_clients = len({client for event in rounds for client in event["cohort"]})
    height = min(7.0, max(3.6, 1.4 + 0.13 * n_clients))
    figure = Figure(figsize=(10.5, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.35])
    _clients(left, rounds, depths)
    image = _rounds(right, rounds, depths)
    bar = figure.colorbar(image, ax=[left, right], pad=0.015, aspect=32, shrink=0.9, format="{x:.0%}")
    bar.ax.tick_params(labelsize=8, length=0)
    bar.outline.set_visible(False)
    return figure


def _clients(axes: "Axes", rounds: Sequence[Event], depths: Sequence[int]) -> None:
    """Clients x layers: in which share of its rounds a client trained a layer; clients of one capability together."""
    took_part: dict[int, int] = {}
    trained: dict[int, np.ndarray] = {}
    for event in rounds:
        for client, allocation in zip(event["cohort"], event["allocations"], strict=True):
            took_part[client] = took_part.get(client, 0) + 1
            trained[client] = trained.get(client, np.zeros(len(depths))) + np.isin(depths, allocation)
    share = {client: trained[client] / times for client, times in took_part.items()}
    capability = {client: round(float(row.sum()), 1) for client, row in share.items()}
    order = sorted(share, key=lambda client: (capability[client], client))
    axes.imshow(np.stack([share[client] for client in order]), aspect="auto", cmap=SHADES, vmin=0, vmax=1)
    borders = [row for row, (one, other) in enumerate(pairwise(order), 1) if capability[one] != capability[other]]
    if len(borders) < 8:
        axes.hlines(np.asarray(borders) - 0.5, -0.5, len(depths) - 0.5, color="white", linewidth=2.5)
        for start, stop in pairwise([0, *borders, len(order)]):
            axes.annotate(
                f"{capability[order[start]]:g} layers", (1, (start + stop - 1) / 2), (4, 0),
                ("axes fraction", "data"), "offset points", rotation=90, va="center", fontsize=7, color=INK,
            )  # fmt: skip
    ids = order if len(order) <= LABELLED else []
    axes.set_yticks(range(len(ids)), [str(client) for client in ids], fontsize=8 if len(ids) <= 24 else 6)
    axes.set(xlabel="layer", ylabel=f"client ({len(order)}, by layers a round)")
    axes.set_title("Share of its rounds in which\na client trained a layer", loc="left", fontsize=10, color=INK)
    step = max(1, len(depths) // 12)
    axes.set_xticks(range(0, len(depths), step), [str(depth) for depth in depths[::step]])
    _plain(axes)


def _rounds(axes: "Axes", rounds: Sequence[Event], depths: Sequence[int]) -> Any:
    """Layers x rounds: which share of a round's clients trained a layer; a line where the stage changes."""
    numbers = [event["round"] for event in rounds]
    share = np.zeros((len(depths), len(rounds)))
    for column, event in enumerate(rounds):
        share[:, column] = np.mean([np.isin(depths, allocation) for allocation in event["allocations"]], axis=0)
    width = -(-len(rounds) // COLUMNS)
    binned = np.stack([part.mean(1) for part in np.split(share, range(width, len(rounds), width), axis=1)], axis=1)
    extent = (-0.5, width * binned.shape[1] - 0.5, -0.5, len(depths) - 0.5)
    image = axes.imshow(binned, aspect="auto", cmap=SHADES, vmin=0, vmax=1, origin="lower", extent=extent)
    axes.set_xlim(-0.5, len(rounds) - 0.5)
    changes = [0, *(at for at, (one, other) in enumerate(pairwise(rounds), 1) if one["stage"] != other["stage"])]
    for at in changes if len(changes) < 6 else ():
        name = {"xy": (at - 0.4, 1), "xytext": (0, 3), "textcoords": "offset points"}
        axes.annotate(rounds[at]["stage"], xycoords=("data", "axes fraction"), fontsize=8, color=INK, **name)
        if at:
            axes.axvline(at - 0.5, color="#d55e00", linewidth=1.2)
    step = max(1, len(rounds) // 10)
    axes.set_xticks(range(0, len(rounds), step), list(map(str, numbers[::step])))
    axes.set_yticks(range(len(depths)), [str(depth) for depth in depths], fontsize=8 if len(depths) <= 24 else 6)
    each = "" if width == 1 else f", {width} rounds a column"
    axes.set(xlabel=f"round{each}", ylabel="layer")
    axes.set_title("Share of a round's clients that trained a layer\n", loc="left", fontsize=10, color=INK)
    _plain(axes)
    return image


def draw_fisher(events: Sequence[Event]) -> "Figure | None":
    """Return a figure of every layer's share of the Fisher scores, a line for each scoring; None without scores."""
    scored = [event for event in events if event.get("fisher_scores")]
    if not scored:
        return None
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
    scores = np.asarray([event["fisher_scores"] for event in scored], dtype=float)
    shares = scores / scores.sum(1, keepdims=True).clip(np.finfo(float).tiny)
    first, last = scored[0]["round"], scored[-1]["round"]
    shades = ScalarMappable(Normalize(first - 0.35 * max(1, last - first), last), colormaps[SHADES])
    for event, share in zip(scored, shares, strict=True):
        colour = shades.to_rgba(event["round"])
        axes.plot(share, "-o", color=colour, linewidth=1.6, markersize=4)
    named = [(0, f"round {first}")] + ([(-1, f"round {last}")] if len(scored) > 1 else [])
    for index, text in named:
        axes.plot([], [], "-o", color=shades.to_rgba(scored[index]["round"]), label=text)
    step = max(1, scores.shape[1] // 12)
    axes.set_xticks(range(0, scores.shape[1], step))
    axes.set(xlabel="layer", ylabel="share of the scores", ylim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    times = "scoring" if len(scored) == 1 else f"{len(scored)} scorings"
    axes.set_title(f"Fisher scores by layer, {times}", loc="left", fontsize=10, color=INK)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _plain(axes: "Axes") -> None:
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
