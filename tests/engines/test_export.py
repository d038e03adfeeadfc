"""What leaves the program does outside what it did inside: PEFT itself loads it, on the plain backbone."""

import dataclasses
import json
import re
import shutil
import sys
from functools import cache, partial

import pytest
import torch
from language_models import tiny_gpt2
from peft import PeftModel
from runs import finished, python, run
from safetensors.torch import load, load_file, save_file
from test_engines_agree import METHODS, backbone, federation
from transformers import GPT2LMHeadModel

import fedsim
from fedsim.data.builtin.toy_instructions import ToyInstructions, toy_instructions
from fedsim.experiments.export import export_adapter, held_by_client, held_together, restored
from fedsim.export import main as command_line
from fedsim.models.adapted import library_state
from fedsim.models.backbones import timm_backbone
from fedsim.models.causal import causal_backbone
from fedsim.models.client_module import ClientModule
from fedsim.models.frozen import cast_weights
from fedsim.models.text import embedded_text_backbone, embedded_text_classifier
from fedsim.parts.objectives import cross_entropy
from fedsim.randomness import numpy_generator
from fedsim.run_spec import RunSpec
from fedsim.storage.run_folder import digest_of

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
CLIENT, ROUNDS = 2, 3
TOKENWISE = {"fedalt", "fedlease", "fedtreelora_by_token", "feddpa_t", "feddpa_global"}
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


def setting(kind: str, name: str, **changes: object) -> RunSpec:
    build, _, data, _ = PARTS[kind]
    with_proxy = fedsim.with_proxy(data(), torch.arange(0, 60, 7))
    arguments = {"method": METHODS[name], "backbone": build(), "data": with_proxy, "rounds": ROUNDS, "local": LOCAL}
    return RunSpec(**(arguments | {"evaluate_every": ROUNDS} | changes))


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """The folder of a short run, made once."""

    @cache
    def run_of(kind: str, name: str):
        out = tmp_path_factory.mktemp("runs") / f"{kind}-{name}"
        spec = setting(kind, name)
        fields = ("method", "backbone", "data", "rounds", "local", "evaluate_every")
        fedsim.simulate(out=out, threads=1, **{field: getattr(spec, field) for field in fields})
        return out

    return run_of


def inputs_of(kind: str) -> torch.Tensor:
    return PARTS[kind][2]().inputs[:9]


@torch.no_grad()
def logits_inside(kind: str, spec: RunSpec, held: fedsim.Assignment) -> torch.Tensor:
    module = ClientModule(PARTS[kind][0](), spec.layout.sites, mixing=spec.layout.mixing)
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
    run, spec = run_of(kind, name), setting(kind, name)
    if name in TOKENWISE:
        with pytest.raises(ValueError, match="token by token"):
            export_adapter(run, tmp_path / "adapter", client=CLIENT)
        assert not (tmp_path / "adapter").exists()
        return
    export_adapter(run, tmp_path / "adapter", client=CLIENT)
    held, _ = held_by_client(*restored(run), CLIENT)
    inside = logits_inside(kind, spec, held)
    assert (inside - logits_of_backbone(kind)).abs().max() > 1e-4
    close(logits_outside(kind, tmp_path / "adapter"), inside)


@pytest.mark.parametrize("kind", PARTS)
def test_merged_weights_load_into_the_plain_backbone(run_of, tmp_path, kind):
    _, plain, _, call = PARTS[kind]
    run, spec = run_of(kind, "hilora"), setting(kind, "hilora")
    save_file(library_state(plain()), tmp_path / "plain.safetensors")
    file = {"backbone": tmp_path / "plain.safetensors"} if kind == "vit" else {}  # which no loader of fedsim has built
    export_adapter(run, tmp_path / "merged", client=CLIENT, merged=True, **file)
    model = plain()
    model.load_state_dict(load_file(tmp_path / "merged" / "model.safetensors"))
    held, _ = held_by_client(*restored(run), CLIENT)
    with torch.no_grad():
        close(call(model, inputs_of(kind)), logits_inside(kind, spec, held))


def test_the_shared_model_is_the_tiers_that_everyone_has(run_of, tmp_path):
    run, spec = run_of("vit", "hilora"), setting("vit", "hilora")
    export_adapter(run, tmp_path / "shared")
    held, _ = held_by_client(*restored(run), CLIENT)
    root = {slot: tensor for slot, tensor in held.tensors.items() if slot.tier == "root"}
    inside = logits_inside("vit", spec, dataclasses.replace(held, tensors=root))
    close(logits_outside("vit", tmp_path / "shared"), inside)
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "The shared model of HiLoRA" in card
    assert "cluster, leaf" in card
    assert "p10" in card
    assert "with the adapters of their own that were left out here, as handed out" in card
    assert f"python -m fedsim.export {run} --to" in card


