"""Cells of a comparison side by side: the same bits as together, and as much is kept when it is killed or stopped."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT, TinyAttention, tiny_data
from runs import QUICKSTART, SMALL, called_by_script, environment, fabric, finished, kill_all, python, run

import fedsim
from fedsim.distributed.workers import Workers
from fedsim.experiments.cell_runs import job_of, run_cells
from fedsim.experiments.makespan import Job
from fedsim.run_spec import RunSpec
from fedsim.storage.run_folder import load_checkpoint

OPTIONS = (*SMALL, "--rounds", 6, "--cohort-size", 5, "--block-size", 2)
CELLS = [Path("seed-0") / name for name in ("local", "fedit", "hilora")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One worker's result and folder."""
    out = tmp_path_factory.mktemp("alone") / "run"
    return finished(python(QUICKSTART, *OPTIONS, "--out", out), out), out


def assert_same(out: Path, alone: tuple[dict[str, object], Path]) -> None:
    """The same digest and rows."""
    result, reference = alone
    assert json.loads((out / "result.json").read_text())["digest"] == result["digest"]
    for cell in CELLS:
        for table in ("clients.csv", "costs.csv"):
            assert (out / cell / table).read_bytes() == (reference / cell / table).read_bytes()


def workers_of(cell: Path) -> int:
    """How many workers a cell was begun with."""
    return json.loads((cell / "recipe.json").read_text())["environment"]["workers"]


@pytest.mark.slow
def test_cells_are_the_same_bits_side_by_side_as_together_and_with_one_worker(alone, tmp_path):
    for how, sizes in (("auto", [1, 1, 2]), ("together", [2, 2, 2])):
        out = tmp_path / how
        done = run(fabric(2, QUICKSTART, *OPTIONS, "--cells", how, "--out", out))
        assert done.returncode == 0, done.stdout + done.stderr
        assert_same(out, alone)
        assert [workers_of(out / cell) for cell in CELLS] == sizes
        assert ("Side by side: 2 cells by 1 + 1 workers, then 1 by all 2 (--cells)." in done.stderr) == (how == "auto")
        for line in ("round 6/6 · 1/3 · local, seed 0 ·", "round 6/6 · 2/3 · fedit, seed 0 ·"):
            assert done.stdout.count(line) == 1, done.stdout


def begun_side_by_side(out: Path, *options: object) -> subprocess.Popen:
    """Start three cells with two workers; return when both of the first two have a checkpoint."""
    command = fabric(2, QUICKSTART, *OPTIONS, "--out", out, *options)
    with out.with_suffix(".log").open("w") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=said, stderr=said)
    try:
        while not all(load_checkpoint(out / cell)[0] for cell in CELLS[:2]):
            assert process.poll() is None, out.with_suffix(".log").read_text()
            time.sleep(0.02)
    except BaseException:
        kill_all(process)
        raise
    return process


@pytest.mark.slow
def test_killed_side_by_side_it_goes_on_with_any_workers_to_the_same_bits(alone, tmp_path):
    for name, workers, how in (("one", 1, "auto"), ("two", 2, "together"), ("three", 3, "auto")):
        out = tmp_path / name
        kill_all(begun_side_by_side(out))
        assert not (out / "result.json").exists()
        finished(fabric(workers, QUICKSTART, "--resume", out, "--cells", how), out)
        assert_same(out, alone)


@pytest.mark.slow
def test_asked_to_stop_side_by_side_every_cell_stops_after_its_round(alone, tmp_path):
    out = tmp_path / "run"
    process = begun_side_by_side(out)
    try:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(timeout=120)
    finally:
        kill_all(process)
    said = out.with_suffix(".log").read_text()
    assert said.count("SIGTERM: stopping when this round is finished") == 1, said
    for title in ("1/3 · local, seed 0", "2/3 · fedit, seed 0"):
        assert said.count(f"SIGTERM: {title} stopped after") == 1, said
    assert said.count("go on with: ") == 1, said
    finished(fabric(2, QUICKSTART, "--resume", out), out)
    assert_same(out, alone)


def tune(out: Path) -> fedsim.Comparison | None:
    """Two methods with two trials each, over two seeds."""
    rates = {"local.learning_rate": (1e-3, 3e-2)}
    methods = {"fedit": fedsim.FedIT(lora_rank=2), "local": fedsim.Local(lora_rank=2)}
    grids = {name: fedsim.Grid(method, rates) for name, method in methods.items()}
    common = {"backbone": TinyAttention(), "rounds": 2, "block_size": 2, "threads": 1}
    return fedsim.compare(grids, lambda seed: tiny_data(seed=seed), seeds=(0, 1), out=out, **common)


@pytest.mark.slow
def test_trials_are_dealt_too_and_choose_the_same(tmp_path):
    done = run(fabric(2, called_by_script(tune, tmp_path / "script.py"), tmp_path / "two"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("Side by side: 4 cells by 1 + 1 workers (--cells).") == 2
    one = tune(tmp_path / "one")
    assert one is not None
    assert json.loads((tmp_path / "two" / "result.json").read_text())["digest"] == one.digest
    assert (tmp_path / "two" / "tuning.json").read_bytes() == (tmp_path / "one" / "tuning.json").read_bytes()


def test_an_unknown_way_to_share_cells_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"cells is 'apart'; it must be one of auto, together \(--cells\)"):
        fedsim.compare({"it": fedsim.Local()}, tiny_data, out=tmp_path / "run", cells="apart")
    assert not (tmp_path / "run").exists()


def test_a_cells_work_is_its_rounds_of_blocks():
    common = {"method": fedsim.FedIT(lora_rank=2), "backbone": TinyAttention(), "data": tiny_data(), "rounds": 7}
    local = fedsim.LocalTraining(epochs=3, batch_size=64)
    assert job_of(RunSpec(**common, block_size=2, local=local)) == Job(7, 3, 6.0)
    assert job_of(RunSpec(**common, engine="sequential", local=local)) == Job(7, 5, 3.0)
    found = job_of(RunSpec(**common, local=local))
    assert (found.rounds, found.blocks) == (7, 3), "two clients of 64 samples at most"


def test_one_worker_runs_cells_in_their_order_and_none_runs_what_there_is_not(tmp_path):
    assert run_cells([], lambda cell: None, "auto", tmp_path, 60) == []
    assert Workers.n_launched() == 1
