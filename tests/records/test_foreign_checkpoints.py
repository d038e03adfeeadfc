"""A checkpoint with a right checksum and wrong tensors, as a stranger could send it: one message, nothing written."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import pytest
import torch

import fedsim
from fedsim.parts.directions import SubspaceClustering
from fedsim.records.recorder import most_groups
from fedsim.storage.run_folder import load_checkpoint
from fedsim.storage.wire import pack, structure_of

HILORA = fedsim.HiLoRA(lora_rank=2, clustering=SubspaceClustering(k_min=2))
NAME = "bank|root/blocks.0.q_proj/B"
FAR = 10**15


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a run of HiLoRA once, after which its clients have clusters."""
    kept = tmp_path_factory.mktemp("made") / "run"

    def make(tiny_run):
        if not kept.exists():
            tiny_run(out=kept, method=HILORA, rounds=3)
        return kept

    return make


@pytest.mark.parametrize(("n_clients", "at_work", "most"), [(6, (), 14), (6, (0, 1), 42), (1, (3,), 8)])
def test_a_slot_may_have_a_group_for_each_client_for_some_without_and_for_each_version(n_clients, at_work, most):
    assert most_groups(SimpleNamespace(last_seen=torch.zeros(n_clients), at_work=at_work)) == most


@pytest.fixture
def go_on(made, tiny_run, tmp_path):
    """Resume a copy of the run from changed tensors with a manifest to match; the tables must stay."""

    def resume(change, manifest=()):
        out = shutil.copytree(made(tiny_run), tmp_path / "copy")
        round_index, tensors = load_checkpoint(out)
        change(tensors)
        path = out / "checkpoints" / f"round-{round_index:06d}.safetensors"
        path.write_bytes(payload := pack(tensors))
        whole = {"sha256": hashlib.sha256(payload).hexdigest(), "inside": structure_of(tensors), "from": round_index}
        manifest = whole | dict(manifest)
        old = json.loads(path.with_suffix(".json").read_text())
        path.with_suffix(".json").write_text(json.dumps(old | manifest))
        before = {name: (out / name).read_bytes() for name in ("metrics.csv", "clients.csv", "events.jsonl")}
        try:
            return tiny_run(out=out, method=HILORA, rounds=3, resume=True)
        finally:
            assert {name: (out / name).read_bytes() for name in before} == before

    return resume


def test_one_that_is_only_listed_again_goes_on_as_ever(go_on, made, tiny_run):
    digest = json.loads((made(tiny_run) / "result.json").read_text())["digest"]
    assert go_on(lambda tensors: None).digest == digest


def put(name, value):
    """A change that puts a value, or a function of the one that is there, in a tensor's place."""

    def change(tensors):
        assert name in tensors
        tensors[name] = value(tensors[name]) if callable(value) else value

    return change


def without(name):
    def change(tensors):
        del tensors[name]

    return change


