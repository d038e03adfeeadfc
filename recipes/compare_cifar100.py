"""Which method is better on CIFAR-100, by how much, and is it real? Six methods, several seeds, one table.

HiLoRA's federations (100 clients by GL-Dir(0.3), SC-Dir(3) or Patho(10), a fifth unseen) with any ViT; all methods get
the same split, backbone, head policy, LoRA rank, rounds and local epochs. `--tune` tries four settings of each first.

    fabric run recipes/compare_cifar100.py --devices 8 --seeds 0 1 2 --tune
    fabric run recipes/compare_cifar100.py --devices 8 --seeds 0 1 2 --methods hilora fedit local --dry-run
    python recipes/compare_cifar100.py --embedded --rounds 2 --seeds 0 1
"""

from dataclasses import dataclass, field

import fedsim
from fedsim.data.images.images import ImageOptions
from fedsim.data.protocols import Clients, Skew
from fedsim.experiments import Experiment, chosen, run_experiment
from fedsim.models.backbones import TimmModel

IMAGES = Clients(source=ImageOptions(dataset="cifar100"), split=Skew())
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
GRIDS = {"hilora": {"local.learning_rate": (1e-3, 3e-3), "gamma_c": (0.1, 0.01)}}
"""Four trials of each method: of HiLoRA two rates with two γ_c, of the others four rates."""


@dataclass(frozen=True, kw_only=True)
class CompareCifar100(Experiment):
    """Methods on CIFAR-100."""

    methods: tuple[str, ...] = ("hilora", "local", "fedit", "flexlora", "ilora", "flora")
    """The methods."""
    tune: bool = False
    """First try four settings of each method on validation rows, and take the best."""
    method: fedsim.HiLoRA = field(default_factory=fedsim.HiLoRA)
    """HiLoRA's settings; the others take LoRA rank, α and head policy from them."""
    data: Clients[ImageOptions, Skew] = IMAGES
    """The images and their clients."""
    model: TimmModel = field(default_factory=TimmModel)
    """The backbone."""
    local: fedsim.LocalTraining = field(default_factory=lambda: fedsim.LocalTraining(epochs=1, batch_size=64))
    """Local training."""

    def by_name(self) -> dict[str, fedsim.Method | fedsim.Grid]:
        """Return all methods that there are, or what is tried of each."""
        shared = {name: getattr(self.method, name) for name in ("lora_alpha", "head_policy")}
        rank = self.method.lora_rank
        one, many = shared | {"lora_rank": rank}, shared | {"ranks": fedsim.LoraRanks(values=(rank,))}
        found: dict[str, fedsim.Method] = {"hilora": self.method}
        found |= {"local": fedsim.Local(**one), "fedit": fedsim.FedIT(**one), "flexlora": fedsim.FlexLoRA(**many)}
        found |= {"ilora": fedsim.ILoRA(**many), "flora": fedsim.FLoRA(**many)}
        if not self.tune:
            return dict(found)
        return {n: fedsim.Grid(m, GRIDS.get(n, {"local.learning_rate": RATES})) for n, m in found.items()}


def main(recipe: CompareCifar100) -> None:
    """Run what is missing, and print the table."""
    run_experiment(recipe, chosen(recipe.by_name(), recipe.methods))


if __name__ == "__main__":
    fedsim.cli(CompareCifar100, main)
