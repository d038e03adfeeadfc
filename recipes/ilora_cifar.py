"""ILoRA on CIFAR-10, CIFAR-100 or Tiny-ImageNet: 3 clients by Dirichlet(0.3), LoRA ranks 2, 4, 6 (arXiv 2511.16069).

Settings of the released launch scripts. Its four groups: ViT-B or Swin-B, AdamW 1e-4 or SGD 0.01; ranks 4, 4, 4 too.

    fabric run recipes/ilora_cifar.py --devices 3 --data.dataset tiny-imagenet --method.ranks.values 4
    fabric run recipes/ilora_cifar.py --devices 3 --model.name swin_base_patch4_window7_224.ms_in22k_ft_in1k
    python recipes/ilora_cifar.py --embedded --rounds 2
"""

from dataclasses import dataclass, field

import fedsim
from fedsim.data.images.images import ImageOptions
from fedsim.data.protocols import Clients, Skew
from fedsim.experiments import Experiment, run_experiment
from fedsim.models.backbones import TimmModel

IMAGES = Clients(
    source=ImageOptions(dataset="cifar100", augment=False), split=Skew(n_clients=3, alpha=0.3, unseen_fraction=0.0)
)


@dataclass(frozen=True, kw_only=True)
class ILoRACifar(Experiment):
    """ILoRA on small images."""

    rounds: int = 5
    """Rounds in all."""
    method: fedsim.ILoRA = field(default_factory=fedsim.ILoRA)
    """ILoRA's settings."""
    data: Clients[ImageOptions, Skew] = IMAGES
    """The images and their clients."""
    model: TimmModel = field(default_factory=lambda: TimmModel(name="vit_base_patch16_224.augreg2_in21k_ft_in1k"))
    """The backbone."""
    local: fedsim.LocalTraining = field(
        default_factory=lambda: fedsim.LocalTraining(batch_size=64, learning_rate=1e-4, dropout=0.1)
    )
    """Local training."""


def main(recipe: ILoRACifar) -> None:
    """Train, and print the result."""
    run_experiment(recipe)


if __name__ == "__main__":
    fedsim.cli(ILoRACifar, main)
