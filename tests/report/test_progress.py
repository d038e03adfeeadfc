"""What a person sees while a run goes on: the cell, the score and how long it takes, at any width."""

import io
import json
import re

import pytest
from rich.console import Console

from fedsim.report.progress import LiveProgress, Row, TeamRows
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


def test_a_run_beside_others_says_what_it_is_at_and_prints_nothing():
    posted, screen = list[str](), io.StringIO()
    console = Console(file=screen, force_terminal=True)
    with LiveProgress("1/3 · fedit", 3, 1, is_shown=True, console=console, post=posted.append) as progress:
        progress.show_data({"clients": 4})
        progress.begin_phase(1, "train", 2)
        progress.posted = 0.0  # as if it were long ago
        progress.client_done(updates(0.5)[0])
        progress.client_done(updates(0.5)[0])  # too soon to be posted
        progress.end_round(updates(0.5), updates(0.625))
    assert screen.getvalue() == ""
    rows = [Row(*json.loads(row)) for row in posted]
    assert rows[:2] == [Row("1/3 · fedit", 1, 3), Row("1/3 · fedit · round 2 · train · client 1/2", 1, 3)]
    assert rows[2].text.startswith("1/3 · fedit · global accuracy 0.625 · train · loss 1.250 · ")
    assert (rows[2].done, len(rows)) == (2, 3)


def test_other_workers_of_a_run_beside_others_post_nothing():
    rows = list[str]()
    with LiveProgress("1/3 · fedit", 3, 0, is_shown=False, post=rows.append) as progress:
        progress.begin_phase(0, "train", 1)
        progress.client_done(updates(0.5)[0])
        progress.end_round([], [])
    assert rows == []


def test_every_team_has_a_row_as_soon_as_it_says_something():
    rows = [json.dumps(Row("1/3 · local · round 3", 2, 6)), ""]
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    display = TeamRows(lambda: rows, console)

    def drawn() -> list[str]:
        with console.capture() as capture:
            console.print(display.get_renderable())
        return capture.get().splitlines()

    (line,) = drawn()
    assert re.search(r"^1/3 · local · round 3 .*━.* 2/6 ETA -:--:--", line)
    rows[1] = json.dumps(Row("2/3 · fedit", 5, 6))
    assert [line.split("  ")[0] for line in drawn()] == ["1/3 · local · round 3", "2/3 · fedit"]
    rows[1] = json.dumps(Row("3/3 · hilora", 1, 6))  # the next run of that team
    assert re.search(r"^3/3 · hilora .* 1/6 ETA -:--:--", drawn()[1])


def test_a_round_in_which_nobody_trained_has_no_loss():
    screen = io.StringIO()
    with LiveProgress("fedit", 1, 0, is_shown=True, console=Console(file=screen, force_terminal=False)) as progress:
        progress.begin_phase(0, "train", 0)
        progress.end_round([], [])
    assert "loss –" in screen.getvalue()
    assert "nan" not in screen.getvalue().partition("loss")[2]
