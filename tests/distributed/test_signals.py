"""A run that is asked to stop does so between two rounds, says how it goes on, and goes on to the same bits."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, TinyAttention, tiny_data
from runs import SMALL, environment, fabric, finished

import fedsim
from fedsim.distributed import signals as interruption
from fedsim.distributed.signals import INTERRUPTED, SIGNALS, Stopped, StopRequest
from fedsim.experiments import command_line
from fedsim.storage import run_folder


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.fixture
def ask_after(monkeypatch):
    """Send this process a signal when it has written this many checkpoints; other folders' count too."""

    def arm(number, checkpoints):
        real, count = run_folder.RunFolder.save_checkpoint, 0

        def save(self, *arguments):
            nonlocal count
            real(self, *arguments)
            count += 1
            if count == checkpoints:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(run_folder.RunFolder, "save_checkpoint", save)

    return arm


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_the_run_after_its_round_and_it_resumes_to_the_same_bits(tiny_run, ask_after, capfd, number):
    whole, before = tiny_run("whole"), handlers()
    ask_after(number, 2)
    with pytest.raises(Stopped) as stopped:
        tiny_run("stopped")
    assert stopped.value.code == 75
    assert handlers() == before
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith(f"{interruption.name(number)}: stopping when this round is finished")
    assert said[1] == f"{interruption.name(number)}: stopped after 2 of 3 rounds; the run can be resumed"
    folder = whole.folder.parent / "stopped"
    assert run_folder.load_checkpoint(folder)[0] == 2
    resumed = tiny_run("stopped", resume=True)
    assert resumed.digest == whole.digest
    assert (folder / "metrics.csv").read_bytes() == (whole.folder / "metrics.csv").read_bytes()


def test_asked_in_the_last_round_a_run_stops_before_it_meets_unseen_clients(tiny_run, ask_after):
    whole = tiny_run("whole")
    ask_after(signal.SIGTERM, 3)
    with pytest.raises(Stopped):
        tiny_run("stopped")
    assert tiny_run("stopped", resume=True).digest == whole.digest


def compared(out, **more):
    methods = {"fedit": fedsim.FedIT(lora_rank=2), "local": fedsim.Local(lora_rank=2)}
    common = {"backbone": TinyAttention(), "rounds": 2, "threads": 1}
    return fedsim.compare(methods, lambda seed: tiny_data(), out=out, **common, **more)


@pytest.mark.parametrize("checkpoints", [2, 3])
def test_a_comparison_stops_inside_a_run_or_between_two_and_resumes_to_the_same_bits(tmp_path, ask_after, checkpoints):
    whole, before = compared(tmp_path / "whole"), handlers()
    ask_after(signal.SIGUSR1, checkpoints)
    with pytest.raises(Stopped):
        compared(tmp_path / "stopped")
    assert handlers() == before
    assert not (tmp_path / "stopped" / "result.json").exists()
    assert compared(tmp_path / "stopped", resume=True).digest == whole.digest


def test_signals_are_left_alone_where_a_run_is_not_in_the_main_thread(tiny_run):
    with interruption.handle_signals():
        interruption._request.note(signal.SIGTERM)  # of an earlier run, which has ended
    found, before = [], handlers()
    thread = threading.Thread(target=lambda: found.append(tiny_run(rounds=1).digest))
    thread.start()
    thread.join()
    assert len(found) == 1
    assert handlers() == before


