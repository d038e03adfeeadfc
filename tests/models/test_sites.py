"""Adapter sites in backbones of timm and transformers, all tiny and random."""

import pytest
import timm
import torch
import transformers
from language_models import tiny_llama
from torch import nn

from fedsim.adapters.layout import Slot
from fedsim.adapters.linear import insert_tiered_linears
from fedsim.models.sites import QUERY_VALUE, check_classes, find_sites, guess_head

N_CLASSES = 5


def timm_vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224",
        pretrained=False,
        img_size=32,
        patch_size=8,
        depth=2,
        embed_dim=64,
        num_heads=4,
        num_classes=N_CLASSES,
    )


def hugging_face(kind: str, **config: object) -> nn.Module:
    """A model of transformers for classification, from its configuration alone."""
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16, "intermediate_size": 24}
    tokens = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    configs = {
        "ViT": ("ViTForImageClassification", "ViTConfig", {**layers, "image_size": 16, "patch_size": 8}),
        "RoBERTa": ("RobertaForSequenceClassification", "RobertaConfig", {**layers, **tokens}),
        "DistilBERT": (
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, **tokens},
        ),
        "GPT-2": ("GPT2ForSequenceClassification", "GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 4, **tokens}),
        "LLaMA": ("LlamaForSequenceClassification", "LlamaConfig", {**layers, **tokens}),
    }
    model, configuration, defaults = configs[kind]
    arguments = {**defaults, "num_labels": N_CLASSES, **config}
    return getattr(transformers, model)(getattr(transformers, configuration)(**arguments))


def lora_sites(backbone: nn.Module) -> dict:
    return {site.name: site for site in find_sites(backbone) if not site.is_head}


def head_sites(backbone: nn.Module) -> dict:
    return {site.name: site for site in find_sites(backbone) if site.is_head}


# timm


def test_timm_vit_has_query_and_value_rows_of_every_block():
    sites = lora_sites(timm_vit())
    assert list(sites) == [f"blocks.{depth}.attn.qkv.{part}" for depth in (0, 1) for part in ("q", "v")]
    for name, site in sites.items():
        assert site.module == name.rpartition(".")[0]
        assert (site.in_features, site.out_features) == (64, 64)
        assert site.rows == ((0, 64) if name.endswith("q") else (128, 192))
        assert site.depth == int(name.split(".")[1])


def test_timm_vits_head_lies_one_deeper_than_its_last_block():
    (head,) = head_sites(timm_vit()).values()
    assert (head.name, head.in_features, head.out_features, head.depth) == ("head", 64, N_CLASSES, 2)
    assert head.has_bias


@pytest.mark.parametrize("part", ["q", "v"])
def test_the_rows_of_timms_fused_map_are_what_attention_takes_for_query_and_value(part):
    """An adapter that cancels W and no bias: without queries all tokens attend alike, without values nothing passes."""
    backbone = timm_vit().requires_grad_(False)
    name, attention = f"blocks.0.attn.qkv.{part}", backbone.blocks[0].attn
    site = lora_sites(backbone)[name]
    attention.qkv.bias.zero_()
    adapter = {
        Slot("root", name, "A"): torch.eye(64),
        Slot("root", name, "B"): -attention.qkv.weight[slice(*site.rows)],
    }
    insert_tiered_linears(backbone, lora_sites(backbone).values())[site.module].install(adapter, {})
    out = attention(torch.randn(2, 7, 64))
    torch.testing.assert_close(out, out[:, :1].expand_as(out), rtol=0, atol=1e-5)
    nothing = attention.proj.bias.expand_as(out)
    assert torch.allclose(out, nothing, atol=1e-5) == (part == "v")


# transformers


SEPARATE = {
    "ViT": {("q_proj", "v_proj"), ("query", "value")},  # the second in older releases of transformers
    "RoBERTa": {("query", "value")},
    "DistilBERT": {("q_lin", "v_lin")},
    "LLaMA": {("q_proj", "v_proj")},
}


@pytest.mark.parametrize("kind", SEPARATE)
def test_transformers_models_have_whole_query_and_value_maps_in_every_block(kind):
    sites = list(lora_sites(hugging_face(kind)).values())
    query, value, *others = [site.module.rpartition(".")[2] for site in sites]
    assert (query, value) in SEPARATE[kind]
    assert others == [query, value]
    assert [site.depth for site in sites] == [0, 0, 1, 1]
    assert all(site.name == site.module and site.rows is None and site.in_features == 16 for site in sites)


HEADS = {
    "ViT": {"classifier": True},
    "RoBERTa": {"classifier.dense": True, "classifier.out_proj": True},
    "DistilBERT": {"pre_classifier": True, "classifier": True},
    "LLaMA": {"score": False},
}


@pytest.mark.parametrize(("kind", "has_bias"), HEADS.items())
def test_transformers_heads_are_all_linear_maps_of_the_classifier(kind, has_bias):
    sites = head_sites(hugging_face(kind))
    assert {name: site.has_bias for name, site in sites.items()} == has_bias
    assert list(sites.values())[-1].out_features == N_CLASSES
    assert {site.depth for site in sites.values()} == {2}


