"""Fed-HeLLo on CIFAR-100: ViT-B/16, 100 clients that can train 6, 9 or 12 of 12 layers (arXiv 2506.12213).

Settings of the released configurations. Classes per client: 10, 20 (`--data.classes-per-client 20`) or all
(`--data.partition iid`). With `--released`, what the released logs show to have been run (RELEASED below; the habits
are those that methods/fedhello.py lists). Training images are cropped to at least 8 % of their area, always to squares.

    fabric run recipes/fedhello_cifar100.py --devices 8 --data.classes-per-client 20
    python recipes/fedhello_cifar100.py --embedded --rounds 2
"""

from dataclasses import dataclass, field
from operator import attrgetter

import fedsim
from fedsim.data.images.images import ImageOptions
from fedsim.data.protocols import Clients, Skew
from fedsim.experiments import Experiment, changed, run_experiment
from fedsim.models.backbones import TimmModel
from fedsim.parts.fisher import FisherAllocation

FEDHELLO = fedsim.FedHeLLo(capabilities=fedsim.Capabilities(out_of=12))
SPLIT = {"partition": "patho", "alpha": 1.0, "min_share": 0.02, "unseen_fraction": 0.0, "proxy_samples": 100}
IMAGES = Clients(source=ImageOptions(dataset="cifar100", crop=0.28), split=Skew(**SPLIT))
LOCAL = fedsim.LocalTraining(batch_size=128, learning_rate=1e-2, weight_decay=0.01, dropout=0.1)
HABITS = FisherAllocation(measures="fisher_logit", score="frobenius", ordered=False, lasting=1)
RELEASED = {"method.head_policy": "local", "method.forget_heads": True, "method.fim": HABITS}
RELEASED |= {"data.split.proxy_samples": 1, "local.batch_size": 1024, "local.learning_rate": 0.0099}


@dataclass(frozen=True, kw_only=True)
class FedHeLLoCifar100(Experiment):
    """Fed-HeLLo on CIFAR-100."""

    rounds: int = 500
    """Rounds in all."""
    cohort_size: int | None = 10
    """Clients sampled in a round."""
    released: bool = False
    """Local work, classifier and scores as in the released logs."""
    method: fedsim.FedHeLLo = FEDHELLO
    """Fed-HeLLo's settings."""
    data: Clients[ImageOptions, Skew] = IMAGES
    """The images and their clients."""
    model: TimmModel = field(default_factory=lambda: TimmModel(name="vit_base_patch16_224.orig_in21k"))
    """The backbone."""
    local: fedsim.LocalTraining = LOCAL
    """Local training."""


def as_released(recipe: FedHeLLoCifar100) -> FedHeLLoCifar100:
    """Return the recipe with the options that the release ran with; raises ValueError where another was given."""
    usual = FedHeLLoCifar100()
    for path, value in RELEASED.items():
        if (given := attrgetter(path)(recipe)) not in (attrgetter(path)(usual), value):
            raise ValueError(f"--released sets {path.replace('split.', '')} to {value}, and {given} was given.")
        recipe = changed(recipe, path, value)
    return recipe


def main(recipe: FedHeLLoCifar100) -> None:
    """Train, and print the result."""
    recipe = as_released(recipe) if recipe.released else recipe
    run_experiment(recipe)


if __name__ == "__main__":
    fedsim.cli(FedHeLLoCifar100, main)
