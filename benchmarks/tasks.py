"""Real data and pre-trained backbones, all from $FEDSIM_DATA or a folder, and the comparisons made of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from results import minutes, write
from torch import nn

import fedsim
from fedsim.data.federated import FederatedData
from fedsim.data.protocols import Clients
from fedsim.models.backbones import TimmModel, timm_statistics
from fedsim.models.text import TextModel
from fedsim.randomness import numpy_generator
from fedsim.report.comparison import Comparison, markdown

VIT = "vit_tiny_patch16_224"
WEIGHTS = Path("vit_tiny_patch16_224/model_fp16.safetensors")
IMAGES = {"image_size": 64, "augment": False, **timm_statistics(VIT)}
"""Options of all images: at 64 pixels ViT-Tiny sees 16 patches, and two cores train on some 300 of them a second."""
CIFAR = {**IMAGES, "dataset": "cifar100", "path": Path("cifar100_8k")}

Task = tuple[Callable[[int], FederatedData], nn.Module]
"""From a seed to the clients' data, and the backbone."""


def image_task(data: Clients) -> Task:
    """Return images over clients, and ViT-Tiny."""
    return task(data, TimmModel(name=VIT, weights=WEIGHTS))


def text_task(data: Clients, name: str) -> Task:
    """Return texts over clients, and the encoder `name`."""
    return task(data, TextModel(name=name))


def task(data: Clients, model: TimmModel | TextModel) -> Task:
    """Return the data over clients and the backbone that fits them."""
    found = data.federations(model)
    return lambda seed: found.federation(numpy_generator(seed, "data")), model.backbone(found)


def compared(task: Task, methods: Mapping[str, fedsim.Method], out: Path, **common: object) -> Comparison | None:
    """Run what is missing of a comparison in a folder; return it on worker 0, None elsewhere."""
    (data, backbone), resume = task, (out / "recipe.json").exists()
    return fedsim.compare(methods, data, out=out, resume=resume, backbone=backbone, **common)


def record(name: str, heading: str, out: Path, sections: Mapping[str, tuple[Comparison | None, Sequence[str]]]) -> None:
    """Print the sections' tables, and what follows each, and write them to RESULTS.md; not but on worker 0."""
    parts = [
        part
        for title, (runs, more) in sections.items()
        if runs is not None
        for part in (f"### {title}", markdown(runs), *more)
    ]
    if parts:
        text = "\n\n".join([*parts, minutes(out)])
        print(text)
        write(name, text, heading)
