"""Pictures of allocations and Fisher scores show what the events say, and are there where events call for them."""

import re
from dataclasses import dataclass

import numpy as np
import pytest

from fedsim.plan import Plan
from fedsim.report.allocation_figures import COLUMNS, draw_allocations, draw_fisher

EVENTS = [
    {"round": 1, "stage": "warm", "cohort": [3, 5], "allocations": [[0], [0, 1, 2]]},
    {"round": 2, "stage": "warm", "cohort": [3, 4], "allocations": [[2], [0, 1]], "fisher_scores": [2.0, 1.0, 1.0]},
    {"round": 3, "stage": "scored", "cohort": [4, 5], "allocations": [[1, 2], [0, 1, 2]]},
    {"round": 4, "stage": "unseen"},
]


def images(figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes[:2]]


def test_a_client_is_a_row_and_a_round_a_column():
    clients, rounds = images(draw_allocations(EVENTS))
    np.testing.assert_allclose(clients, [[0.5, 0, 0.5], [0.5, 1, 0.5], [1, 1, 1]], err_msg="3, 4, 5 by capability")
    np.testing.assert_allclose(rounds, [[1, 0.5, 0.5], [0.5, 0.5, 1], [0.5, 0.5, 1]], err_msg="layers 0, 1, 2")


def test_capabilities_and_stages_are_named():
    left, right = draw_allocations(EVENTS).axes[:2]
    assert [text.get_text() for text in left.texts] == ["1 layers", "2 layers", "3 layers"]
    assert [text.get_text() for text in right.texts] == ["warm", "scored"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["3", "4", "5"]


def test_many_rounds_share_columns():
    many = [EVENTS[index % 2] | {"round": index + 1} for index in range(2 * COLUMNS)]
    _, rounds = images(draw_allocations(many))
    np.testing.assert_allclose(rounds, np.tile([[0.75], [0.5], [0.5]], COLUMNS))


def test_scores_are_shown_as_shares():
    (axes,) = draw_fisher(EVENTS).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.5, 0.25, 0.25])
    assert axes.get_title("left") == "Fisher scores by layer, scoring"


@pytest.mark.parametrize("draw", [draw_allocations, draw_fisher])
def test_without_such_events_there_is_no_picture(draw):
    assert draw([{"round": 1, "stage": "train"}]) is None


@dataclass(frozen=True, kw_only=True)
class Halves:
    """FedAvg in which even clients train the first depth and odd ones both."""

    lora_rank: int = 2
    lora_alpha: float | None = None
    head_policy: str = "global"
    tiers = ("adapter",)

    def plan(self, state, population):
        return Plan(population=population, allocations=[frozenset({0, client % 2}) for client in range(6)])


def test_a_run_with_allocations_leaves_their_picture(tiny_run, monkeypatch):
    monkeypatch.setenv("FEDSIM_FIGURES", "1")
    run, plain = tiny_run("halves", method=Halves()), tiny_run("plain")
    found = re.findall(r"<text[^>]*>([^<]*)</text>", (run.folder / "allocations.svg").read_text())
    assert {"1 layers", "2 layers", "layer", "round"} <= set(found)
    assert (run.folder / "allocations.pdf").read_bytes().startswith(b"%PDF")
    assert not (run.folder / "fisher.svg").exists()
    assert not (plain.folder / "allocations.svg").exists()
