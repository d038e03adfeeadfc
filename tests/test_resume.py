"""A run that was stopped continues to the same bits, with each row once."""

import json
import os
import random
import signal
import subprocess
import time

import pytest
from conftest import ROOT
from runs import QUICKSTART, SMALL, environment, fabric, finished

import fedsim
from fedsim import run_folder
from fedsim.devices import DeviceProfiles


class Stopped(Exception):
    pass


@pytest.fixture
def stop_after(monkeypatch):
    """Make the run stop when it has written this many checkpoints, or in the middle of the next one's round."""

    def arm(checkpoints: int) -> None:
        real, count = run_folder.RunFolder.save_checkpoint, 0

        def save(self, *arguments):
            nonlocal count
            count += 1
            if count > checkpoints:
                raise Stopped
            real(self, *arguments)

        monkeypatch.setattr(run_folder.RunFolder, "save_checkpoint", save)

    return arm


@pytest.mark.parametrize("method", [fedsim.FedIT, fedsim.Local, fedsim.HiLoRA, fedsim.FedTreeLoRA])
@pytest.mark.parametrize("checkpoints", [0, 1, 4, 5])
def test_a_stopped_run_resumes_to_the_same_bits_and_rows(tiny_run, stop_after, monkeypatch, method, checkpoints):
    devices = DeviceProfiles(gflops=1e-6, gflops_sigma=0.5, mbps_down=0.01, mbps_up=0.01, deadline=35)
    common = {"method": method(lora_rank=2), "rounds": 6, "cohort_size": 3, "devices_profile": devices}
    whole = tiny_run("whole", **common)
    assert whole.summary["dropped"] > 0
    stop_after(checkpoints)
    with pytest.raises(Stopped):
        tiny_run("stopped", **common)
    monkeypatch.undo()
    resumed = tiny_run("stopped", resume=True, **common)
    assert resumed.digest == whole.digest
    for table in ("metrics.csv", "clients.csv", "costs.csv"):
        assert (resumed.folder / table).read_bytes() == (whole.folder / table).read_bytes()
    events = [json.loads(line)["round"] for line in (resumed.folder / "events.jsonl").read_text().splitlines()]
    assert events == list(range(7))


PERSONALISED = {
    "clustered_fedavg": fedsim.ClusteredFedAvg(lora_rank=2, n_clusters=2),
    "feddpa": fedsim.FedDPA(lora_rank=2),
    "fedalt": fedsim.FedALT(lora_rank=2),
    "fedlease": fedsim.FedLEASE(lora_rank=2, warmup_rounds=1),
    "fdlora": fedsim.FDLoRA(lora_rank=2, personal_share=0.2, fusion_share=0.2, sync_period=2),
}


@pytest.mark.parametrize("name", PERSONALISED)
def test_what_is_personal_resumes_to_the_same_bits(tiny_run, stop_after, monkeypatch, name):
    common = {"method": PERSONALISED[name], "rounds": 5, "cohort_size": 3}
    whole = tiny_run("whole", **common)
    stop_after(3)
    with pytest.raises(Stopped):
        tiny_run("stopped", **common)
    monkeypatch.undo()
    assert tiny_run("stopped", resume=True, **common).digest == whole.digest


def test_a_torn_last_line_is_dropped(tiny_run, stop_after, monkeypatch):
    whole = tiny_run("whole")
    stop_after(1)
    with pytest.raises(Stopped):
        tiny_run("stopped")
    monkeypatch.undo()
    for name in ("metrics.csv", "clients.csv", "costs.csv", "events.jsonl"):
        path = whole.folder.parent / "stopped" / name
        path.write_text(path.read_text()[:-3])
    assert tiny_run("stopped", resume=True).digest == whole.digest
    assert (whole.folder.parent / "stopped" / "metrics.csv").read_bytes() == (whole.folder / "metrics.csv").read_bytes()


def test_a_finished_run_resumes_to_its_own_result(tiny_run):
    whole = tiny_run()
    tables = {name: (whole.folder / name).read_bytes() for name in ("metrics.csv", "clients.csv")}
    assert tiny_run(resume=True).digest == whole.digest
    assert {name: (whole.folder / name).read_bytes() for name in tables} == tables


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_is_named_and_nothing_is_lost(tiny_run, damage):
    folder = tiny_run(rounds=2).folder
    path = folder / "checkpoints" / "round-000002.safetensors"
    payload = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        payload[-1] ^= 1
        path.write_bytes(payload if damage == "flip" else payload[: len(payload) // 2])
    tables = (folder / "metrics.csv").read_bytes()
    with pytest.raises(
        ValueError, match=r"round-000002.safetensors' is damaged.*to resume from the checkpoint before it"
    ):
        tiny_run(rounds=2, resume=True)
    assert (folder / "metrics.csv").read_bytes() == tables
    for kind in ("json", "safetensors"):
        path.with_suffix(f".{kind}").unlink(missing_ok=True)
    tiny_run(rounds=2, resume=True)
    assert (folder / "metrics.csv").read_bytes() == tables


def test_a_folder_of_another_recipe_is_refused(tiny_run):
    tiny_run()
    with pytest.raises(ValueError, match=r"run folder of another recipe: seed was 0 and is 7"):
        tiny_run(resume=True, seed=7)


def test_a_folder_without_a_run_is_refused(tiny_run, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="is no run folder"):
        tiny_run(resume=True)


def rounds_in(folder):
    table = folder / "metrics.csv"
    return table.read_text().count("\n") if table.exists() else 0


@pytest.mark.slow
def test_kill_9_at_random_moments_ends_in_the_same_bits(tmp_path):
    options = (*SMALL, "--rounds", 8, "--method", "hilora")
    whole = tmp_path / "whole"
    expected = finished(fabric(2, QUICKSTART, *options, "--out", whole), whole)
    out, moments, kills = tmp_path / "killed", random.Random(0), 0
    command = fabric(2, QUICKSTART, *options, "--out", out)
    while not (out / "result.json").exists():
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True)
        before = rounds_in(out)
        while process.poll() is None and rounds_in(out) == before:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.5))
        if process.poll() is None and kills < 4:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait(timeout=300)
        command = fabric(2, QUICKSTART, "--resume", out)
    assert kills >= 2
    assert json.loads((out / "result.json").read_text())["digest"] == expected["digest"]
    for table in ("metrics.csv", "clients.csv", "costs.csv"):
        assert (out / table).read_bytes() == (whole / table).read_bytes()
