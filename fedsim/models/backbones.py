"""Pre-trained image classifiers by name, from timm and transformers, with a fresh classifier for the task's classes."""

import difflib
import os
import pickle
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fedsim.models.sites import QUERY_VALUE, guess_head
from fedsim.randomness import derive_seed

VARIABLE = "FEDSIM_DATA"
"""Environment variable that names a folder in which weights may lie."""
SEED = 0
"""Of fresh classifiers: every run and every method starts from the same one."""


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


def timm_backbone(
    name: str, n_classes: int, image_size: int = 224, weights: Path | None = None, pretrained: bool = True
) -> nn.Module:
    """Return timm's model for images (B, 3, image_size, image_size), with a fresh classifier of n_classes outputs.

    A ViT's position embedding is resampled to the image size. Every tensor but the classifier's must be in the
    checkpoint. Raises ValueError when the name is unknown, or weights are not to be had, damaged or of another model.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(pretrained=False) + timm.list_pretrained(), 3)
        raise ValueError(f"timm knows no model '{name}' (--model.name); close names are {close}.")
    config = timm.get_pretrained_cfg(name)
    kwargs = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
    with _seeded(name):
        if weights is not None:
            state = _read_weights(name, weights)
            # With as many classes as the checkpoint has, timm loads strictly; else a wrong one would pass unnoticed.
            classes = len(state.get(f"{_first(config.classifier)}.weight", ()))
            overlay = {"state_dict": state, "num_classes": classes, "label_offset": 0}
            with _fitting(name, weights):
                model = timm.create_model(
                    name, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay, **kwargs
                )
            model.pretrained_cfg.pop("state_dict", None)
        else:
            with _downloading(name, f"timm/{name}"):
                model = timm.create_model(name, pretrained=pretrained, **kwargs)
    return _with_classifier(model, lambda: model.reset_classifier(n_classes))
