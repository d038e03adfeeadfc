"""What leaves the program does outside what it did inside: PEFT itself loads it, on the plain backbone."""

import dataclasses
import json
import sys
from functools import cache, partial

import pytest
import torch
from language_models import tiny_gpt2
from peft import PeftModel
from runs import finished, python, run
from safetensors.torch import load_file, save_file
from test_engines_agree import METHODS, backbone, federation
from transformers import GPT2LMHeadModel

import fedsim
from fedsim.data.toy_instructions import ToyInstructions, toy_instructions
from fedsim.export import main as command_line
from fedsim.exporting import _write, as_adapter, export, held_by_client, restored
from fedsim.models.causal import without_convolutions
from fedsim.models.client_module import ClientModule
from fedsim.models.text import embedded_text_backbone
from fedsim.parts.objectives import cross_entropy
from fedsim.randomness import numpy_generator
from fedsim.replay import setting_of
from fedsim.run_folder import digest_of
from fedsim.setting import Setting

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
CLIENT, ROUNDS = 2, 3
TOKENWISE = {"fedalt", "fedlease", "fedtreelora_by_token"}
LOCAL = fedsim.LocalTraining(batch_size=8, learning_rate=3e-2)


def texts() -> fedsim.FederatedData:
    """Six clients with twelve texts each of up to seven tokens, padded with 0."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 30, (72, 7), generator=random, dtype=torch.int32)
    tokens[torch.arange(7) >= torch.randint(2, 8, (72, 1), generator=random)] = 0
    targets = torch.randint(0, 3, (72,), generator=random)
    return fedsim.from_tensors(tokens, targets, torch.arange(72) % 6)


def bert() -> torch.nn.Module:
    return embedded_text_backbone(3, 30, 0)


def plain_bert() -> torch.nn.Module:
    model = bert()
    model._forward_pre_hooks.clear()
    return model


def bert_logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """As transformers' users call it."""
    return model(input_ids=tokens.long(), attention_mask=(tokens != 0).long()).logits


PARTS = {
    "vit": (backbone, backbone, federation, lambda model, images: model(images / 255)),
    "bert": (bert, plain_bert, texts, bert_logits),
}
"""A fused map of query, key and value from timm; separate ones from transformers."""


def setting(kind: str, name: str, **changes: object) -> Setting:
    build, _, data, _ = PARTS[kind]
    with_proxy = fedsim.with_proxy(data(), torch.arange(0, 60, 7))
    arguments = {"method": METHODS[name], "backbone": build(), "data": with_proxy, "rounds": ROUNDS, "local": LOCAL}
    return Setting(**(arguments | {"evaluate_every": ROUNDS} | changes))


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """The folder of a short run, made once."""

    @cache
    def run_of(kind: str, name: str):
        out = tmp_path_factory.mktemp("runs") / f"{kind}-{name}"
        what = setting(kind, name)
        fields = ("method", "backbone", "data", "rounds", "local", "evaluate_every")
        fedsim.simulate(out=out, threads=1, **{field: getattr(what, field) for field in fields})
        return out

    return run_of


def inputs_of(kind: str) -> torch.Tensor:
    return PARTS[kind][2]().inputs[:9]


@torch.no_grad()
def logits_inside(kind: str, what: Setting, held: fedsim.Assignment) -> torch.Tensor:
    module = ClientModule(PARTS[kind][0](), what.layout.sites, mixing=what.layout.mixing)
    module.install(held.tensors, held.scales, cross_entropy)
    inputs = inputs_of(kind)
    return module(inputs / 255 if kind == "vit" else inputs)


@torch.no_grad()
def logits_outside(kind: str, folder) -> torch.Tensor:
    _, plain, _, call = PARTS[kind]
    return call(PeftModel.from_pretrained(plain(), folder), inputs_of(kind))


@torch.no_grad()
def logits_of_backbone(kind: str) -> torch.Tensor:
    _, plain, _, call = PARTS[kind]
    return call(plain(), inputs_of(kind))


close = partial(torch.testing.assert_close, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", pytest.param("bert", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", METHODS)
def test_peft_gives_the_logits_of_every_methods_client(run_of, tmp_path, kind, name):
    run, what = run_of(kind, name), setting(kind, name)
    if name in TOKENWISE:
        with pytest.raises(ValueError, match="token by token"):
            export(what, run, tmp_path / "adapter", client=CLIENT)
        assert not (tmp_path / "adapter").exists()
        return
    export(what, run, tmp_path / "adapter", client=CLIENT)
    held, _ = held_by_client(what, *restored(what, run), CLIENT)
    inside = logits_inside(kind, what, held)
    assert (inside - logits_of_backbone(kind)).abs().max() > 1e-4
    close(logits_outside(kind, tmp_path / "adapter"), inside)


@pytest.mark.parametrize("kind", PARTS)
def test_merged_weights_load_into_the_plain_backbone(run_of, tmp_path, kind):
    _, plain, _, call = PARTS[kind]
    run, what = run_of(kind, "hilora"), setting(kind, "hilora")
    export(what, run, tmp_path / "merged", client=CLIENT, merged=True)
    model = plain()
    model.load_state_dict(load_file(tmp_path / "merged" / "model.safetensors"))
    held, _ = held_by_client(what, *restored(what, run), CLIENT)
    with torch.no_grad():
        close(call(model, inputs_of(kind)), logits_inside(kind, what, held))


