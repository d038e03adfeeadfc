"""HiLoRA against FedIT and Local on handwritten digits in six styles: real data, no network, minutes on two cores.

Every method gets the same backbone, split, head policy, optimiser, rounds and seeds. Run it with two workers:

    fabric run recipes/quickstart.py --accelerator cpu --devices 2
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import arg

import fedsim
from fedsim.data.builtin.digits import DigitStyles
from fedsim.experiments import chosen, run_experiment
from fedsim.models.digits_vit import DigitsViT

HILORA = fedsim.HiLoRA(lora_rank=4)


@dataclass(frozen=True, kw_only=True)
class Quickstart(fedsim.RunOptions):
    """HiLoRA, FedIT and Local on the embedded digits."""

    methods: tuple[Literal["local", "fedit", "hilora"], ...] = ("local", "fedit", "hilora")
    """Which methods to train; several are compared."""
    rounds: int = 20
    """Rounds of each method."""
    evaluate_every: int = 2
    """Rounds between evaluations of all seen clients."""
    hilora: Annotated[fedsim.HiLoRA, arg(name="method")] = HILORA
    """HiLoRA's settings; FedIT and Local take LoRA rank, α and head policy from them."""
    data: DigitStyles = field(default_factory=DigitStyles)
    """The federation."""
    model: DigitsViT = field(default_factory=DigitsViT)
    """The backbone."""
    local: fedsim.LocalTraining = field(
        default_factory=lambda: fedsim.LocalTraining(epochs=2, batch_size=25, learning_rate=3e-3)
    )
    """Local training."""

    def by_name(self) -> dict[str, fedsim.Method]:
        """Return the three methods."""
        shared = {name: getattr(self.hilora, name) for name in ("lora_rank", "lora_alpha", "head_policy")}
        return {"local": fedsim.Local(**shared), "fedit": fedsim.FedIT(**shared), "hilora": self.hilora}


def main(recipe: Quickstart) -> None:
    """Train what was asked for and print one table."""
    run_experiment(recipe, chosen(recipe.by_name(), recipe.methods))


if __name__ == "__main__":
    fedsim.cli(Quickstart, main)
