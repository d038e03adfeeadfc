"""Workers that hang or are killed: one message that names them, and nothing that was finished is lost."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT, TinyAttention, tiny_data
from runs import QUICKSTART, SMALL, environment, fabric, kill_all, run, worker_of

import fedsim
from fedsim.distributed.workers import Workers, check_timeout
from fedsim.storage.run_folder import load_checkpoint


def struck(out: Path, index: int, number: signal.Signals, *options: object, workers: int = 2) -> tuple[int, str, float]:
    """Start a run, send one worker a signal after a round; return exit status, what was said, and seconds."""
    command = fabric(workers, QUICKSTART, *SMALL, "--rounds", 50, "--out", out, *options)
    log = out.with_suffix(".log")
    with log.open("w") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=said, stderr=said, start_new_session=True
        )
        try:
            while load_checkpoint(out)[0] == 0:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            struck_at = time.monotonic()
            os.kill(worker_of(process, index), number)
            status = process.wait(timeout=200)
            return status, log.read_text(), time.monotonic() - struck_at
        finally:
            kill_all(process)


def goes_on(out: Path) -> None:
    """The run has a checkpoint, from which it continues."""
    done, _ = load_checkpoint(out)
    assert done > 0
    assert len((out / "metrics.csv").read_text().splitlines()) > done, "a header, and no finished round is lost"


HANGS = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
victim, place, at, mark = int(sys.argv.pop(1)), sys.argv.pop(1), int(sys.argv.pop(1)), sys.argv.pop(1)
import torch.distributed as dist
import quickstart, fedsim

real, calls = getattr(dist, place), []

def stop(*parts, **options):
    calls.append(parts)
    if dist.get_rank() == victim and len(calls) == at:
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGSTOP)
    return real(*parts, **options)

setattr(dist, place, stop)
fedsim.cli(quickstart.Quickstart, quickstart.main)
"""
"""Stops a worker where it exchanges something for the so-many-th time, and leaves a file then."""


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "index"), [(2, 1), (3, 0)])
def test_a_worker_that_hangs_is_named_and_ends_the_run(tmp_path, workers, index):
    """And nobody else is said to hang, who waits for another; nor does the launcher wait for who hangs."""
    options = "--timeout", 15, "--methods", "fedit"
    status, said, seconds = struck(tmp_path / "run", index, signal.SIGSTOP, *options, workers=workers)
    assert status != 0
    assert said.count(f"error: Worker {index} did not answer for 15 seconds (--timeout): it hangs.") == 2, said
    assert said.count("error:") == 2, "at once, and at the end of what the launcher says"
    assert "LostWorker" not in said, "a message, not a traceback (but for the launcher's own)"
    assert seconds < 15 + 15, said
    goes_on(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("index", "place", "at"), [(1, "gather", 9), (1, "broadcast", 20), (2, "scatter", 9), (0, "broadcast", 20)]
)
def test_a_worker_that_hangs_inside_a_transfer_is_named_too(tmp_path, index, place, at):
    script, out, mark = tmp_path / "hangs.py", tmp_path / "run", tmp_path / "stopped"
    script.write_text(HANGS)
    options = (*SMALL, "--rounds", 50, "--methods", "fedit", "--timeout", 10, "--out", out)
    command = fabric(3, script, ROOT / "recipes", index, place, at, mark, *options)
    done = run(command)
    seconds = time.time() - mark.stat().st_mtime
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert said.count(f"error: Worker {index} did not answer for 10 seconds (--timeout): it hangs.") == 2, said
    assert said.count("error:") == 2, said
    assert seconds < 10 + 30, said


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_worker_that_is_killed_ends_the_run_promptly(tmp_path, index):
    status, said, seconds = struck(tmp_path / "run", index, signal.SIGKILL, "--methods", "fedit")
    assert status != 0
    assert seconds < 60
    assert "SIGKILL" in said, said
    goes_on(tmp_path / "run")


@pytest.mark.slow
def test_workers_whose_launcher_is_killed_end_too(tmp_path):
    """Each is a session of its own, so nobody else would end them, and they would write beside a resumed run."""
    out = tmp_path / "run"
    command = fabric(2, QUICKSTART, *SMALL, "--rounds", 500, "--methods", "fedit", "--out", out)
    with out.with_suffix(".log").open("w") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=said, stderr=said)
        while load_checkpoint(out)[0] == 0:
            assert process.poll() is None
            time.sleep(0.1)
        workers = [worker_of(process, index) for index in range(2)]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 120
        while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.2)
    assert all(workers)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert out.with_suffix(".log").read_text().count("error: The launcher (fabric run) has ended.") == 1
    goes_on(out)


def compare_with(timeout: float, out: Path) -> None:
    """Compare one method with itself, which a bad time-out must prevent."""
    common = {"backbone": TinyAttention(), "rounds": 1, "threads": 1, "timeout": timeout}
    fedsim.compare({"fedit": fedsim.FedIT(lora_rank=2)}, lambda seed: tiny_data(), out=out, **common)


def test_a_time_out_is_a_positive_number_of_seconds(tiny_run, tmp_path):
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"timeout is .*; it must be a positive number of seconds \(--timeout\)"):
            tiny_run(timeout=timeout)
        with pytest.raises(ValueError, match=r"it must be a positive number of seconds \(--timeout\)"):
            compare_with(timeout, tmp_path / "all")
    assert not (tmp_path / "all").exists()
    check_timeout(0.5)
    assert Workers().timeout == 1800