def test_the_shared_model_is_the_tiers_that_everyone_has(run_of, tmp_path):
    run, what = run_of("vit", "hilora"), setting("vit", "hilora")
    export(what, run, tmp_path / "shared")
    held, _ = held_by_client(what, *restored(what, run), CLIENT)
    root = {slot: tensor for slot, tensor in held.tensors.items() if slot.tier == "root"}
    inside = logits_inside("vit", what, dataclasses.replace(held, tensors=root))
    close(logits_outside("vit", tmp_path / "shared"), inside)
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "The shared model of HiLoRA" in card
    assert "cluster, leaf" in card
    assert "p10" in card
    assert "with the adapters of their own that were left out here, as handed out" in card
    assert f"python -m fedsim.export {run} --to" in card


def test_a_clusters_model_is_the_tiers_that_its_clients_share(run_of, tmp_path):
    run, what = run_of("vit", "hilora"), setting("vit", "hilora")
    server, state = restored(what, run)
    labels = {client: int(state.learnt["labels"][client]) for client in what.population.seen}
    cluster = labels[CLIENT]
    export(what, run, tmp_path / "cluster", cluster=cluster)
    held, _ = held_by_client(what, server, state, CLIENT)
    shared = {slot: tensor for slot, tensor in held.tensors.items() if slot.tier in ("root", "cluster")}
    inside = logits_inside("vit", what, dataclasses.replace(held, tensors=shared))
    close(logits_outside("vit", tmp_path / "cluster"), inside)
    card = (tmp_path / "cluster" / "README.md").read_text()
    assert f"cluster {cluster}".lower() in card.lower()
    with pytest.raises(ValueError, match=r"cluster is 99; the clusters are [\d, ]+ \(--cluster\)"):
        export(what, run, tmp_path / "none", cluster=99)


def test_merged_weights_of_gpt2_load_into_transformers_own_model(tmp_path):
    """Whose maps keep their weights the other way round, in query, key and value side by side."""
    data = toy_instructions(ToyInstructions(), numpy_generator(0, "data"))
    model = without_convolutions(tiny_gpt2(258))
    parts = {"method": fedsim.FedIT(lora_rank=2), "backbone": model, "data": data, "rounds": 1, "sites": "c_attn"}
    parts |= {"local": fedsim.LocalTraining(batch_size=8, learning_rate=3e-2, share=0.1), "cohort_size": 2}
    what = Setting(**parts)
    initial = {slot: 0.3 * torch.randn(value.shape) for slot, value in what.initial_slots().items()}
    held = fedsim.Assignment(0, 0, initial, frozenset(), dict.fromkeys(what.method.tiers, 1.0), 0, what.local)
    (tmp_path / "merged").mkdir()
    _write(what.backbone, as_adapter(what, held), tmp_path / "merged", "", True)
    tokens = torch.arange(3, 27).view(2, 12)
    module = ClientModule(what.backbone, what.layout.sites)
    with torch.no_grad():
        before = module(tokens)
        module.install(held.tensors, held.scales, cross_entropy)
        inside = module(tokens)
        assert (inside - before).abs().max() > 0.1
        close(GPT2LMHeadModel.from_pretrained(tmp_path / "merged")(input_ids=tokens).logits, inside, atol=1e-4)


RECIPE = "recipes/hilora_cifar100.py"


@pytest.mark.slow
def test_a_recipe_starts_from_an_adapter_on_the_command_line(tmp_path):
    options = (
        "--embedded",
        "--rounds",
        1,
        "--cohort-size",
        2,
        "--local.epochs",
        1,
        "--threads",
        1,
        "--method.lora-rank",
        2,
    )
    first = finished(python(RECIPE, *options, "--out", tmp_path / "first"), tmp_path / "first")
    command = [sys.executable, "-m", "fedsim.export", str(tmp_path / "first"), "--to", str(tmp_path / "adapter")]
    done = run(command)
    assert done.returncode == 0, done.stderr
    adapter = ("--model.adapter", tmp_path / "adapter")
    second = finished(python(RECIPE, *options, *adapter, "--out", tmp_path / "second"), tmp_path / "second")
    assert first["digest"] != second["digest"]
    recorded = json.loads((tmp_path / "second" / "recipe.json").read_text())
    assert recorded["model"]["adapter"] == str(tmp_path / "adapter")
    wrong = run(python(RECIPE, *options, "--model.adapter", tmp_path, "--out", tmp_path / "third"))
    assert wrong.returncode == 2
    assert f"'{tmp_path}' is no PEFT adapter folder" in wrong.stderr
    assert not (tmp_path / "third").exists()


