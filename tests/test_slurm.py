"""Jobs of slurm/fabric.sbatch under a real SLURM: warned, stopped, queued again and resumed; or failed for good.

Three jobs share two nodes. One has short rounds and stops between two of them before its time is up, one is in a round
that does not end, one has a mistake in its options.
"""

import json
import math
import shlex
import subprocess
from datetime import datetime

import pytest
import slurm_cluster
from conftest import ROOT
from runs import SMALL, fabric, finished
from slurm_cluster import until

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(3000)]

RECIPE = "tests/paused.py"
OPTIONS = (*SMALL, "--methods", "fedit", "--rounds", 16)
PATIENCE = 900
"""Seconds that anything may take on a busy machine."""
WARNING = 60
"""Seconds before its time limit at which a job is told; SLURM looks every thirty."""


@pytest.fixture(scope="module")
def slurm():
    if missing := slurm_cluster.missing():
        pytest.skip(f"SLURM is not installed and cannot be (no root, no apt or no network): {missing}")
    with slurm_cluster.cluster() as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return out, finished(fabric(2, RECIPE, *OPTIONS, "--out", out), out, PATIENCE)


def submit(slurm, log, pause, *options, **variables):
    """Submit as `make slurm` does, on two nodes with one GPU of each, which CPU workers do not use."""
    arguments = shlex.join(map(str, ("--accelerator", "cpu", "--devices", 1, *options)))
    asked = f"--parsable --time 60 --signal=B:USR1@{WARNING} --output={log}"
    variables = {"RECIPE": RECIPE, "NODES": "2", "DEVICES": "1", "ARGS": arguments, "SLURM": asked}
    command = subprocess.check_output(
        ["make", "--dry-run", "slurm", *(f"{name}={value}" for name, value in variables.items())], cwd=ROOT, text=True
    )
    (line,) = [line for line in command.splitlines() if "sbatch" in line]
    return slurm.run("bash", "-c", line, cwd=ROOT, PAUSE=str(pause)).strip()


@pytest.fixture(scope="module")
def jobs(slurm, tmp_path_factory):
    """The three jobs by name: number, run folder, the batch script's log, the file that slows it."""
    folder, submitted = tmp_path_factory.mktemp("jobs"), {}
    for name, pause, options in (
        ("short", "3 2", OPTIONS),
        ("endless", "1000 3", OPTIONS),
        ("mistaken", "0 0", (*OPTIONS, "--cohort-size", 99)),
    ):
        (folder / f"{name}.pause").write_text(pause)
        log, out = folder / f"{name}.log", folder / name
        number = submit(slurm, log, folder / f"{name}.pause", *options, "--out", out)
        submitted[name] = (number, out, log, folder / f"{name}.pause")
    return submitted


def is_up(slurm, job):
    """Let the time of a job be up soon, now that it is at work: the warning is due."""
    number, out, _, _ = job
    metrics = out / "metrics.csv"
    until(lambda: metrics.exists() and metrics.read_text().count("\n") > 2, PATIENCE, lambda: told(slurm, job))
    started = datetime.fromisoformat(slurm.job(number)["StartTime"])
    elapsed = (datetime.now() - started).total_seconds()
    slurm.run("scontrol", "update", f"JobId={number}", f"TimeLimit={math.ceil((elapsed + WARNING) / 60)}")


def told(slurm, job):
    """What a job and the cluster said, for a failure's message."""
    logs = [job[2], *sorted((job[1] / "logs").glob("*.log"))]
    return "\n".join(f"== {path}\n{path.read_text()[-3000:]}" for path in logs if path.exists()) + slurm.logs()


@pytest.fixture(scope="module")
def returned(slurm, jobs):
    """The two jobs whose time was up: when they are back nothing slows them and they have time enough."""
    two = [jobs[name] for name in ("short", "endless")]
    for job in two:
        is_up(slurm, job)
    for job in two:
        number, _, _, pause = job
        until(lambda number=number: slurm.job(number)["Restarts"] != "0", PATIENCE, lambda job=job: told(slurm, job))
        pause.unlink()
        slurm.run("scontrol", "update", f"JobId={number}", "TimeLimit=60")
    return jobs


@pytest.mark.parametrize("name", ["short", "endless"])
def test_a_job_whose_time_is_up_comes_back_and_ends_in_the_same_bits(slurm, returned, undisturbed, name):
    number, out, log, _ = returned[name]
    job = slurm.wait(number, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "1"), told(slurm, returned[name])
    expected, result = undisturbed
    assert json.loads((out / "result.json").read_text())["digest"] == result["digest"]
    for table in ("metrics.csv", "clients.csv"):
        assert (out / table).read_bytes() == (expected / table).read_bytes()
    said = [(out / "logs" / f"node-{node}.log").read_text() for node in (0, 1)]
    assert "SIGUSR1: stopping when this round is finished" in said[0]
    assert ("of 16 rounds; the run can be resumed" in said[0]) == (name == "short")
    assert said[0].splitlines()[-1] == f"digest {result['digest']}"
    assert "digest" not in said[1]
    assert log.read_text().count("queueing again") == 1


def test_the_exit_code_of_a_mistake_is_the_jobs_and_it_is_not_queued_again(slurm, jobs):
    number, out, log, _ = jobs["mistaken"]
    job = slurm.wait(number, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "0"), told(slurm, jobs["mistaken"])
    assert "error: cohort_size is 99; it must lie in 1 … 10" in (out / "logs" / "node-0.log").read_text()
    assert "queueing again" not in log.read_text()
    assert not (out / "recipe.json").exists()


def test_jobs_on_the_same_nodes_have_gpus_and_ports_of_their_own(slurm, returned):
    """That they ran at the same time is what the other tests' jobs did: both were at work when their time was up."""
    first = {}
    for name in ("short", "endless"):
        for node in (0, 1):
            text = (returned[name][1] / "logs" / f"node-{node}.log").read_text()
            first[name, node] = next(line.split() for line in text.splitlines() if line.startswith("gpus"))
    for node in (0, 1):
        (_, gpu, _, port), (_, other_gpu, _, other_port) = first["short", node], first["endless", node]
        assert gpu != other_gpu
        assert port != other_port
    assert first["short", 0] == first["short", 1]