def with_one_at(place, value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[place] = value
        return tensor

    return change


WRONG = {
    "last_seen is missing": (without("last_seen"), "knows no clients"),
    "last_seen is real": (put("last_seen", lambda t: t.float()), "'last_seen' is nothing that a run writes"),
    "last_seen is later": (put("last_seen", lambda t: t + 9), "'last_seen' is nothing that a run writes"),
    "another tensor": (lambda tensors: tensors.update(other=torch.ones(1)), "'other' is nothing that a run writes"),
    "block_size is none": (put("block_size", torch.tensor(0)), "'block_size' is nothing"),
    "block_size is absurd": (put("block_size", torch.tensor(FAR)), "'block_size' is nothing"),
    "block_size is many": (put("block_size", torch.ones(3, dtype=torch.int64)), "'block_size' is nothing"),
    **{f"{part} is missing": (without(f"{NAME}|{part}"), f"it has no {part}") for part in ("rows", "groups", "rounds")},
    "width is missing": (without(f"{NAME}|width"), "it has no width"),
    "width is absurd": (put(f"{NAME}|width", torch.tensor(FAR)), "groups wide, and 1 … 14 are possible"),
    "width is negative": (put(f"{NAME}|width", torch.tensor(-1)), "groups wide"),
    "width is many": (put(f"{NAME}|width", torch.ones(2, dtype=torch.int64)), "of unequal lengths"),
    "group is out of range": (put(f"{NAME}|groups", lambda t: t + 50), "groups are not distinct and in 0"),
    "group is negative": (put(f"{NAME}|groups", lambda t: t - 1), "groups are not distinct and in 0"),
    "groups are real": (put(f"{NAME}|groups", lambda t: t.float()), "must be float32 and int64"),
    "rows are of another type": (put(f"{NAME}|rows", lambda t: t.double()), "must be float32 and int64"),
    "rows are too many": (put(f"{NAME}|rows", lambda t: torch.cat((t, t))), "of unequal lengths"),
    "rows are flat": (put(f"{NAME}|rows", lambda t: t.flatten(1)), "which this run has not"),
    "rows are of another width": (put(f"{NAME}|rows", lambda t: t[:, :5]), "which this run has not"),
    "a row is no number": (put(f"{NAME}|rows", with_one_at(0, torch.nan)), "not finite"),
    "a round is to come": (put(f"{NAME}|rounds", lambda t: t + 9), "rounds that have not been"),
    "a slot has no name": (lambda tensors: tensors.update({"bank|x": torch.ones(1)}), "is damaged: it has no rows"),
    "labels are real": (put("learnt|labels", lambda t: t.float()), "learnt tensors do not fit"),
    "labels are absurd": (put("learnt|labels", with_one_at(0, FAR)), "learnt tensors do not fit"),
    "labels are too few": (put("learnt|labels", lambda t: t[:2]), "learnt tensors do not fit"),
    "stage is unknown": (put("learnt|stage", torch.tensor(99)), "learnt tensors do not fit"),
    "stage is no number": (put("learnt|stage", torch.tensor(torch.nan)), "'stage' is nothing that a run writes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_tensors_that_no_run_writes_are_named_before_anything_starts(go_on, name):
    change, message = WRONG[name]
    with pytest.raises(ValueError, match=f"round-00000[0-9]': .*{message}"):
        go_on(change)


@pytest.mark.parametrize("name", ["last_seen", "learnt|labels", "learnt|since", f"{NAME}|rows"])
def test_a_manifest_says_what_must_be_inside(go_on, made, tiny_run, name):
    inside = structure_of(load_checkpoint(made(tiny_run))[1])
    with pytest.raises(ValueError, match=r"safetensors' is damaged: its tensors have other names, types or shapes"):
        go_on(without(name), {"inside": inside})


@pytest.mark.parametrize("round_index", [7, 0, -1, 2.5, "3", None, [3], 1e999, True])
def test_a_manifest_of_another_round_is_refused(go_on, round_index):
    with pytest.raises(ValueError, match=r"safetensors' is damaged: its manifest is that of round"):
        go_on(lambda tensors: None, {"round_index": round_index})


def test_a_checkpoint_behind_the_last_round_does_not_train_for_ever(go_on, made, tiny_run, tmp_path):
    out = shutil.copytree(made(tiny_run), tmp_path / "late")
    for kind in ("json", "safetensors"):
        (out / "checkpoints" / f"round-000003.{kind}").rename(out / "checkpoints" / f"round-000009.{kind}")
    manifest = out / "checkpoints" / "round-000009.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"round_index": 9}))
    with pytest.raises(ValueError, match=r"round-000009': It is of round 9, and the run has 3"):
        tiny_run(out=out, method=HILORA, rounds=3, resume=True)


@pytest.mark.parametrize("text", ["[1]", "1", '"x"', "{}", "[" * 100_000 + "]" * 100_000, "\0"])
def test_a_manifest_that_is_none_is_one_message(made, tiny_run, tmp_path, text):
    out = shutil.copytree(made(tiny_run), tmp_path / "manifest")
    (out / "checkpoints" / "round-000003.json").write_text(text)
    with pytest.raises(ValueError, match=r"round-000003.safetensors' is damaged"):
        load_checkpoint(out)