def test_a_clusters_model_is_the_tiers_that_its_clients_share(run_of, tmp_path):
    run, spec = run_of("vit", "hilora"), setting("vit", "hilora")
    model, aggregator, state = restored(run)
    labels = {client: int(state.learnt["labels"][client]) for client in spec.population.seen}
    cluster = labels[CLIENT]
    export_adapter(run, tmp_path / "cluster", cluster=cluster)
    held, _ = held_by_client(model, aggregator, state, CLIENT)
    shared = {slot: tensor for slot, tensor in held.tensors.items() if slot.tier in ("root", "cluster")}
    inside = logits_inside("vit", spec, dataclasses.replace(held, tensors=shared))
    close(logits_outside("vit", tmp_path / "cluster"), inside)
    card = (tmp_path / "cluster" / "README.md").read_text()
    assert f"cluster {cluster}".lower() in card.lower()
    with pytest.raises(ValueError, match=r"cluster is 99; the clusters are [\d, ]+ \(--cluster\)"):
        export_adapter(run, tmp_path / "none", cluster=99)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_merged_weights_of_gpt2_load_into_transformers_own_model(tmp_path, dtype):
    """Whose maps keep their weights the other way round, in query, key and value side by side."""
    tiny_gpt2(258).to(dtype).save_pretrained(tmp_path / "gpt2")
    data = toy_instructions(ToyInstructions(), numpy_generator(0, "data"))
    parts = {"method": fedsim.FedIT(lora_rank=2), "data": data, "rounds": 1, "sites": "c_attn", "cohort_size": 2}
    parts |= {"local": fedsim.LocalTraining(batch_size=8, learning_rate=3e-2, share=0.1)}
    fedsim.simulate(backbone=causal_backbone(tmp_path / "gpt2"), out=tmp_path / "run", threads=1, **parts)
    export_adapter(tmp_path / "run", tmp_path / "merged", client=0, merged=True)
    export_adapter(tmp_path / "run", tmp_path / "adapter", client=0)
    model, aggregator, state = restored(tmp_path / "run")
    held, _ = held_by_client(model, aggregator, state, 0)
    tokens = torch.arange(3, 27).view(2, 12)
    module = ClientModule(in_use(causal_backbone(tmp_path / "gpt2")), model.layout.sites)
    started = in_use(fedsim.start_from_adapter(causal_backbone(tmp_path / "gpt2"), tmp_path / "adapter"))
    outside = GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2", dtype=torch.float32).eval()
    outside.load_state_dict(load_file(tmp_path / "merged" / "model.safetensors"))
    with torch.no_grad():
        before = module(tokens)
        module.install(held.tensors, held.scales, cross_entropy)
        inside = module(tokens)
        assert (inside - before).abs().max() > 1e-3
        close(outside(input_ids=tokens).logits, inside, atol=1e-4)
        close(started(tokens).logits, inside, atol=1e-4)


def in_use(backbone: torch.nn.Module) -> torch.nn.Module:
    return cast_weights(backbone, torch.device("cpu"))


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
    local = run_of("vit", "local")
    with pytest.raises(ValueError, match="no adapter is the same for its clients"):
        export_adapter(local, tmp_path / "x")
    with pytest.raises(ValueError, match="found no clusters"):
        export_adapter(local, tmp_path / "x", cluster=0)
    with pytest.raises(ValueError, match=r"client is 6; it must lie in 0 … 5"):
        export_adapter(local, tmp_path / "x", client=6)
    assert not (tmp_path / "x").exists()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "precious").touch()
    with pytest.raises(ValueError, match="not an empty folder"):
        export_adapter(local, tmp_path / "x", client=0)


@pytest.mark.parametrize("kind", PARTS)
def test_a_federation_starts_from_an_adapter_as_from_the_model_that_it_makes(run_of, tmp_path, kind):
    build, _, _, _ = PARTS[kind]
    export_adapter(run_of(kind, "hilora"), tmp_path / "first", client=CLIENT)
    started = fedsim.start_from_adapter(build(), tmp_path / "first")
    inputs = inputs_of(kind)
    with torch.no_grad():
        logits = ClientModule(started, ())(inputs / 255 if kind == "vit" else inputs)
    close(logits, logits_outside(kind, tmp_path / "first"))
    spec = setting(kind, "fedit", backbone=started, rounds=1)
    fields = ("method", "backbone", "data", "rounds", "local")
    fedsim.simulate(out=tmp_path / "run", threads=1, **{field: getattr(spec, field) for field in fields})
    export_adapter(tmp_path / "run", tmp_path / "second", client=CLIENT)
    held, _ = held_by_client(*restored(tmp_path / "run"), CLIENT)
    module = ClientModule(started, spec.layout.sites)
    module.install(held.tensors, held.scales, cross_entropy)
    with torch.no_grad():
        inside = module(inputs / 255 if kind == "vit" else inputs)
    close(logits_outside(kind, tmp_path / "second"), inside)