def test_grouped_query_attention_has_narrower_values():
    sites = lora_sites(hugging_face("LLaMA", num_key_value_heads=2))
    assert [site.out_features for site in sites.values()] == [16, 8, 16, 8]


def test_gpt2s_convolution_is_no_linear_map_and_the_message_says_what_there_is():
    with pytest.raises(ValueError, match=r"matches none of the backbone's linear maps, whose names are \['score'\]"):
        find_sites(hugging_face("GPT-2"))


@pytest.mark.parametrize("kind", SEPARATE)
def test_adapters_on_the_sites_found_change_the_logits_and_an_untrained_one_does_not(kind):
    torch.manual_seed(0)
    backbone = hugging_face(kind).eval().requires_grad_(False)
    inputs = torch.rand(2, 3, 16, 16) if kind == "ViT" else torch.randint(3, 40, (2, 6))
    sites = find_sites(backbone)
    before = backbone(inputs).logits
    linears = insert_tiered_linears(backbone, sites)
    logits = []
    for scale in (0.0, 1.0):
        tensors = {}
        for site in [site for site in sites if not site.is_head]:
            tensors[Slot("root", site.name, "A")] = torch.randn(2, site.in_features)
            tensors[Slot("root", site.name, "B")] = scale * torch.randn(site.out_features, 2)
        for linear in linears.values():
            linear.install(tensors, {})
        logits.append(backbone(inputs).logits)
    torch.testing.assert_close(logits[0], before)
    assert not torch.allclose(logits[1], before)


# patterns, heads and classes


def test_the_pattern_may_name_other_maps_by_their_whole_last_name():
    assert {site.module for site in find_sites(timm_vit(), "fc1") if not site.is_head} == {
        "blocks.0.mlp.fc1",
        "blocks.1.mlp.fc1",
    }
    with pytest.raises(ValueError, match="matches none"):
        find_sites(timm_vit(), "fc")


def test_a_pattern_that_is_no_regular_expression_is_refused():
    with pytest.raises(ValueError, match=r"'\(qkv' is no regular expression: .*--model.sites"):
        find_sites(timm_vit(), "(qkv")


def test_a_pattern_that_matches_nothing_lists_the_names_there_are():
    with pytest.raises(ValueError, match=r"\['fc1', 'fc2', 'head', 'proj', 'qkv'\] \(--model.sites\)"):
        find_sites(timm_vit(), "q_proj")


def test_a_head_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no linear map at its classifier's path 'nowhere'"):
        find_sites(timm_vit(), head="nowhere")
    with pytest.raises(ValueError, match="under head, classifier, score or fc"):
        guess_head(nn.ModuleDict({"q_proj": nn.Linear(4, 4), "head": nn.Identity()}))


def test_the_head_may_be_named_and_then_carries_no_lora_site():
    backbone = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "last": nn.ModuleDict({"value": nn.Linear(4, 2)})})
    sites = find_sites(backbone, head="last")
    assert [(site.name, site.is_head) for site in sites] == [("q_proj", False), ("last.value", True)]


def test_maps_without_a_number_in_their_path_are_numbered_by_parent():
    block = lambda: nn.ModuleDict({"q_proj": nn.Linear(4, 4), "v_proj": nn.Linear(4, 4)})  # noqa: E731
    backbone = nn.ModuleDict({"first": block(), "second": block(), "head": nn.Linear(4, 2)})
    assert [site.depth for site in find_sites(backbone)] == [0, 0, 1, 1, 2]


def test_sites_are_the_same_once_the_backbone_carries_adapters():
    backbone = timm_vit()
    sites = find_sites(backbone)
    insert_tiered_linears(backbone, sites)
    assert find_sites(backbone, QUERY_VALUE) == sites


def test_a_classifier_of_another_width_than_the_classes_is_refused():
    sites = find_sites(hugging_face("RoBERTa"))
    check_classes(sites, N_CLASSES)
    with pytest.raises(ValueError, match=r"classifier has 5 outputs and the data have 7 classes.*num_classes=7"):
        check_classes(sites, 7)


def test_a_language_model_has_adapters_and_no_head_and_goes_with_data_without_classes():
    backbone = tiny_llama()
    sites = find_sites(backbone)
    assert [site.name.rpartition(".")[2] for site in sites] == ["q_proj", "v_proj"] * 2
    assert [site.out_features for site in sites] == [16, 8] * 2
    check_classes(sites, 0)
    with pytest.raises(ValueError, match="have 3 classes to tell apart, and the backbone has none"):
        check_classes(sites, 3)
    with pytest.raises(ValueError, match="have 0 classes to tell apart, and the backbone has a classifier"):
        check_classes(find_sites(hugging_face("RoBERTa")), 0)


def test_the_depths_of_a_swin_transformer_are_its_blocks_not_its_stages():
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=12, depths=(1, 2), num_heads=(1, 2)
    )
    sites = [site for site in find_sites(swin) if not site.is_head]
    assert [(site.module, site.depth) for site in sites[::2]] == [
        ("layers.0.blocks.0.attn.qkv", 0),
        ("layers.1.blocks.0.attn.qkv", 1),
        ("layers.1.blocks.1.attn.qkv", 2),
    ]
    assert {site.depth for site in find_sites(swin) if site.is_head} == {3}
