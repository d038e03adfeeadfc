"""Pre-trained backbones by name, from timm and transformers, with a fresh classifier for the task's classes."""

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedsim.models.origin import known
from fedsim.models.sites import QUERY_VALUE, guess_head, is_in_head
from fedsim.randomness import derive_seed

VARIABLE = "FEDSIM_DATA"
"""Environment variable that names a folder in which weights may lie."""
SEED = 0
"""Of fresh classifiers and of random backbones: every run and every method starts from the same ones."""


@dataclass(frozen=True, kw_only=True)
class TimmModel:
    """A backbone of timm."""

    name: str = "vit_base_patch16_224.augreg_in21k"
    """timm's name, with the tag of the weights."""
    weights: Path | None = None
    """Checkpoint file (safetensors or PyTorch), as such or inside $FEDSIM_DATA; default: the hub and its cache."""
    pretrained: bool = True
    """Start from pre-trained weights; otherwise from random ones."""
    sites: str = QUERY_VALUE
    """Names of the linear maps that carry adapters, a regular expression."""
    adapter: Path | None = None
    """PEFT adapter folder to start from; it is merged into the frozen backbone."""

    def embedded_backbone(self, data: Any) -> nn.Module:
        """Return the backbone of the embedded digits."""
        from fedsim.models.digits_vit import DigitsViT

        return DigitsViT().backbone(data)

    def statistics(self) -> dict[str, tuple[float, ...]]:
        """Return how its images are normalised; see `timm_statistics`."""
        return timm_statistics(self.name)

    def backbone(self, data: Any, dry_run: bool = False) -> nn.Module:
        """Return the model that fits the images; in a dry run with random weights."""
        size, pretrained = data.found.options.image_size, self.pretrained and not dry_run
        return timm_backbone(self.name, data.found.n_classes, size, self.weights, pretrained)


def _timm_base(name: str, image_size: int, weights: Path | None, pretrained: bool, **_: object) -> str | None:
    """The hub's name of what was loaded: not for another file, random weights or resampled position embeddings."""
    config = _timm_config(name)
    is_resampled = config.fixed_input_size and image_size != config.input_size[-1]
    if not pretrained or is_resampled:
        return None
    return str(weights) if weights is not None else f"timm/{config.architecture}.{config.tag}"


@known(_timm_base)
def timm_backbone(
    name: str, n_classes: int, image_size: int = 224, weights: Path | None = None, pretrained: bool = True
) -> nn.Module:
    """Return timm's model for images (B, 3, image_size, image_size), with a fresh classifier of n_classes outputs.

    A ViT's position embedding is resampled to the image size. `weights` is a checkpoint file; without it the weights
    come from the hub or its cache. Raises ValueError when the name is unknown, or the weights are not to be had,
    damaged or another model's.
    """
    import timm

    config = _timm_config(name)
    options: dict[str, Any] = {"img_size": image_size} if config.fixed_input_size else {}
    if weights is not None and pretrained:
        file = _find_weights(name, Path(weights))
        # With as many classes as the checkpoint has, timm loads strictly; else a missing tensor would pass unnoticed.
        n_stored = _classes_in(file, config.classifier)
        # Before 1.0.28 timm would read the file as the original one in NumPy's format, if the model has such.
        overlay = {"file": str(file), "num_classes": n_stored, "label_offset": 0, "custom_load": False}
        options |= {"num_classes": n_stored, "pretrained_cfg_overlay": overlay}
    remedy = "pass --model.weights {folder}/model.safetensors, or start from random weights by --model.no-pretrained"
    hub = f"timm/{config.architecture}.{config.tag}"
    with seeded("backbone"), explained(name, weights, hub, remedy):
        model = timm.create_model(name, pretrained=pretrained, **options)
    assert isinstance(model, nn.Module)
    with seeded("classifier"):
        model.reset_classifier(n_classes)  # type: ignore[operator]
    return model.eval()


def timm_statistics(name: str) -> dict[str, tuple[float, ...]]:
    """Return mean and std of red, green and blue with which timm's model was pre-trained; ValueError if unknown."""
    config = _timm_config(name)
    return {"mean": tuple(config.mean), "std": tuple(config.std)}


