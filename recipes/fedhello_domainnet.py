"""Fed-HeLLo on DomainNet: ViT-B/16, six domains, clients that can train 6, 9 or 12 of 12 layers (arXiv 2506.12213).

The paper's 121 classes are taken to be the first ones; its clients and optimiser could not be found: those of its
CIFAR-100 runs, with fifteen clients a domain. Each image takes 150 kB in a worker.

    fabric run recipes/fedhello_domainnet.py --devices 8 --data.path domainnet
    python recipes/fedhello_domainnet.py --embedded --rounds 2
"""

from dataclasses import dataclass, field

import fedsim
from fedsim.data.images.images import ImageOptions
from fedsim.data.protocols import Clients, Domains
from fedsim.experiments import Experiment, run_experiment
from fedsim.models.backbones import TimmModel

FEDHELLO = fedsim.FedHeLLo(capabilities=fedsim.Capabilities(out_of=12, assign="cycle"))
IMAGES = Clients(
    source=ImageOptions(dataset="domainnet", domain_column="domain", first_classes=121),
    split=Domains(unseen_fraction=0.0, proxy_samples=121),
)


@dataclass(frozen=True, kw_only=True)
class FedHeLLoDomainNet(Experiment):
    """Fed-HeLLo on DomainNet."""

    rounds: int = 500
    """Rounds in all."""
    cohort_size: int | None = 10
    """Clients sampled in a round."""
    method: fedsim.FedHeLLo = FEDHELLO
    """Fed-HeLLo's settings; capabilities take turns, so that every domain has all."""
    data: Clients[ImageOptions, Domains] = IMAGES
    """The images and their clients."""
    model: TimmModel = field(default_factory=lambda: TimmModel(name="vit_base_patch16_224.orig_in21k"))
    """The backbone."""
    local: fedsim.LocalTraining = field(
        default_factory=lambda: fedsim.LocalTraining(batch_size=128, learning_rate=1e-2, weight_decay=0.01, dropout=0.1)
    )
    """Local training."""


def main(recipe: FedHeLLoDomainNet) -> None:
    """Train, and print the result."""
    run_experiment(recipe)


if __name__ == "__main__":
    fedsim.cli(FedHeLLoDomainNet, main)
