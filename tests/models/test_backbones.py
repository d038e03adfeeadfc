"""Backbones load by name with a fresh, always equal classifier, and say what is wrong with their weights."""

import os
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from fedsim.data.images.images import ImageOptions, load_images
from fedsim.data.images.transforms import ImageTransform
from fedsim.models.backbones import TimmModel, timm_backbone, transformers_classifier
from fedsim.models.sites import find_sites

DATA = os.environ.get("FEDSIM_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="FEDSIM_DATA does not name a folder of data sets")
NAME = "vit_tiny_patch16_224"
WEIGHTS = Path("vit_tiny_patch16_224/model_fp16.safetensors")
SIZE = 32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of another task: five classes, 48 pixels."""
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model(NAME, num_classes=5, img_size=48).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT in transformers' layout."""
    path = tmp_path_factory.mktemp("hf")
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=SIZE, num_labels=4
    )
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(path)
    return path


def test_a_checkpoint_gives_everything_but_the_classifier(checkpoint: Path):
    model = timm_backbone(NAME, 3, 48, checkpoint)
    stored, loaded = load_file(checkpoint), model.state_dict()
    assert all(torch.equal(loaded[name], stored[name]) for name in stored if not name.startswith("head."))
    assert loaded["head.weight"].shape == (3, 192)
    assert not model.training


def test_the_position_embedding_follows_the_image_size(checkpoint: Path):
    assert timm_backbone(NAME, 3, SIZE, checkpoint)(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, 3)


def test_the_classifier_is_the_same_in_every_run_and_no_other_randomness_moves(checkpoint: Path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = timm_backbone(NAME, 5, 48, checkpoint)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first.head.weight, timm_backbone(NAME, 5, 48, checkpoint).head.weight)
    assert not torch.equal(first.head.weight, load_file(checkpoint)["head.weight"])


def test_a_random_backbone_is_the_same_in_every_run():
    first, again = (timm_backbone(NAME, 3, SIZE, pretrained=False).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_model_without_a_fixed_size_is_built_too():
    assert timm_backbone("resnet10t", 3, 40, pretrained=False)(torch.zeros(1, 3, 40, 40)).shape == (1, 3)


def test_a_backbone_of_timm_has_sites_for_query_and_value(checkpoint: Path):
    sites = find_sites(timm_backbone(NAME, 3, SIZE, checkpoint), TimmModel().sites)
    assert len([site for site in sites if not site.is_head]) == 24


def test_an_unknown_name_is_answered_with_close_ones():
    with pytest.raises(ValueError, match=r"timm knows no model 'vit_tiny_patch16_22' .*vit_tiny_patch16_224"):
        timm_backbone("vit_tiny_patch16_22", 3)
    with pytest.raises(ValueError, match=r"timm knows no model 'vit_tiny_patch16_224\.nonsense'"):
        timm_backbone("vit_tiny_patch16_224.nonsense", 3)


def test_weights_that_are_not_there_are_one_message_with_where_and_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=rf"looked for 'absent.pt' \(--model.weights\).*'{tmp_path}/absent.pt'"):
        timm_backbone(NAME, 3, weights=Path("absent.pt"))


def test_weights_that_the_hub_does_not_give_are_one_message_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def offline(*_: object, **__: object) -> None:
        raise FileNotFoundError("no network\nand a long story")

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", offline)
    with pytest.raises(ValueError, match="not to be had") as raised:
        timm_backbone("vit_base_patch16_224.augreg_in21k", 3)
    for part in ("hub cache", "`hf download timm/vit_base_patch16_224.augreg_in21k", "--model.weights", "no network"):
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_damaged_checkpoint_is_named(checkpoint: Path, tmp_path: Path):
    damaged = tmp_path / "half.safetensors"
    damaged.write_bytes(checkpoint.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=rf"'{damaged}' are damaged or no checkpoint"):
        timm_backbone(NAME, 3, weights=damaged)


def test_a_checkpoint_of_another_model_is_refused(checkpoint: Path):
    with pytest.raises(ValueError, match=rf"'{checkpoint}' do not fit 'vit_small_patch16_224'"):
        timm_backbone("vit_small_patch16_224", 3, weights=checkpoint)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(checkpoint: Path, tmp_path: Path):
    state = load_file(checkpoint)
    del state["blocks.3.attn.qkv.weight"]
    save_file(state, tmp_path / "lacking.safetensors")
    with pytest.raises(ValueError, match=r"do not fit .*blocks.3.attn.qkv.weight"):
        timm_backbone(NAME, 3, weights=tmp_path / "lacking.safetensors")


def classifier_of(name: Path | str, n_classes: int) -> nn.Module:
    return transformers_classifier(AutoModelForImageClassification, str(name), n_classes)


def test_a_folder_of_transformers_gives_a_classifier_with_sites(folder: Path):
    model = classifier_of(folder, 7)
    assert model(torch.zeros(2, 3, SIZE, SIZE)).logits.shape == (2, 7)
    assert len(find_sites(model)) == 2 * 2 + 1
    stored = load_file(folder / "model.safetensors")
    kept = [name for name in stored if not name.startswith("classifier.")]
    assert kept
    assert all(torch.equal(model.state_dict()[name], stored[name]) for name in kept if name in model.state_dict())


def test_the_classifier_of_transformers_is_fresh_and_always_the_same(folder: Path):
    first, again = (classifier_of(folder, 4).classifier.weight for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, load_file(folder / "model.safetensors")["classifier.weight"])


def test_a_folder_of_transformers_that_lacks_a_tensor_is_refused(folder: Path, tmp_path: Path):
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if "query" in name or "q_proj" in name)
    del state[name]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="1 tensors are missing or of another shape"):
        classifier_of(tmp_path, 4)


def test_a_model_that_transformers_cannot_find_is_one_message_with_the_command():
    with pytest.raises(ValueError, match=r"'nobody/no-such-model' .*hub cache.*`hf download nobody/no-such-model"):
        classifier_of("nobody/no-such-model", 3)


@needs_data
def test_real_weights_find_pictures_of_the_same_class_twice_as_often_as_random_ones():
    _, test = load_images(ImageOptions(path=Path("pacs_1680_128px"), image_size=96))
    images = ImageTransform(96, (0.5,) * 3, (0.5,) * 3)(test.inputs[::3])
    targets = test.targets[::3]

    def found(model: nn.Module) -> float:
        with torch.no_grad():
            features = F.normalize(model.forward_head(model.forward_features(images), pre_logits=True))
        nearest = (features @ features.T).fill_diagonal_(-1).argmax(1)
        return float((targets[nearest] == targets).float().mean())

    # Measured: 0.47 against 0.13, and one in seven by chance.
    assert found(timm_backbone(NAME, 7, 96, WEIGHTS)) > 2 * found(timm_backbone(NAME, 7, 96, pretrained=False))