def transformers_classifier(kind: Any, name: str, n_classes: int, pretrained: bool = True) -> Any:
    """Return a model of one of transformers' Auto classes for classification, with a fresh classifier.

    `name` is a folder, one in $FEDSIM_DATA, or a name on the hub. Raises ValueError when the model is not to be had,
    damaged or lacks tensors.
    """
    from transformers import AutoConfig

    source = str(inside_variable(Path(name)) or name)
    with seeded("backbone"), explained(name, None, name, "give that folder as its name"), quiet():
        if not pretrained:
            model, absent = kind.from_config(AutoConfig.from_pretrained(source, num_labels=n_classes)), []
        else:
            model, loading = kind.from_pretrained(
                source, num_labels=n_classes, ignore_mismatched_sizes=True, output_loading_info=True
            )
            absent = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
    head = guess_head(model)
    check_none_is_absent(source, [key for key in absent if not is_in_head(key.rpartition(".")[0], head)])
    with seeded("classifier"):
        for path, module in model.named_modules():
            if is_in_head(path, head) and isinstance(module, nn.Linear):
                module.reset_parameters()
    return model.eval()


def _timm_config(name: str) -> Any:
    import timm

    try:
        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # a known architecture with an unknown tag
        config = None
    if config is None:
        close = difflib.get_close_matches(name, {*timm.list_models(), *timm.list_pretrained()}, 3, 0.5)
        raise ValueError(f"timm knows no model '{name}' (--model.name); names close to it are {sorted(close)}.")
    return config


def _find_weights(name: str, weights: Path) -> Path:
    found = inside_variable(weights)
    if found is None or not found.is_file():
        variable = os.environ.get(VARIABLE)
        also = f"'{Path(variable) / weights}'" if variable else f"{VARIABLE} is not set"
        raise ValueError(
            f"The weights of '{name}' are not to be had: looked for '{weights}' (--model.weights) and, by the "
            f"environment variable {VARIABLE}, {also}. Leave --model.weights out to take them from the hub."
        )
    return found


def inside_variable(path: Path) -> Path | None:
    """Return the path itself if it exists, else inside $FEDSIM_DATA, else None."""
    places = (path, Path(os.environ.get(VARIABLE) or ".") / path)
    return next((place for place in places if place.exists()), None)


def _classes_in(file: Path, classifier: str | Iterable[str] | None) -> int:
    """The outputs of a checkpoint's classifier, 0 if it has none."""
    import timm

    first = classifier if isinstance(classifier, str) else next(iter(classifier or ()), "")
    try:
        state = timm.models.load_state_dict(str(file), weights_only=True)
        return len(state.get(f"{first}.weight", ()))
    except Exception as error:  # safetensors, pickle, zip and torch each raise their own
        raise ValueError(f"The weights '{file}' are damaged or no checkpoint: {error} (--model.weights).") from error


def check_none_is_absent(source: str, missing: Sequence[str]) -> None:
    """Raise ValueError when tensors are missing."""
    if missing:
        raise ValueError(
            f"'{source}' does not fit its own configuration: {len(missing)} tensors are missing or of another shape, "
            f"such as {sorted(missing)[:3]}."
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Do without transformers' bars and its table of absent tensors, which we look at ourselves."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def seeded(purpose: str) -> Iterator[None]:
    """Have global randomness from a fixed seed inside, and untouched outside: libraries initialise from it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(SEED, purpose))  # of the CPU, where models are built
        yield


@contextmanager
def explained(name: str, weights: Path | None, hub: str, remedy: str) -> Iterator[None]:
    """Turn what the libraries raise into one ValueError: what is missing, where it was looked for, how to get it."""
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        yield
    except Exception as error:  # timm, transformers, huggingface_hub and safetensors each raise their own
        why = " ".join(str(error).split())[:300]
        if weights is not None:
            raise ValueError(f"The weights '{weights}' do not fit '{name}': {why} … (--model.weights).") from error
        folder = hub.rpartition("/")[2]
        raise ValueError(
            f"The weights of '{name}' are not to be had: looked for '{hub}' in the hub cache '{HF_HUB_CACHE}' and on "
            f"the hub ({why}). Get them, on a machine with network, by `hf download {hub} --local-dir {folder}` and "
            f"{remedy.format(folder=folder)}."
        ) from error
