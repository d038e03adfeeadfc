"""Language models load from folders and the hub, and say what is wrong."""

import os
from pathlib import Path

import pytest
import torch
from language_models import prompts_of, tiny_gpt2, tiny_llama
from safetensors.torch import load_file, save_file
from torch import nn

from fedsim.adapters.layout import Slot
from fedsim.models.causal import (
    causal_backbone,
    causal_tokenizer,
    check_length,
    quantisation,
    random_llama,
    without_convolutions,
)
from fedsim.models.client_module import ClientModule
from fedsim.models.sites import find_sites

needs_data = pytest.mark.skipif(not os.environ.get("FEDSIM_DATA"), reason="FEDSIM_DATA names no folder of data sets")
KINDS = {"LLaMA": tiny_llama, "GPT-2": tiny_gpt2}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_a_folder_gives_the_logits_that_transformers_gives(kind, tmp_path: Path):
    model, (tokens, _) = KINDS[kind](), prompts_of([7, 7])
    model.save_pretrained(tmp_path)
    loaded = causal_backbone(tmp_path)
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits)
    assert not loaded.training
    assert list(loaded(tokens.int())) == ["logits"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not say what is mapped")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shard", ["1GB", "10KB"])
def test_weights_lie_in_their_files_in_the_type_that_these_have_and_not_in_memory(dtype, shard, tmp_path: Path):
    model = tiny_llama().to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    loaded = causal_backbone(tmp_path)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [[int(end, 16) for end in line[0].split("-")] for line in maps if str(tmp_path) in line[-1]]
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))
        assert any(begin <= parameter.data_ptr() < end for begin, end in ranges), name


def test_weights_of_several_types_become_fp32_lest_any_loses_bits(tmp_path: Path):
    model = tiny_llama().half()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["model.norm.weight"] = torch.full((16,), 1 + 2**-20)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = causal_backbone(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.model.norm.weight, state["model.norm.weight"])
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.float())


def test_weights_that_are_no_safetensors_become_fp32(tmp_path: Path):
    model = tiny_llama().half()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = causal_backbone(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_model_that_is_not_to_be_pretrained_needs_no_more_than_its_config(tmp_path: Path):
    model, (tokens, _) = tiny_llama(), prompts_of([7, 7])
    model.config.save_pretrained(tmp_path)
    built, again = (causal_backbone(tmp_path, pretrained=False) for _ in range(2))
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert {v.dtype for v in built.parameters()} == {torch.float32}
    torch.testing.assert_close(built(tokens).logits, again(tokens).logits)
    with pytest.raises(ValueError, match=str(tmp_path)):
        causal_backbone(tmp_path)


def test_gpt2_has_its_query_and_value_once_its_convolutions_are_linear_maps():
    model = without_convolutions(tiny_gpt2())
    sites = find_sites(model)
    assert [(site.name, site.rows) for site in sites] == [
        (f"transformer.h.{depth}.attn.c_attn.{part}", rows)
        for depth in (0, 1)
        for part, rows in (("q", (0, 16)), ("v", (32, 48)))
    ]
    assert all(isinstance(model.get_submodule(site.module), nn.Linear) for site in sites)


def test_an_adapter_on_gpt2s_value_rows_moves_values_and_nothing_else():
    model, (tokens, _) = without_convolutions(tiny_gpt2()), prompts_of([6])
    module = ClientModule(model, find_sites(model))
    name = "transformer.h.0.attn.c_attn.v"
    adapter = {Slot("t", name, "A"): torch.randn(2, 16), Slot("t", name, "B"): torch.randn(16, 2)}
    module.install(adapter, {}, lambda *_: torch.tensor(0.0))
    x = torch.randn(1, 6, 16)
    linear = model.transformer.h[0].attn.c_attn
    change = linear(x) - linear.base(x)
    assert not change[..., :32].any()
    torch.testing.assert_close(
        change[..., 32:], x @ adapter[Slot("t", name, "A")].T @ adapter[Slot("t", name, "B")].T, rtol=1e-3, atol=1e-3
    )
    assert module(tokens).shape == (1, 6, 12)


def test_few_bits_need_a_gpu_and_bitsandbytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = r"8-bit weights need a GPU and the package bitsandbytes \(pip install .*\) \(--model.bits\)"
    with pytest.raises(ValueError, match=message):
        causal_backbone(tmp_path, bits=8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="4-bit weights need the package bitsandbytes"):
        quantisation(4)


def test_a_folder_that_lacks_a_tensor_is_refused(tmp_path: Path):
    tiny_llama().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.layers.1.self_attn.v_proj.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors are missing .*layers.1.self_attn.v_proj"):
        causal_backbone(tmp_path)


def test_a_model_that_is_not_to_be_had_is_one_message_with_the_command():
    for find in (causal_backbone, causal_tokenizer):
        with pytest.raises(ValueError, match=r"`hf download nobody/no-such-model .*--model.name no-such-model"):
            find("nobody/no-such-model")


def test_prompts_and_answers_must_fit_into_the_models_places():
    check_length(tiny_llama(), 48, 16)
    with pytest.raises(ValueError, match=r"may take 65 places, and the model has 64 \(--data.max-length"):
        check_length(tiny_llama(), 48, 17)


def test_a_random_llama_is_the_same_in_every_run():
    first, again = (random_llama(30, 2, width=16, depth=2).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@needs_data
def test_a_tokenizer_gives_tokens_without_start_and_stop_and_takes_another_stop():
    tokenizer, other = causal_tokenizer("stories260k"), causal_tokenizer("stories260k", "<s>")
    assert (tokenizer.start, tokenizer.stop, other.stop) == (1, 2, 1)
    (tokens,) = tokenizer.encode(["Once upon a time"])
    assert not {0, 1, 2} & set(tokens)
    assert tokenizer.decode([1, *tokens, 2]).strip() == "Once upon a time"
    assert tokenizer.encode([]) == []
    with pytest.raises(ValueError, match=r"has no token '<end>' .*--model.stop"):
        causal_tokenizer("stories260k", "<end>")
