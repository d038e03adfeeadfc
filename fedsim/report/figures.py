"""Pictures of a run's data and of what its events call for, saved in its folder as SVG and PDF."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

from fedsim.data.federated import FederatedData
from fedsim.report.allocation_figures import draw_allocations, draw_fisher
from fedsim.report.split import describe_split
from fedsim.report.split_figures import draw_split
from fedsim.report.tree_figures import draw_tree
from fedsim.storage.disk import write_atomically
from fedsim.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


VARIABLE = "FEDSIM_FIGURES"
"""Environment variable; 0 for no pictures, which take a second each where runs are many and short."""
MOST_CLIENTS = 20_000
"""Clients up to which their split is drawn: a column of each would be no picture, and a file of many megabytes."""
DRAWN = {"tree": draw_tree, "allocations": draw_allocations, "fisher": draw_fisher}
"""Figures by name, of a run's events; each is None where these do not call for it."""


def record_split(folder: RunFolder, data: FederatedData) -> None:
    """Write split.json, and draw it where pictures are wanted."""
    if data.proxy is not None:
        data = replace(data, train=data.train[:-1], test=data.test[:-1], proxy=None)
    folder.write("split.json", describe_split(data))
    if os.environ.get(VARIABLE, "1") != "0" and data.n_clients <= MOST_CLIENTS:
        _save(draw_split(data), folder, "split")


def draw_figures(folder: RunFolder) -> None:
    """Save every figure for which the events of a run folder hold what it takes, where pictures are wanted."""
    if os.environ.get(VARIABLE, "1") != "0":
        for name, figure in figures_of(folder.read_events()).items():
            _save(figure, folder, name)


def figures_of(events: Sequence[Mapping[str, Any]], there: Collection[str] = ()) -> "dict[str, Figure]":
    """Return by name every figure for which events hold what it takes, but for those that are there."""
    drawn = {name: draw(events) for name, draw in DRAWN.items() if name not in there}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _save(figure: "Figure", folder: RunFolder, name: str) -> None:
    """Save as text that stays text, without the date, so that the same run gives the same file."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "fedsim", "svg.fonttype": "none", "pdf.fonttype": 42}):
        for kind, date in (("svg", "Date"), ("pdf", "CreationDate")):
            drawn = BytesIO()
            figure.savefig(drawn, format=kind, metadata={date: None})
            write_atomically(folder.path / f"{name}.{kind}", drawn.getvalue())
