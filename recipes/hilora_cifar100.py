"""HiLoRA on CIFAR-100: ViT-B/16, 100 clients by GL-Dir(0.3), SC-Dir(3) or Patho(10) (arXiv 2603.02785).

The paper leaves rank, optimiser, batch and image size open: the usual choices. Images are enlarged batch by batch.

    fabric run recipes/hilora_cifar100.py --devices 8 --data.partition sc-dir
    python recipes/hilora_cifar100.py --embedded --rounds 2
"""

from dataclasses import dataclass, field

import fedsim
from fedsim.data.protocols import SkewedClients, skewed_clients
from fedsim.experiments import ImageExperiment, run_image_experiment

IMAGES = SkewedClients(dataset="cifar100")


@dataclass(frozen=True, kw_only=True)
class HiLoRACifar100(ImageExperiment):
    """HiLoRA on CIFAR-100."""

    method: fedsim.HiLoRA = field(default_factory=fedsim.HiLoRA)
    """HiLoRA's settings."""
    data: SkewedClients = IMAGES
    """The images and their clients."""
    local: fedsim.LocalTraining = field(default_factory=lambda: fedsim.LocalTraining(epochs=1, batch_size=64))
    """Local training."""


def main(recipe: HiLoRACifar100) -> None:
    """Train, and print the result."""
    run_image_experiment(recipe, recipe.method, recipe.data, skewed_clients)


if __name__ == "__main__":
    fedsim.cli(HiLoRACifar100, main)
