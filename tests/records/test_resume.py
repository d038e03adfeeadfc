"""A run that was stopped continues to the same bits, with each row once."""

import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT, Stopped, TinyAttention, tiny_data
from runs import QUICKSTART, SMALL, environment, fabric, finished, kill_all

import fedsim
from fedsim import simulation
from fedsim.costs.devices import DeviceProfiles
from fedsim.report.reading import read_run


@pytest.mark.parametrize(
    ("method", "checkpoints"),
    [
        *((fedsim.HiLoRA, count) for count in (0, 1, 4, 5)),
        (fedsim.FedIT, 1),
        (fedsim.Local, 4),
        (fedsim.FedTreeLoRA, 5),
    ],
)
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
    assert events == list(range(1, 8))


LASTING = {
    "scaffold": fedsim.SCAFFOLD(lora_rank=2),
    "ditto": fedsim.Ditto(lora_rank=2),
    "fedmomentum": fedsim.FedMomentum(ranks=fedsim.LoraRanks(values=(2,))),
    "raflora": fedsim.RaFLoRA(ranks=fedsim.LoraRanks(values=(1, 2))),
    "fedrot_lora": fedsim.FedRotLoRA(lora_rank=2),
    "fedsvd": fedsim.FedSVD(ranks=fedsim.LoraRanks(values=(2,))),
    "rolora": fedsim.RoLoRA(lora_rank=2),
    "fed_sb": fedsim.FedSB(ranks=fedsim.LoraRanks(values=(2, 3))),
    "ravan": fedsim.Ravan(lora_rank=2),
    "clustered_fedavg": fedsim.ClusteredFedAvg(lora_rank=2, n_clusters=2),
    "feddpa": fedsim.FedDPA(lora_rank=2),
    "fedalt": fedsim.FedALT(lora_rank=2),
    "fedlease": fedsim.FedLEASE(lora_rank=2, warmup_rounds=1),
    "fdlora": fedsim.FDLoRA(lora_rank=2, personal_share=0.2, fusion_share=0.2, sync_period=2),
}


@pytest.mark.parametrize("name", LASTING)
def test_what_outlives_a_round_resumes_to_the_same_bits(tiny_run, stop_after, monkeypatch, name):
    common = {"method": LASTING[name], "rounds": 5, "cohort_size": 3}
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


def test_a_checkpoint_of_another_run_is_refused(tiny_run):
    """The same shapes, so nothing else would tell."""
    ours, theirs = tiny_run("ours", rounds=2), tiny_run("theirs", rounds=2, seed=1)
    shutil.rmtree(ours.folder / "checkpoints")
    shutil.copytree(theirs.folder / "checkpoints", ours.folder / "checkpoints")
    with pytest.raises(ValueError, match=r"round-000002.safetensors' is that of another run. Delete round-000002"):
        tiny_run("ours", rounds=2, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": TinyAttention(width=12, depth=1)}, r"other data or weights; not the same: backbone\."),
        ({"data": tiny_data(7)}, r"other data or weights; not the same: inputs, targets, split\."),
    ],
)
def test_a_run_of_other_data_or_weights_is_refused_before_anything_starts(tiny_run, monkeypatch, change, message):
    """A script may have changed without its recipe telling."""
    recipe = {"name": "mine"}
    before = contents(tiny_run(rounds=2, recipe=recipe).folder)
    monkeypatch.setattr(simulation, "launch", lambda: pytest.fail("processes have started"))
    with pytest.raises(ValueError, match=message):
        tiny_run(rounds=2, recipe=recipe, resume=True, **change)
    assert contents(Path(before["folder"])) == before


def test_one_label_that_has_changed_is_noticed_and_nothing_is_touched(tiny_run, stop_after, monkeypatch, tmp_path):
    stop_after(1)
    with pytest.raises(Stopped):
        tiny_run(recipe={"name": "mine"})
    monkeypatch.undo()
    folder, data = tmp_path / "run", tiny_data()
    before = contents(folder)
    data.targets[40] = (data.targets[40] + 1) % 3
    with pytest.raises(ValueError, match=r"run' was begun with other data or weights; not the same: targets\."):
        tiny_run(recipe={"name": "mine"}, resume=True, data=data)
    assert contents(folder) == before


def test_a_checkpoint_that_does_not_fit_is_refused(tiny_run):
    """Somebody has taken out of recipe.json what would tell, and changed the script."""
    folder = tiny_run(rounds=2).folder
    recipe = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps(recipe | {"fingerprint": {}}))
    with pytest.raises(ValueError, match=r"that of another run"):
        tiny_run(rounds=2, resume=True, data=tiny_data(7))


def contents(folder):
    return {"folder": str(folder)} | {str(path): path.read_bytes() for path in folder.rglob("*.csv")}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"round_index": 2}', "null"])
