"""HiLoRA on DomainNet: ViT-B/16, six domains of fifteen clients, the ten largest classes (arXiv 2603.02785).

The paper leaves rank, optimiser, batch and image size open: the usual choices. Each image takes 150 kB in a worker.

    fabric run recipes/hilora_domainnet.py --devices 8 --data.path domainnet
    python recipes/hilora_domainnet.py --embedded --rounds 2
"""

from dataclasses import dataclass, field

import fedsim
from fedsim.data.protocols import DomainClients, domain_clients
from fedsim.experiments import ImageExperiment, run_image_experiment

IMAGES = DomainClients(dataset="domainnet", top_classes=10)


@dataclass(frozen=True, kw_only=True)
class HiLoRADomainNet(ImageExperiment):
    """HiLoRA on DomainNet."""

    method: fedsim.HiLoRA = field(default_factory=fedsim.HiLoRA)
    """HiLoRA's settings."""
    data: DomainClients = IMAGES
    """The images and their clients."""
    local: fedsim.LocalTraining = field(default_factory=lambda: fedsim.LocalTraining(epochs=2, batch_size=64))
    """Local training."""


def main(recipe: HiLoRADomainNet) -> None:
    """Train, and print the result."""
    run_image_experiment(recipe, recipe.method, recipe.data, domain_clients)


if __name__ == "__main__":
    fedsim.cli(HiLoRADomainNet, main)
