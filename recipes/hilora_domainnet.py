"""HiLoRA on DomainNet: ViT-B/16, six domains of fifteen clients, the ten largest classes (arXiv 2603.02785).

The paper leaves rank, optimiser, batch and image size open: the usual choices. Each image takes 150 kB in a worker.

    fabric run recipes/hilora_domainnet.py --devices 8 --data.path domainnet
    python recipes/hilora_domainnet.py --embedded --rounds 2
"""

from dataclasses import dataclass, field

import fedsim
from fedsim.data.images.images import ImageOptions
from fedsim.data.protocols import Clients, Domains
from fedsim.experiments import Experiment, run_experiment
from fedsim.models.backbones import TimmModel

IMAGES = Clients(source=ImageOptions(dataset="domainnet", domain_column="domain", top_classes=10), split=Domains())


@dataclass(frozen=True, kw_only=True)
class HiLoRADomainNet(Experiment):
    """HiLoRA on DomainNet."""

    method: fedsim.HiLoRA = field(default_factory=fedsim.HiLoRA)
    """HiLoRA's settings."""
    data: Clients[ImageOptions, Domains] = IMAGES
    """The images and their clients."""
    model: TimmModel = field(default_factory=TimmModel)
    """The backbone."""
    local: fedsim.LocalTraining = field(default_factory=lambda: fedsim.LocalTraining(epochs=2, batch_size=64))
    """Local training."""


def main(recipe: HiLoRADomainNet) -> None:
    """Train, and print the result."""
    run_experiment(recipe)


if __name__ == "__main__":
    fedsim.cli(HiLoRADomainNet, main)
