"""Workers that hang or are killed: one message that names them, and nothing that was finished is lost."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT
from runs import QUICKSTART, SMALL, environment, fabric, kill_all, worker_of

from fedsim.run_folder import load_checkpoint
from fedsim.workers import Workers, check_timeout


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


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_a_worker_that_hangs_is_named_and_ends_the_run(tmp_path, workers):
    """And nobody else is said to hang: a third worker waits for worker 0 longer than that for the one that hangs."""
    options = "--timeout", 15, "--method", "fedit"
    status, said, _ = struck(tmp_path / "run", 1, signal.SIGSTOP, *options, workers=workers)
    assert status != 0
    assert said.count("error: Worker 1 did not answer for 15 seconds (--timeout): it hangs.") == 2, said
    assert said.count("error:") == 2, "at once, and at the end of what the launcher says"
    assert "LostWorker" not in said, "a message, not a traceback (but for the launcher's own)"
    goes_on(tmp_path / "run")


@pytest.mark.slow
def test_worker_0_is_missed_by_the_others_when_it_hangs(tmp_path):
    status, said, _ = struck(tmp_path / "run", 0, signal.SIGSTOP, "--timeout", 5, "--method", "fedit")
    assert status != 0
    assert said.count("error: Worker 0 did not answer for 10 seconds (--timeout): it hangs.") == 2, said
    goes_on(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_worker_that_is_killed_ends_the_run_promptly(tmp_path, index):
    status, said, seconds = struck(tmp_path / "run", index, signal.SIGKILL, "--method", "fedit")
    assert status != 0
    assert seconds < 60
    assert "SIGKILL" in said, said
    goes_on(tmp_path / "run")


@pytest.mark.slow
def test_workers_whose_launcher_is_killed_end_too(tmp_path):
    """Each is a session of its own, so nobody else would end them, and they would write beside a resumed run."""
    out = tmp_path / "run"
    command = fabric(2, QUICKSTART, *SMALL, "--rounds", 500, "--method", "fedit", "--out", out)
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


def test_a_time_out_is_a_positive_number_of_seconds(tiny_run):
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"timeout is .*; it must be a positive number of seconds \(--timeout\)"):
            tiny_run(timeout=timeout)
    check_timeout(0.5)
    assert Workers().timeout == 1800
