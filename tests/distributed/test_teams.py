"""Teams of workers: each has its own worker 0 and its own exchanges, and whoever is done waits for the others."""

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from runs import called_by_script, fabric, run

from fedsim.distributed import signals
from fedsim.distributed.launch import launch
from fedsim.distributed.rollcall import Board
from fedsim.distributed.signals import Stopped
from fedsim.distributed.teams import side_by_side
from fedsim.distributed.workers import Workers
from fedsim.errors import Fault


def say(*parts: object) -> None:
    """One line at once, since others write too."""
    os.write(1, (" ".join(map(str, parts)) + "\n").encode())


def exchange(folder: Path) -> None:
    """Everything that workers exchange, in teams, in all, and in teams again; then one team is stopped."""
    launch()
    workers = Workers.from_environment(60)
    for sizes in ((2, 1), (1, 2), (3,), (2, 1)):
        board = Board(workers.calls, len(sizes))
        with side_by_side(workers, sizes, board) as number:
            team = Workers.from_environment(60)
            if team.post and team.is_first:
                team.post(f"team {number}")
            assert team.count == sizes[number]
            assert team.n_others == 3 - team.count
            assert Workers.is_first_or_alone() == team.is_first == (team.index == 0)
            assert team.first + team.index == workers.index
            mine = f"{number}".encode()
            assert team.broadcast(mine if team.is_first else None) == mine
            parts = [{"x": torch.tensor([number, index])} for index in range(team.count)]
            assert team.scatter_tensors(parts if team.is_first else None)["x"].tolist() == [number, team.index]
            assert team.gather(mine) == ([mine] * team.count if team.is_first else [])
            for _ in range(number + 1):  # teams may meet as often as they like
                assert team.all_numbers(workers.index) == list(range(team.first, team.first + team.count))
            team.check_same({"data": f"of team {number}"})
        rows = [f"team {number}" for number in range(len(sizes))]
        assert board.read() == (rows if len(sizes) > 1 else [""])
        assert Workers.from_environment(60).count == 3
        assert workers.all_numbers(workers.index) == [0, 1, 2]
    try:
        with side_by_side(workers, (2, 1)) as number:
            if number == 1:
                signals._request.signal = signals.SIGNALS[0]
                signals.stop_if_asked(Workers.from_environment(60), 2, 5, "2/2 · fedit")
    except Stopped as stopped:
        say("stopped", workers.index, stopped.code)
    dist.barrier()


def test_teams_exchange_among_themselves_and_then_all_together_and_what_stops_one_stops_all(tmp_path):
    done = run(fabric(3, called_by_script(exchange, tmp_path / "script.py"), tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("stopped")) == [
        f"stopped {worker} 75" for worker in range(3)
    ]
    assert "SIGTERM: 2/2 · fedit stopped after 2 of 5 rounds; the run can be resumed" in done.stderr


def fail_one(folder: Path) -> None:
    """One team fails while the other waits, or hangs; the other says so, or not where it is only the echo."""
    launch()
    workers, how = Workers.from_environment(3), (folder / "how").read_text()
    try:
        with side_by_side(workers, (1, 1)) as number:
            if number == 1 and how == "fails":
                raise ValueError("nonsense")
            if number == 1 and how == "works":
                for _ in range(6):
                    time.sleep(1)
                    Workers.from_environment(3).all_numbers(0)
            if number == 1 and how == "ends":
                os._exit(0)
            if number == 1 and how == "hangs":
                time.sleep(60)
    except Fault as fault:
        say("fault", workers.index, fault.is_echo, str(fault))
    except ValueError:
        time.sleep(3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("fails", "fault 0 True Another team has failed."),
        ("hangs", "fault 0 False Worker 1 did not answer for 3 seconds (--timeout): it hangs."),
        ("ends", "fault 0 False Worker 1 has ended."),
        ("works", None),
    ],
)
def test_who_waits_for_another_team_learns_that_it_failed_or_hangs_and_waits_while_it_works(tmp_path, how, said):
    (tmp_path / "how").write_text(how)
    done = run(fabric(2, called_by_script(fail_one, tmp_path / "script.py"), tmp_path), timeout=120)
    faults = [line for line in done.stdout.splitlines() if line.startswith("fault")]
    assert (done.returncode == 0) == (how != "hangs"), done.stdout + done.stderr
    assert len(faults) == (said is not None), done.stdout + done.stderr
    assert not said or faults[0].startswith(said)


def lose_one(folder: Path) -> None:
    """The last worker of the second team, of two, ends without a word."""
    launch()
    workers = Workers.from_environment(20)
    try:
        with side_by_side(workers, (1, 2)):
            team = Workers.from_environment(20)
            if workers.index == 2:
                os._exit(0)
            team.all_numbers(0)
    except Fault as fault:
        say("fault", workers.index, fault.is_echo, str(fault))


@pytest.mark.slow
def test_a_worker_that_has_ended_is_named_by_its_number_in_the_launch(tmp_path):
    done = run(fabric(3, called_by_script(lose_one, tmp_path / "script.py"), tmp_path), timeout=120)
    assert "fault 1 False Worker 2 has ended." in done.stdout, done.stdout + done.stderr
    assert "fault 0 True Another team has failed." in done.stdout


def test_one_team_is_all_workers_without_further_ado():
    with side_by_side(workers := Workers(), (1,)) as number:
        assert number == 0
        assert Workers.from_environment().count == workers.count == 1
