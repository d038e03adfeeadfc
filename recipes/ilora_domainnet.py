"""ILoRA on one domain of DomainNet: classes 0 to 99, 3 clients by Dirichlet(0.6), 50 rounds (arXiv 2511.16069).

Settings of the released scripts; a round takes a random tenth of a client's batches. They also draw 80 % of the images.

    fabric run recipes/ilora_domainnet.py --devices 3 --data.path domainnet --data.domain sketch
    python recipes/ilora_domainnet.py --embedded --rounds 2
"""

from dataclasses import dataclass, field

import fedsim
from fedsim.data.images.images import ImageOptions
from fedsim.data.protocols import Clients, Skew
from fedsim.experiments import Experiment, run_experiment
from fedsim.models.backbones import TimmModel

IMAGES = Clients(
    source=ImageOptions(
        dataset="domainnet",
        domain=("clipart",),
        first_classes=100,
        augment=False,
        mean=(0.4815, 0.4578, 0.4082),
        std=(0.2686, 0.2613, 0.2758),
    ),
    split=Skew(n_clients=3, alpha=0.6, unseen_fraction=0.0),
)
"""Normalised as for CLIP, whatever the backbone, as released."""


@dataclass(frozen=True, kw_only=True)
class ILoRADomainNet(Experiment):
    """ILoRA on one domain."""

    method: fedsim.ILoRA = field(default_factory=fedsim.ILoRA)
    """ILoRA's settings."""
    data: Clients[ImageOptions, Skew] = IMAGES
    """The images and their clients."""
    model: TimmModel = field(default_factory=TimmModel)
    """The backbone."""
    local: fedsim.LocalTraining = field(
        default_factory=lambda: fedsim.LocalTraining(share=0.1, batch_size=64, weight_decay=0.01, dropout=0.1)
    )
    """Local training."""


def main(recipe: ILoRADomainNet) -> None:
    """Train, and print the result."""
    run_experiment(recipe)


if __name__ == "__main__":
    fedsim.cli(ILoRADomainNet, main)