def test_a_model_that_is_not_there_is_refused_in_one_message(run_of, tmp_path):
    local = setting("vit", "local"), run_of("vit", "local")
    with pytest.raises(ValueError, match="no adapter is the same for its clients"):
        export(*local, tmp_path / "x")
    with pytest.raises(ValueError, match="found no clusters"):
        export(*local, tmp_path / "x", cluster=0)
    with pytest.raises(ValueError, match=r"client is 6; it must lie in 0 … 5"):
        export(*local, tmp_path / "x", client=6)
    assert not (tmp_path / "x").exists()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "precious").touch()
    with pytest.raises(ValueError, match="not an empty folder"):
        export(*local, tmp_path / "x", client=0)


@pytest.mark.parametrize("kind", PARTS)
def test_a_federation_starts_from_an_adapter_as_from_the_model_that_it_makes(run_of, tmp_path, kind):
    build, _, _, _ = PARTS[kind]
    export(setting(kind, "hilora"), run_of(kind, "hilora"), tmp_path / "first", client=CLIENT)
    started = fedsim.start_from_adapter(build(), tmp_path / "first")
    inputs = inputs_of(kind)
    with torch.no_grad():
        logits = ClientModule(started, ())(inputs / 255 if kind == "vit" else inputs)
    close(logits, logits_outside(kind, tmp_path / "first"))
    what = setting(kind, "fedit", backbone=started, rounds=1)
    fields = ("method", "backbone", "data", "rounds", "local")
    fedsim.simulate(out=tmp_path / "run", threads=1, **{field: getattr(what, field) for field in fields})
    export(what, tmp_path / "run", tmp_path / "second", client=CLIENT)
    held, _ = held_by_client(what, *restored(what, tmp_path / "run"), CLIENT)
    module = ClientModule(started, what.layout.sites)
    module.install(held.tensors, held.scales, cross_entropy)
    with torch.no_grad():
        inside = module(inputs / 255 if kind == "vit" else inputs)
    close(logits_outside(kind, tmp_path / "second"), inside)


def test_an_adapter_folder_with_a_pickle_or_a_wrong_tensor_is_refused_by_name(run_of, tmp_path):
    folder = export(setting("vit", "fedit"), run_of("vit", "fedit"), tmp_path / "adapter", client=CLIENT)
    weights, net = folder / "adapter_model.safetensors", backbone()
    before, whole = digest_of(net.state_dict()), weights.read_bytes()
    tensors = load_file(weights)
    name = "base_model.model.blocks.0.attn.qkv.lora_B.weight"
    for change, message in (
        ({name: tensors[name][1:].contiguous()}, rf"adapter_model.safetensors': tensor '{name}' is \(23, \d\), and"),
        ({name: tensors[name] * torch.nan}, rf"'{name}' holds numbers that are not finite"),
        ({"base_model.model.nothing.weight": torch.zeros(1)}, "'base_model.model.nothing.weight' has no counterpart"),
    ):
        save_file(tensors | change, weights)
        with pytest.raises(ValueError, match=message):
            fedsim.start_from_adapter(net, folder)
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged or not in the safetensors format"):
        fedsim.start_from_adapter(net, folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"has no adapter_model.safetensors. Its adapter_model.bin is a pickle"):
        fedsim.start_from_adapter(net, folder)
    assert digest_of(net.state_dict()) == before


SCRIPT = """
import fedsim, torch
import conftest

result = fedsim.simulate(
    method=fedsim.FedIT(lora_rank=2), backbone=conftest.TinyAttention(), data=conftest.tiny_data(), rounds=2,
    out={out!r}, threads=1, seed={seed},
)
print(result.digest)
"""


def test_the_command_finds_a_runs_parts_in_its_script_and_trains_nothing(tiny_run, tmp_path, monkeypatch, capsys):
    run = tiny_run(rounds=2, local=fedsim.LocalTraining()).folder
    script, moved = tmp_path / "script.py", tmp_path / "moved.py"
    moved.write_text(SCRIPT.format(out=str(run), seed=0))
    recorded = json.loads((run / "recipe.json").read_text())
    recorded["environment"] |= {"script": str(script), "arguments": []}
    (run / "recipe.json").write_text(json.dumps(recorded))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    arguments = ["export", str(run), "--client", "1", "--to", str(tmp_path / "to")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        command_line()
    assert stop.value.code == 2
    assert "is not there; say where it is by --script FILE" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*arguments, "--script", str(moved)])
    command_line()
    assert (to := tmp_path / "to" / "adapter_model.safetensors").exists()
    assert load_file(to)["base_model.model.head.weight"].shape == (3, 12)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    script.write_text(SCRIPT.format(out=str(run), seed=1))
    monkeypatch.setattr(sys, "argv", [*arguments[:-1], str(tmp_path / "other")])
    with pytest.raises(SystemExit):  # the script goes on with None, as on a worker that is not the first
        command_line()
    assert "does not start the run" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_script_inside_the_run_folder_is_not_run(tiny_run):
    run = tiny_run(rounds=1).folder
    (run / "evil.py").write_text("raise RuntimeError('executed')")
    recorded = json.loads((run / "recipe.json").read_text())
    recorded["environment"] |= {"script": str(run / "evil.py")}
    (run / "recipe.json").write_text(json.dumps(recorded))
    with pytest.raises(ValueError, match="does not name the script that started it"):
        setting_of(run)
