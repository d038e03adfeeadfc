"""A finished run goes on to more rounds, to the same bits and rows, unless what it did depends on their number."""

import csv
import json

import pytest
import torch
from conftest import TinyAttention, tiny_data
from runs import QUICKSTART, SMALL, fabric, finished, python, run

import fedsim
from fedsim import simulation
from fedsim.parts.fisher import FisherAllocation
from fedsim.records.recorder import HORIZON
from fedsim.round import Horizon, ServerState
from fedsim.storage import run_folder

TABLES = ("metrics.csv", "clients.csv", "costs.csv", "events.jsonl")
HILORA = fedsim.HiLoRA(lora_rank=2, root_share=0.2, cluster_share=0.2)


class Stopped(Exception):
    pass


def stop(*_):
    raise Stopped


def with_proxy(warmup_rounds: int) -> dict[str, object]:
    """Fed-HeLLo whose scores have effect from this round on, and data with a proxy set."""
    method = fedsim.FedHeLLo(lora_rank=2, fim=FisherAllocation(warmup_rounds=warmup_rounds, period=2))
    return {"method": method, "data": fedsim.with_proxy(tiny_data(), torch.arange(0, 96, 8))}


def contents(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows_of(folder) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def is_the_same(result: fedsim.Result, whole: fedsim.Result) -> bool:
    """Digest, recipe, summary but for seconds, and all tables."""
    assert result.digest == whole.digest
    for name in TABLES:
        assert (result.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    recipes = [run_folder.read_recipe(each.folder) for each in (result, whole)]
    summaries = [json.loads((each.folder / "result.json").read_text()) for each in (result, whole)]
    assert all(each.pop("seconds") for each in summaries)
    return recipes[0] == recipes[1] and summaries[0] == summaries[1]


GOES_ON = {
    "fedit": {"method": fedsim.FedIT(lora_rank=2)},
    "fedtreelora": {"method": fedsim.FedTreeLoRA(lora_rank=2, warmup_rounds=2)},
    "rgd": {"method": fedsim.FedHeLLo(lora_rank=2, strategy="rgd")},
    "scores due in the round behind the last": with_proxy(4),
    "scores due two rounds behind the last": with_proxy(5),
}


@pytest.mark.parametrize("name", GOES_ON)
def test_a_finished_run_goes_on_to_the_bits_rows_and_recipe_of_one_with_more_rounds(tiny_run, name):
    whole, common = tiny_run("whole", rounds=6, cohort_size=3, **GOES_ON[name]), {"cohort_size": 3, **GOES_ON[name]}
    before = tiny_run("grown", rounds=3, **common).digest
    grown = tiny_run("grown", rounds=6, resume=True, **common)
    assert grown.digest != before
    assert is_the_same(grown, whole)


def test_a_run_that_was_stopped_goes_on_to_more_rounds_and_grows_again(tiny_run, monkeypatch):
    whole, save, saved = tiny_run("whole", rounds=5), run_folder.RunFolder.save_checkpoint, []
    monkeypatch.setattr(
        run_folder.RunFolder,
        "save_checkpoint",
        lambda *parts: stop() if len(saved) == 2 else saved.append(save(*parts)),
    )
    with pytest.raises(Stopped):
        tiny_run("grown", rounds=3)
    monkeypatch.undo()
    tiny_run("grown", rounds=4, resume=True)
    assert is_the_same(tiny_run("grown", rounds=5, resume=True), whole)


def test_where_evaluations_do_not_fall_on_the_former_last_round_it_keeps_the_one_it_had(tiny_run):
    whole = tiny_run("whole", rounds=6, evaluate_every=2)
    tiny_run("grown", rounds=3, evaluate_every=2)
    grown = tiny_run("grown", rounds=6, evaluate_every=2, resume=True)
    assert grown.digest == whole.digest
    ours, theirs = rows_of(grown.folder), rows_of(whole.folder)
    assert [bool(row["global.mean"]) for row in ours] == [False, True, True, True, False, True]
    assert [row for row in ours if row["round"] != "3"] == [row for row in theirs if row["round"] != "3"]


REFUSED = {
    "hilora": {"method": fedsim.HiLoRA(lora_rank=2)},
    "fdlora": {"method": fedsim.FDLoRA(lora_rank=2)},
    "scores due in the last round, which measures none": with_proxy(3),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_the_work_done_depends_on_the_number_of_rounds_it_is_refused_and_nothing_changes(
    tiny_run, monkeypatch, name
):
    folder = tiny_run(rounds=3, **REFUSED[name]).folder
    before = contents(folder)
    monkeypatch.setattr(simulation, "launch", lambda: pytest.fail("processes have started"))
    said = rf"run of 3 rounds cannot go on to 6: what {type(REFUSED[name]['method']).__name__} .* with --rounds 3"
    with pytest.raises(ValueError, match=said):
        tiny_run(rounds=6, resume=True, **REFUSED[name])
    assert contents(folder) == before


def test_that_it_depends_is_remembered_when_the_run_is_resumed(tiny_run):
    """In its leaf stage HiLoRA looks at the number of rounds no more."""
    folder = tiny_run(rounds=5, method=HILORA).folder
    assert rows_of(folder)[-1]["stage"] == "leaf"
    for path in (folder / "checkpoints").glob("round-000005.*"):
        path.unlink()
    tiny_run(rounds=5, method=HILORA, resume=True)
    with pytest.raises(ValueError, match="cannot go on to 6: what HiLoRA has done depends"):
        tiny_run(rounds=6, method=HILORA, resume=True)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (None, r"rounds was 3 and is 2. .* Rounds can only grow, and not those of a comparison \(--rounds\)"),
        ({"name": "mine"}, r"rounds is 2, and the resumed run has 3; they can only grow \(--rounds\)"),
    ],
)
def test_fewer_rounds_are_refused_and_nothing_changes(tiny_run, recipe, message):
    folder = tiny_run(rounds=3, recipe=recipe).folder
    before = contents(folder)
    with pytest.raises(ValueError, match=message):
        tiny_run(rounds=2, recipe=recipe, resume=True)
    assert contents(folder) == before


def test_a_recipe_without_rounds_grows_too(tiny_run):
    recipe = {"name": "mine"}
    whole = tiny_run("whole", rounds=4, recipe=recipe)
    tiny_run("grown", rounds=2, recipe=recipe)
    assert is_the_same(tiny_run("grown", rounds=4, recipe=recipe, resume=True), whole)


@pytest.mark.parametrize(
    ("step", "rounds"),
    [
        ("before recipe.json", 3),
        ("before recipe.json", 5),
        ("behind recipe.json", 5),
        ("between two tables", 5),
        ("in a round", 5),
    ],
)
def test_a_run_that_is_killed_while_it_grows_loses_nothing(tiny_run, monkeypatch, step, rounds):
    whole, extend, write = tiny_run("whole", rounds=rounds), run_folder.RunFolder.extend, run_folder.write_atomically
    folder = tiny_run("grown", rounds=3).folder
    if step == "in a round":
        monkeypatch.setattr(run_folder.RunFolder, "save_checkpoint", stop)
    elif step == "between two tables":
        monkeypatch.setattr(
            run_folder, "write_atomically", lambda *parts: stop() if parts[0].name == "costs.csv" else write(*parts)
        )
    else:
        changed = stop if step == "before recipe.json" else lambda *parts: stop(extend(*parts))
        monkeypatch.setattr(run_folder.RunFolder, "extend", changed)
    with pytest.raises(Stopped):
        tiny_run("grown", rounds=5, resume=True)
    monkeypatch.undo()
    assert not (folder / "result.json").exists(), "a run that goes on does not look complete"
    recorded = run_folder.read_recipe(folder)["rounds"]
    assert recorded == (3 if step == "before recipe.json" else 5)
    assert is_the_same(tiny_run("grown", rounds=rounds, resume=True), whole)


def test_a_comparison_keeps_its_rounds(tmp_path):
    def compare(rounds, resume=False):
        common = {"backbone": TinyAttention(), "rounds": rounds, "threads": 1, "out": tmp_path / "run"}
        return fedsim.compare({"fedit": fedsim.FedIT(lora_rank=2)}, lambda seed: tiny_data(), resume=resume, **common)

    compare(1)
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=r"rounds was 1 and is 2. .* not those of a comparison \(--rounds\)"):
        compare(2, resume=True)
    assert contents(tmp_path / "run") == before


