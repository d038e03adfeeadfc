"""HiLoRA on CIFAR-100: ViT-B/16, 100 clients by GL-Dir(0.3), SC-Dir(3) or Patho(10) (arXiv 2603.02785).

The paper leaves rank, optimiser, batch and image size open: the usual choices. Images are enlarged batch by batch.

    fabric run recipes/hilora_cifar100.py --devices 8 --data.partition sc-dir
    python recipes/hilora_cifar100.py --embedded --rounds 2
"""

from dataclasses import dataclass, field

import fedsim
from fedsim.data.images.images import ImageOptions
from fedsim.data.protocols import Clients, Skew
from fedsim.experiments import Experiment, run_experiment
from fedsim.models.backbones import TimmModel

IMAGES = Clients(source=ImageOptions(dataset="cifar100"), split=Skew())


@dataclass(frozen=True, kw_only=True)
class HiLoRACifar100(Experiment):
    """HiLoRA on CIFAR-100."""

    method: fedsim.HiLoRA = field(default_factory=fedsim.HiLoRA)
    """HiLoRA's settings."""
    data: Clients[ImageOptions, Skew] = IMAGES
    """The images and their clients."""
    model: TimmModel = field(default_factory=TimmModel)
    """The backbone."""
    local: fedsim.LocalTraining = field(default_factory=lambda: fedsim.LocalTraining(epochs=1, batch_size=64))
    """Local training."""


def main(recipe: HiLoRACifar100) -> None:
    """Train, and print the result."""
    run_experiment(recipe)


if __name__ == "__main__":
    fedsim.cli(HiLoRACifar100, main)