@pytest.mark.parametrize(
    ("first", "then", "seconds", "leaves"),
    [
        (signal.SIGINT, signal.SIGINT, 2, True),
        (signal.SIGINT, signal.SIGTERM, 2, True),  # how a launcher tells of the second Ctrl-C
        (signal.SIGTERM, signal.SIGINT, 2, True),
        (signal.SIGINT, signal.SIGINT, 0.1, False),  # the same one, heard from the launcher too
        (signal.SIGTERM, signal.SIGTERM, 2, False),
        (signal.SIGUSR1, signal.SIGTERM, 2, False),
    ],
)
def test_only_a_second_ctrl_c_leaves_at_once(monkeypatch, capfd, first, then, seconds, leaves):
    left, clock = [], [10.0]
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    request = StopRequest()
    request.note(first)
    clock[0] += seconds
    request.note(then)
    assert left == [INTERRUPTED] * leaves
    assert request.signal == first
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "command"),
    [
        ({}, "python recipes/x.py --resume 'runs/a b'"),
        (
            {"LT_CLI_USED": "1", "LT_DEVICES": "8", "LT_NUM_NODES": "1", "LT_PRECISION": "bf16-mixed"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"},
            "fabric run recipes/x.py --devices 8 --precision bf16-mixed --resume 'runs/a b'",
        ),
        (
            {"LT_CLI_USED": "1", "LT_DEVICES": "8", "LT_NUM_NODES": "1", "PET_STANDALONE": "1"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "43017"},
            "PET_STANDALONE=1 fabric run recipes/x.py --devices 8 --resume 'runs/a b'",
        ),
        (
            {"LT_CLI_USED": "1", "LT_ACCELERATOR": "cpu", "LT_DEVICES": "2", "LT_NUM_NODES": "4"}
            | {"MASTER_ADDR": "head", "MASTER_PORT": "10007"},
            "fabric run recipes/x.py --accelerator cpu --devices 2 --num-nodes 4 --main-address head --main-port 10007 "
            "--resume 'runs/a b'",
        ),
    ],
)
def test_a_recipe_that_was_stopped_says_how_it_goes_on(monkeypatch, capsys, tmp_path, variables, command):
    for name in [name for name in os.environ if name.startswith(("LT_", "MASTER_", "PET_"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["recipes/x.py", "--out", "runs/a b"])

    def stop(recipe):
        raise Stopped(interruption.STOPPED)

    with pytest.raises(SystemExit) as left:
        command_line.cli(fedsim.RunOptions, stop)
    assert left.value.code == 75
    assert capsys.readouterr().err.splitlines()[-1] == f"go on with: {command}"


@pytest.fixture
def begun(tmp_path):
    """Start two workers whose rounds wait from the third on; hand out launcher, workers, log and run folder."""
    started = []

    def begin(seconds):
        (tmp_path / "pause").write_text(f"{seconds} 2")
        log, out = tmp_path / "log", tmp_path / "run"
        command = fabric(2, "tests/paused.py", *SMALL, "--methods", "fedit", "--rounds", 8, "--out", out)
        variables = environment() | {"PAUSE": str(tmp_path / "pause")}
        with log.open("w") as said:
            launcher = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=said, stderr=said)
        started.append(launcher.pid)
        end = time.monotonic() + 600
        while not (tmp_path / "pause.reached").exists():  # later than any decision to stop before this round
            assert launcher.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        found = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split()
        started.extend(map(int, found))
        return launcher, started[1:], log, out

    yield begin
    for pid in filter(is_there, started):
        os.kill(pid, signal.SIGKILL)


def is_there(pid):
    return os.path.exists(f"/proc/{pid}")


@pytest.mark.slow
def test_under_the_launcher_all_workers_stop_and_the_printed_command_goes_on_to_the_same_bits(tmp_path, begun):
    whole = tmp_path / "whole"
    options = (*SMALL, "--methods", "fedit", "--rounds", 8)
    expected = finished(fabric(2, "tests/paused.py", *options, "--out", whole), whole, 600)
    process, workers, log, out = begun(0.2)
    assert len(workers) == 2
    process.terminate()
    assert process.wait(120) == 1
    assert not any(map(is_there, workers))
    said = log.read_text()
    assert re.search(r"SIGTERM: stopped after \d of 8 rounds", said)
    (command,) = re.findall(r"^go on with: (.*)$", said, flags=re.MULTILINE)
    assert finished([*fabric(2, "")[:1], *shlex.split(command)[1:]], out, 600)["digest"] == expected["digest"]
    for table in ("metrics.csv", "clients.csv"):
        assert (out / table).read_bytes() == (whole / table).read_bytes()


@pytest.mark.slow
def test_a_second_ctrl_c_ends_launcher_and_workers_inside_a_round(begun):
    process, workers, log, out = begun(1000)
    assert len(workers) == 2
    process.send_signal(signal.SIGINT)  # as from a keyboard: workers are in sessions of their own
    time.sleep(2)
    assert "Ctrl-C again to leave at once" in log.read_text()
    assert all(map(is_there, workers))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 1
    assert not any(map(is_there, workers))
    assert run_folder.load_checkpoint(out)[0] == 1  # the second round's evaluation waits already
