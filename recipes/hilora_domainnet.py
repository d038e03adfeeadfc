"""HiLoRA on DomainNet: ViT-B/16, six domains of fifteen clients, the ten largest classes (arXiv 2603.02785).

The paper leaves rank, optimiser, batch and image size open: the usual choices. Each image takes 150 kB in a worker.

    fabric run recipes/hilora_domainnet.py --devices 8 --data.path domainnet
    python recipes/hilora_domainnet.py --embedded --rounds 2
"""

from dataclasses import dataclass, field

import fedsim
from fedsim.data.digits import DigitStyles, digit_styles, pretraining_set
from fedsim.data.images import find_images
from fedsim.data.protocols import DomainClients, domain_clients
from fedsim.models.backbones import TimmModel, timm_backbone
from fedsim.models.digits_vit import pretrained_digits_vit
from fedsim.randomness import numpy_generator
from fedsim.report.progress import show_pretraining
from fedsim.report.table import print_result

IMAGES = DomainClients(hub="wltjr1007/DomainNet", top_classes=10)


@dataclass(frozen=True, kw_only=True)
class HiLoRADomainNet(fedsim.RunOptions):
    """HiLoRA on DomainNet."""

    method: fedsim.HiLoRA = field(default_factory=fedsim.HiLoRA)
    """HiLoRA's settings."""
    data: DomainClients = IMAGES
    """The images and their clients."""
    model: TimmModel = field(default_factory=TimmModel)
    """The backbone."""
    local: fedsim.LocalTraining = field(default_factory=lambda: fedsim.LocalTraining(epochs=2, batch_size=64))
    """Local training."""
    embedded: bool = False
    """Try it anywhere: the embedded digits and a small backbone instead."""


def main(recipe: HiLoRADomainNet) -> None:
    """Train, and print the result."""
    random = numpy_generator(recipe.seed, "data")
    if recipe.embedded:
        data = digit_styles(DigitStyles(), random)
        backbone = pretrained_digits_vit(*pretraining_set(), show_pretraining)
    else:
        images, model, size = find_images(recipe.data), recipe.model, recipe.data.image_size
        backbone = timm_backbone(model.name, images.n_classes, size, model.weights, model.pretrained)
        data = domain_clients(recipe.data, images.decode(), random)
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
    fedsim.cli(HiLoRADomainNet, main)
