"""ILoRA on CIFAR-10, CIFAR-100 or Tiny-ImageNet: 3 clients by Dirichlet(0.3), LoRA ranks 2, 4, 6 (arXiv 2511.16069).

Settings of the released launch scripts. Its four groups: ViT-B or Swin-B, AdamW 1e-4 or SGD 0.01; ranks 4, 4, 4 too.

    fabric run recipes/ilora_cifar.py --devices 3 --data.dataset tiny-imagenet --method.ranks.values 4
    fabric run recipes/ilora_cifar.py --devices 3 --model.name swin_base_patch4_window7_224.ms_in22k_ft_in1k
    python recipes/ilora_cifar.py --embedded --rounds 2
"""

from dataclasses import dataclass, field

import fedsim
from fedsim.data.protocols import SkewedClients, skewed_clients
from fedsim.experiments import ImageExperiment, run_image_experiment
from fedsim.models.backbones import TimmModel

IMAGES = SkewedClients(dataset="cifar100", n_clients=3, alpha=0.3, unseen_fraction=0.0, augment=False)


@dataclass(frozen=True, kw_only=True)
class ILoRACifar(ImageExperiment):
    """ILoRA on small images."""

    rounds: int = 5
    """Rounds in all."""
    method: fedsim.ILoRA = field(default_factory=fedsim.ILoRA)
    """ILoRA's settings."""
    data: SkewedClients = IMAGES
    """The images and their clients."""
    model: TimmModel = field(default_factory=lambda: TimmModel(name="vit_base_patch16_224.augreg2_in21k_ft_in1k"))
    """The backbone."""
    local: fedsim.LocalTraining = field(
        default_factory=lambda: fedsim.LocalTraining(batch_size=64, learning_rate=1e-4, dropout=0.1)
    )
    """Local training."""


def main(recipe: ILoRACifar) -> None:
    """Train, and print the result."""
    run_image_experiment(recipe, recipe.method, recipe.data, skewed_clients)


if __name__ == "__main__":
    fedsim.cli(ILoRACifar, main)
