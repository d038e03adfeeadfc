"""Any methods on any data on equal terms: one split a seed, one backbone, one head policy, one table with differences.

Methods are named as in fedsim.methods, or `module:Class` of your own; each has its options under its name (Local under
--local-method), and `label=method` names a second one of a kind. `--rates` tries learning rates for each method first.

    fabric run recipes/compare.py --devices 8 --methods hilora fedit my_module:MyMethod --data.dataset cifar100
    python recipes/compare.py --methods fedit low=fedprox high=fedprox --low.mu 0.01 --high.mu 1 --embedded --rounds 2
    python recipes/compare.py --kind texts --methods flora flexlora ilora --data.task trec --reference ilora
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import fedsim
from fedsim.adapters.layout import HeadPolicy
from fedsim.data.images.images import ImageOptions
from fedsim.data.instructions.instructions import Instructions
from fedsim.data.protocols import Clients, Skew
from fedsim.data.texts.texts import TextOptions
from fedsim.experiments import Experiment, run_experiment
from fedsim.experiments.any_method import methods_of, with_options
from fedsim.models.backbones import TimmModel
from fedsim.models.causal import CausalModel
from fedsim.models.text import TextModel

IMAGES = Clients(source=ImageOptions(), split=Skew())
TEXTS = Clients(source=TextOptions(), split=Skew(n_clients=20))
KINDS = {
    "texts": {"data": (Clients[TextOptions, Skew], TEXTS), "model": (TextModel, TextModel())},
    "instructions": {"data": (Instructions, Instructions()), "model": (CausalModel, CausalModel())},
}


@dataclass(frozen=True, kw_only=True)
class Compare(Experiment):
    """Methods by name on images, texts or instructions."""

    methods: tuple[str, ...] = ("hilora", "fedit", "local")
    """The methods: names of fedsim's, or module:Class; label=method where one comes twice."""
    kind: Literal["images", "texts", "instructions"] = "images"
    """What the data are; it decides what --data.* and --model.* may say."""
    head_policy: HeadPolicy = "global"
    """Who trains the classifier, of all methods; their own setting is not used."""
    rates: tuple[float, ...] = ()
    """Learning rates to try for each method first, on validation rows; none: --local.learning-rate."""
    data: Clients[ImageOptions, Skew] = IMAGES
    """The data and their clients."""
    model: TimmModel = field(default_factory=TimmModel)
    """The backbone."""


def main(recipe: Compare) -> None:
    """Run what is missing, and print the table."""
    methods, grid = methods_of(recipe), {"local.learning_rate": recipe.rates}
    run_experiment(recipe, {n: fedsim.Grid(m, grid) for n, m in methods.items()} if recipe.rates else methods)


recipe_type = partial(with_options, Compare, KINDS)

if __name__ == "__main__":
    fedsim.cli(recipe_type, main)
