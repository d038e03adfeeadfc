"""The real data and pre-trained backbones that benchmarks train on, all from $FEDSIM_DATA or a folder."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from fedsim.data.federated import FederatedData
from fedsim.data.images import find_images
from fedsim.data.protocols import DomainClients, SkewedClients, SkewedTexts, domain_clients, skewed_clients
from fedsim.data.texts import find_texts
from fedsim.models.backbones import timm_backbone, timm_statistics
from fedsim.models.text import TextModel, text_backbone, text_tokenizer
from fedsim.randomness import numpy_generator

VIT = "vit_tiny_patch16_224"
WEIGHTS = Path("vit_tiny_patch16_224/model_fp16.safetensors")
IMAGES = {"image_size": 64, "augment": False, **timm_statistics(VIT)}
"""Options of all images: at 64 pixels ViT-Tiny sees 16 patches, and two cores train on some 300 of them a second."""
CIFAR = {**IMAGES, "dataset": "cifar100", "path": Path("cifar100_8k")}

Task = tuple[Callable[[int], FederatedData], nn.Module]
"""From a seed to the clients' data, and the backbone."""


def image_task(options: SkewedClients | DomainClients) -> Task:
    """Return images over clients, and ViT-Tiny."""
    found = find_images(options)
    split = domain_clients if isinstance(options, DomainClients) else skewed_clients
    images = found.decode()
    backbone = timm_backbone(VIT, found.n_classes, options.image_size, WEIGHTS)
    return lambda seed: split(options, images, numpy_generator(seed, "data")), backbone


def text_task(options: SkewedTexts, name: str) -> Task:
    """Return texts over clients, and the encoder `name`."""
    model, found = TextModel(name=name), find_texts(options)
    tokenizer = text_tokenizer(model)
    texts = found.tokenise(tokenizer)
    backbone = text_backbone(model, found.n_classes, tokenizer)
    return lambda seed: skewed_clients(options, texts, numpy_generator(seed, "data")), backbone