def test_a_checkpoint_of_an_earlier_version_resumes_but_does_not_grow(tiny_run, monkeypatch):
    """It does not say whether anything depended on the number of rounds, and its manifest holds that number."""
    save, run_of = run_folder.RunFolder.save_checkpoint, run_folder._run_of
    with monkeypatch.context() as earlier:
        earlier.setattr(run_folder, "_run_of", lambda folder: run_of(folder, run_folder.MAY_CHANGE | {"seeds"}))
        earlier.setattr(
            run_folder.RunFolder,
            "save_checkpoint",
            lambda self, at, tensors: save(self, at, {n: t for n, t in tensors.items() if n != HORIZON}),
        )
        whole = tiny_run()
    with pytest.raises(ValueError, match="rounds was 3 and is 4"):
        tiny_run(rounds=4, resume=True)
    assert tiny_run(resume=True).digest == whole.digest


def test_only_what_depends_on_the_number_of_rounds_leaves_a_mark():
    horizon = Horizon(3)
    states = [ServerState(index, horizon) for index in range(3)]
    assert not any(state.is_last for state in states[:2])
    assert not horizon.is_read
    assert states[2].is_last
    assert horizon.is_read
    assert ServerState(0, other := Horizon(3)).rounds == 3
    assert other.is_read


@pytest.mark.slow
def test_on_the_command_line_with_two_workers_and_with_one(tmp_path):
    whole, grown, fixed = tmp_path / "whole", tmp_path / "grown", tmp_path / "fixed"
    expected = finished(fabric(2, QUICKSTART, *SMALL, "--methods", "fedit", "--rounds", 4, "--out", whole), whole)
    finished(python(QUICKSTART, *SMALL, "--methods", "fedit", "--rounds", 2, "--out", grown), grown)
    found = finished(fabric(2, QUICKSTART, "--resume", grown, "--rounds", 4), grown)
    assert found["digest"] == expected["digest"]
    for name in ("metrics.csv", "clients.csv", "costs.csv"):
        assert (grown / name).read_bytes() == (whole / name).read_bytes()
    finished(python(QUICKSTART, *SMALL, "--methods", "hilora", "--rounds", 2, "--out", fixed), fixed)
    before = contents(fixed)
    done = run(python(QUICKSTART, "--resume", fixed, "--rounds", 4))
    assert done.returncode == 2
    assert "\nerror: This run of 2 rounds cannot go on to 4: what HiLoRA has done depends" in done.stderr
    assert contents(fixed) == before