def test_a_damaged_manifest_is_named(tiny_run, text):
    folder = tiny_run(rounds=2).folder
    (folder / "checkpoints" / "round-000002.json").write_text(text)
    with pytest.raises(ValueError, match=r"round-000002.safetensors' is damaged.*checkpoint before it"):
        tiny_run(rounds=2, resume=True)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_recipe_is_named(tiny_run, text):
    (tiny_run(rounds=1).folder / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match=r"recipe.json' is damaged"):
        tiny_run(rounds=1, resume=True)


def test_a_table_whose_first_write_was_killed_gets_its_header(tiny_run, stop_after, monkeypatch):
    whole = tiny_run("whole")
    stop_after(0)
    with pytest.raises(Stopped):
        tiny_run("stopped")
    monkeypatch.undo()
    stopped = whole.folder.parent / "stopped"
    (stopped / "metrics.csv").write_text("")
    (stopped / "clients.csv").write_text("round,sta")
    assert tiny_run("stopped", resume=True).digest == whole.digest
    for table in ("metrics.csv", "clients.csv"):
        assert (stopped / table).read_bytes() == (whole.folder / table).read_bytes()


def rounds_in(folder):
    table = folder / "metrics.csv"
    return table.read_text().count("\n") if table.exists() else 0


@pytest.mark.slow
def test_kill_9_at_random_moments_ends_in_the_same_bits(tmp_path):
    options = (*SMALL, "--rounds", 8, "--methods", "hilora")
    whole = tmp_path / "whole"
    expected = finished(fabric(2, QUICKSTART, *options, "--out", whole), whole)
    out, moments, kills = tmp_path / "killed", random.Random(0), 0
    command = fabric(2, QUICKSTART, *options, "--out", out)
    while not (out / "result.json").exists():
        process = subprocess.Popen(command, cwd=ROOT, env=environment())
        before = rounds_in(out)
        while process.poll() is None and rounds_in(out) == before:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.5))
        if process.poll() is None and kills < 4:
            kill_all(process)
            kills += 1
        process.wait(timeout=300)
        command = fabric(2, QUICKSTART, "--resume", out)
    assert kills >= 2
    assert json.loads((out / "result.json").read_text())["digest"] == expected["digest"]
    for table in ("metrics.csv", "clients.csv", "costs.csv"):
        assert (out / table).read_bytes() == (whole / table).read_bytes()


def test_a_folder_whose_rounds_count_from_zero_is_refused_wherever_it_is_read(tiny_run, tmp_path):
    folder = tiny_run().folder
    for name in ("metrics.csv", "clients.csv", "costs.csv", "timing.csv"):
        head, *rows = (folder / name).read_text().splitlines()
        older = [f"{int(number) - 1},{rest}" for number, _, rest in (row.partition(",") for row in rows)]
        (folder / name).write_text("\n".join([head, *older]) + "\n")
    before = contents(folder)
    message = r"is of an earlier version of fedsim, whose tables count rounds from 0.*start the run anew \(--out\)"
    for read in (
        lambda: tiny_run(resume=True),
        lambda: read_run(folder, "older"),
        lambda: fedsim.export_adapter(folder, tmp_path / "adapter", client=1),
    ):
        with pytest.raises(ValueError, match=message):
            read()
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("table", "damage", "message"),
    [
        ("metrics.csv", lambda lines: [*lines[:2], b"gar\xffbage\n", *lines[3:]], r"line 3: 'gar.bage' is no row"),
        (
            "clients.csv",
            lambda lines: [*lines[:4], lines[4][:9] + b"\n", *lines[5:]],
            r"line 5: .*fields, and the header",
        ),
        ("costs.csv", lambda lines: lines[1:], r"line 1: .* is no row \(it is no header\)"),
        ("events.jsonl", lambda lines: [b'{"round": \n', *lines[1:]], r"line 1: .* is no row"),
        ("metrics.csv", lambda lines: [*lines[:2], *lines[3:]], r"line 3: it is of round 3, and none .* of round 2"),
        ("timing.csv", lambda lines: lines[:3], r"line 4: here must be a row of round 3, and the file ends"),
        ("costs.csv", lambda lines: [], r"line 1: here must be a row of round 1"),
    ],
)
def test_a_damaged_table_is_named_with_its_line_before_anything_starts(tiny_run, monkeypatch, table, damage, message):
    path = tiny_run().folder / table
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    before = contents(path.parent)
    monkeypatch.setattr(simulation, "launch", lambda: pytest.fail("processes have started"))
    with pytest.raises(ValueError, match=rf"{table}' is damaged in {message}.*Put back a copy"):
        tiny_run(resume=True)
    assert contents(path.parent) == before
