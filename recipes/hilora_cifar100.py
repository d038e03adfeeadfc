"""HiLoRA on CIFAR-100: ViT-B/16, 100 clients by GL-Dir(0.3), SC-Dir(3) or Patho(10) (arXiv 2603.02785).

The paper leaves rank, optimiser, batch and image size open: the usual choices. Images are enlarged batch by batch.

    fabric run recipes/hilora_cifar100.py --devices 8 --data.partition sc-dir
    python recipes/hilora_cifar100.py --embedded --rounds 2
"""

from dataclasses import dataclass, field

import fedsim
from fedsim.data.digits import DigitStyles, digit_styles, pretraining_set
from fedsim.data.images import find_images
from fedsim.data.protocols import SkewedClients, skewed_clients
from fedsim.models.backbones import TimmModel, timm_backbone
from fedsim.models.digits_vit import pretrained_digits_vit
from fedsim.randomness import numpy_generator
from fedsim.report.progress import show_pretraining
from fedsim.report.table import print_result

IMAGES = SkewedClients(hub="uoft-cs/cifar100", label_column="fine_label", group_column="coarse_label", stored_size=32)


@dataclass(frozen=True, kw_only=True)
class HiLoRACifar100(fedsim.RunOptions):
    """HiLoRA on CIFAR-100."""

    method: fedsim.HiLoRA = field(default_factory=fedsim.HiLoRA)
    """HiLoRA's settings."""
    data: SkewedClients = IMAGES
    """The images and their clients."""
    model: TimmModel = field(default_factory=TimmModel)
    """The backbone."""
    local: fedsim.LocalTraining = field(default_factory=lambda: fedsim.LocalTraining(epochs=1, batch_size=64))
    """Local training."""
    embedded: bool = False
    """Try it anywhere: the embedded digits and a small backbone instead."""


def main(recipe: HiLoRACifar100) -> None:
    """Train, and print the result."""
    random = numpy_generator(recipe.seed, "data")
    if recipe.embedded:
        data = digit_styles(DigitStyles(), random)
        backbone = pretrained_digits_vit(*pretraining_set(), show_pretraining)
    else:
        images, model, size = find_images(recipe.data), recipe.model, recipe.data.image_size
        backbone = timm_backbone(model.name, images.n_classes, size, model.weights, model.pretrained)
        data = skewed_clients(recipe.data, images.decode(), random)
    result = fedsim.simulate(
        method=recipe.method,
        backbone=backbone,
        data=data,
        sites=recipe.model.sites,
        local=recipe.local,
        **recipe.arguments(),
    )
    if result:
        print_result(result)


if __name__ == "__main__":
    fedsim.cli(HiLoRACifar100, main)
