"""What else may go wrong: workers that hang or are killed, a full disk. One message, and nothing finished is lost."""

import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT
from runs import QUICKSTART, SMALL, environment, fabric

from fedsim.run_folder import load_checkpoint
from fedsim.workers import Workers, check_timeout


def worker_of(launcher: subprocess.Popen, index: int) -> int:
    """The process id of a worker of this launch, 0 where it does not run."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                is_ours = int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == launcher.pid  # its parent
                variables = (entry / "environ").read_bytes().split(b"\0") if is_ours else []
            except OSError:  # it has just ended
                continue
            if f"RANK={index}".encode() in variables:
                return int(entry.name)
    return 0


def kill_all(launcher: subprocess.Popen) -> None:
    """kill -9 the launcher and its workers, each of which is a session of its own, all at once."""
    if launcher.poll() is None:
        for process in [launcher.pid, *(worker for worker in map(partial(worker_of, launcher), range(2)) if worker)]:
            os.kill(process, signal.SIGKILL)
        launcher.wait()


def struck(out: Path, index: int, number: signal.Signals, *options: object) -> tuple[int, str, float]:
    """Start a run of two workers, send one a signal after a round; return exit status, what was said, and seconds."""
    command = fabric(2, QUICKSTART, *SMALL, "--rounds", 50, "--out", out, *options)
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
    assert sum(1 for _ in (out / "metrics.csv").open()) > done, "a header, and no finished round is lost"


@pytest.mark.slow
def test_a_worker_that_hangs_is_named_and_ends_the_run(tmp_path):
    status, said, _ = struck(tmp_path / "run", 1, signal.SIGSTOP, "--timeout", 15, "--method", "fedit")
    assert status != 0
    assert said.count("error: Worker 1 did not answer for 15 seconds (--timeout): it hangs.") == 1, said
    assert said.count("error:") == 1, said
    assert "Traceback" not in said
    goes_on(tmp_path / "run")


@pytest.mark.slow
def test_worker_0_is_missed_by_the_others_when_it_hangs(tmp_path):
    status, said, _ = struck(tmp_path / "run", 0, signal.SIGSTOP, "--timeout", 5, "--method", "fedit")
    assert status != 0
    assert said.count("error: Worker 0 did not answer for 10 seconds (--timeout): it hangs.") == 1, said
    goes_on(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_worker_that_is_killed_ends_the_run_promptly(tmp_path, index):
    status, said, seconds = struck(tmp_path / "run", index, signal.SIGKILL, "--method", "fedit")
    assert status != 0
    assert seconds < 60
    assert "SIGKILL" in said, said
    goes_on(tmp_path / "run")


def test_a_time_out_is_a_positive_number_of_seconds(tiny_run):
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"timeout is .*; it must be a positive number of seconds \(--timeout\)"):
            tiny_run(timeout=timeout)
    check_timeout(0.5)
    assert Workers().timeout == 1800
