"""Draws the split: clients from left to right by their domains, classes from top to bottom, sizes above."""

from typing import TYPE_CHECKING

import numpy as np

from fedsim.data.federated import FederatedData
from fedsim.report.split import label_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN, TEST, UNSEEN = "#2b6cb0", "#9cc3e6", "#c05621"
MOST_NAMES = 30
"""So many classes or clients are called by their names or numbers; of more, some numbers are shown."""


def draw_split(data: FederatedData) -> "Figure":
    """Return the figure: bars of training and test samples, and the training samples of every class of every client."""
    from matplotlib.figure import Figure

    order = np.argsort(data.domains, kind="stable") if data.domains else np.arange(data.n_clients)
    counts = label_counts(data, data.train)
    height = 0 if counts is None else np.clip(0.16 * counts.shape[1], 1.5, 6)
    width = float(np.clip(0.15 * len(order) + 2.5, 5, 12))
    figure = Figure(figsize=(width, 1.8 + height), layout="constrained")
    if counts is None:
        axes = [figure.subplots()]
    else:
        axes = list(figure.subplots(2, 1, sharex=True, height_ratios=[1.1, height]))
        _draw_classes(axes[1], counts[order].T, data)
    _draw_sizes(axes[0], data, order)
    _mark_domains(axes, data, order)
    _label_clients(axes[-1], data, order)
    return figure


def _draw_sizes(axes: "Axes", data: FederatedData, order: np.ndarray) -> None:
    train, test = (np.array([len(table[client]) for client in order]) for table in (data.train, data.test))
    edges = np.arange(len(order) + 1) - 0.5  # one outline, not a bar for each of a thousand clients
    axes.stairs(train, edges, fill=True, label="training", color=TRAIN)
    axes.stairs(train + test, edges, baseline=train, fill=True, label="test", color=TEST)
    axes.set_ylabel("samples")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    axes.set_xlim(-0.5, len(order) - 0.5)


def _draw_classes(axes: "Axes", counts: np.ndarray, data: FederatedData) -> None:
    """A cell is the darker, the more samples of a class a client has; without any it is white."""
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    shown = np.ma.masked_equal(counts, 0)
    norm = PowerNorm(0.5, vmin=0, vmax=max(1, counts.max()))
    image = axes.imshow(shown, aspect="auto", cmap="Blues", norm=norm, interpolation="nearest")
    axes.figure.colorbar(
        image, ax=axes, pad=0.01, fraction=0.05, label="training samples", ticks=MaxNLocator(5, integer=True)
    )
    axes.set_ylabel(f"{len(counts)} classes")
    if len(counts) <= MOST_NAMES:
        names = [name if len(name) <= 16 else f"{name[:15]}…" for name in map(str, data.class_names)]
        axes.set_yticks(range(len(counts)), names, fontsize=7)


def _mark_domains(axes: "list[Axes]", data: FederatedData, order: np.ndarray) -> None:
    """Lines between the domains and their names above; domains of single clients are not marked."""
    domains = np.array(data.domains or ())[order] if data.domains else np.empty(0, int)
    present, starts, sizes = np.unique(domains, return_index=True, return_counts=True)
    if not 1 < len(present) < len(order):
        return
    for start in starts[1:]:
        for one in axes:
            one.axvline(start - 0.5, color="0.45", linewidth=0.6)
    if len(present) <= MOST_NAMES:
        crowded = len(present) > 8
        for domain, start, size in zip(present, starts, sizes, strict=True):
            name = data.domain_names[domain] if domain < len(data.domain_names) else str(domain)
            axes[0].annotate(
                name if len(name) <= 24 else f"{name[:23]}…",
                (start - 0.5 + size / 2, 1.02),
                xycoords=("data", "axes fraction"),
                ha="left" if crowded else "center",
                va="bottom",
                rotation=45 if crowded else 0,
                fontsize=7,
            )


def _label_clients(axes: "Axes", data: FederatedData, order: np.ndarray) -> None:
    """Clients by number where they are few; those unseen in training have a mark or a number of another colour."""
    unseen = [place for place, client in enumerate(order) if client in data.unseen]
    few = len(order) <= MOST_NAMES
    label = f"{len(order)} clients" + (f", {len(unseen)} of them unseen in training (marked)" if unseen else "")
    axes.set_xlabel(label, labelpad=4 if few else 15)
    if few:
        axes.set_xticks(range(len(order)), [str(client) for client in order], fontsize=7)
        for place in unseen:
            axes.get_xticklabels()[place].set(color=UNSEEN, weight="bold")
        return
    axes.set_xticks([])
    trans = axes.get_xaxis_transform()
    axes.plot(unseen, [-0.02] * len(unseen), "^", color=UNSEEN, markersize=3.5, transform=trans, clip_on=False)
