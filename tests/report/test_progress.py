"""What a person sees while a run goes on: the cell, the score and how long it takes, at any width."""

import io
import re

import pytest
from rich.console import Console

from fedsim.report.progress import LiveProgress
from fedsim.round import ClientUpdate


def updates(accuracy: float) -> list[ClientUpdate]:
    logs = {"train_loss": 1.25, "global.accuracy": accuracy, "global.loss": 1.0}
    return [ClientUpdate(0, 10, logs=logs)]


def shown(width: int, is_terminal: bool) -> str:
    """Two of three rounds of the second of six cells."""
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=is_terminal, legacy_windows=False, color_system=None)
    with LiveProgress("2/6 · hilora, seed 1", 3, 0, is_shown=True, console=console) as progress:
        for round_index in range(2):
            progress.begin_phase(round_index, "cluster", 1)
            progress.end_round(updates(0.5), updates(0.625))
        if progress.bar:
            progress.bar.refresh()
    return screen.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_on_a_terminal_bar_rounds_and_remaining_time_are_whole(width):
    last = [line for line in re.split(r"[\r\n]+", shown(width, True)) if "seed 1" in line][-1]
    last = re.sub("\x1b.*?[a-zA-Z]", "", last)
    assert len(last) <= width
    assert re.search(r"━+.* 2/3 ETA \d:\d\d:\d\d", last)
    assert ("0.625" in last) == (width >= 80)


def test_elsewhere_each_round_is_a_line_with_cell_score_and_remaining_time():
    first, second = shown(40, False).splitlines()
    assert first.startswith("round 1/3 · 2/6 · hilora, seed 1 · global accuracy 0.625 · cluster · loss 1.250 · ")
    assert re.search(r"round 2/3 .* ETA \d+ s$", second)