def test_an_adapter_folder_with_a_pickle_or_a_wrong_tensor_is_refused_by_name(run_of, tmp_path):
    folder = export_adapter(run_of("vit", "fedit"), tmp_path / "adapter", client=CLIENT)
    weights, net = folder / "adapter_model.safetensors", backbone()
    before, whole = digest_of(net.state_dict()), weights.read_bytes()
    tensors = load(whole)  # not load_file: it may map the file that is overwritten below
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


def test_an_export_reads_the_run_folder_and_runs_no_script(tiny_run, tmp_path, monkeypatch, capsys):
    run = tiny_run(rounds=2).folder
    recorded = json.loads((run / "recipe.json").read_text())
    recorded["environment"] |= {"script": str(tmp_path / "evil.py"), "arguments": ["-s", "print('executed')"]}
    (tmp_path / "evil.py").write_text("raise RuntimeError('executed')")
    (run / "recipe.json").write_text(json.dumps(recorded))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    arguments = ["export", str(run), "--client", "1", "--to"]
    monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path / "to")])
    command_line()
    assert load_file(tmp_path / "to" / "adapter_model.safetensors")["base_model.model.head.weight"].shape == (3, 12)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    card = (tmp_path / "to" / "README.md").read_text()
    assert "TinyAttention that was given to the run" in card
    assert json.loads((tmp_path / "to" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path / "merged"), "--merged"])
    with pytest.raises(SystemExit) as stop:
        command_line()
    assert stop.value.code == 2
    assert "give its weights by --backbone FILE" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_merged_weights_need_the_backbone_that_the_run_had(run_of, tmp_path):
    run, weights = run_of("vit", "hilora"), tmp_path / "weights.safetensors"
    state = backbone().state_dict()
    save_file(state, weights)
    with pytest.raises(ValueError, match="built by no loader of fedsim; give its weights by --backbone FILE"):
        export_adapter(run, tmp_path / "to", client=CLIENT, merged=True)
    export_adapter(run, tmp_path / "merged", client=CLIENT, merged=True, backbone=weights)
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == state.keys()
    save_file({name: tensor * 1.001 for name, tensor in state.items()}, weights)
    for wrong, message in ((weights, "are not those that the run had"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(ValueError, match=message):
            export_adapter(run, tmp_path / "other", client=CLIENT, merged=True, backbone=wrong)
    with pytest.raises(ValueError, match="--backbone is for --merged"):
        export_adapter(run, tmp_path / "other", client=CLIENT, backbone=weights)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"sites": []},
        {"sites": [{"name": 3}]},
        {"population": {"n_clients": 6}},
        {"population": "nobody"},
        {"method": None},
        {"outputs": {}},
        {"backbone": {"class": "x", "sha256": "", "origin": {"loader": "subprocess", "arguments": {}}}},
        {"backbone": {"class": "x", "sha256": "", "origin": {"loader": "timm_backbone", "arguments": {"x=1;y": 2}}}},
    ],
    ids=["no sites", "odd sites", "few clients", "text", "no method", "no outputs", "odd loader", "odd option"],
)
def test_a_damaged_record_of_the_model_is_one_message(run_of, tmp_path, change):
    run = shutil.copytree(run_of("vit", "fedit"), tmp_path / "run")
    about = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps(about | change))
    with pytest.raises(ValueError, match=r"model\.json', the model\.safetensors beside it or the newest .* is damaged"):
        export_adapter(run, tmp_path / "to", client=CLIENT)
    assert not (tmp_path / "to").exists()


def test_the_lines_on_the_card_build_the_backbone_and_load_the_adapter(tmp_path, monkeypatch):
    data, local = texts(), LOCAL
    for loader, inputs in (
        (partial(timm_backbone, "vit_tiny_patch16_224", 3, 32, pretrained=False), torch.rand(72, 3, 32, 32)),
        (partial(embedded_text_classifier, 3, 30, 0), data.inputs),
    ):
        run, name = tmp_path / f"run-{loader.func.__name__}", f"adapter-{loader.func.__name__}"
        its = fedsim.from_tensors(inputs, data.targets, torch.arange(72) % 6)
        its = dataclasses.replace(its, class_names=("a", "b", "c"), pad_token=data.pad_token)
        call = (lambda model, x: model(x)) if inputs.is_floating_point() else bert_logits
        module = loader() if inputs.is_floating_point() else bert()
        parts = {"method": fedsim.FedIT(lora_rank=2), "backbone": module, "data": its, "rounds": 1, "local": local}
        fedsim.simulate(out=run, threads=1, **parts)
        export_adapter(run, tmp_path / name)
        card = (tmp_path / name / "README.md").read_text()
        assert "**Classes**: a, b, c" in card
        (lines,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        monkeypatch.chdir(tmp_path)
        found: dict = {}
        exec(lines, found)
        held, _ = held_together(*restored(run), "", [0, 1])
        module = ClientModule(module, restored(run)[0].layout.sites)
        module.install(held.tensors, held.scales, cross_entropy)
        with torch.no_grad():
            close(call(found["model"], inputs[:9]), module(inputs[:9]))
