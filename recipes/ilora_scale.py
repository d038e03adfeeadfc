"""ILoRA with 20 clients of LoRA ranks 2 (five), 8 (five) and 16 (ten) on texts, 20 rounds (arXiv 2511.16069).

The released launch scripts' "aggregation ablation"; its concentrations are 1.6 and 0.1. `--method.core` shows what the
cut costs: unpivoted QR, pivoted QR, SVD.

    fabric run recipes/ilora_scale.py --devices 4 --data.task agnews
    fabric run recipes/ilora_scale.py --devices 4 --data.alpha 0.1 --method.core svd
    python recipes/ilora_scale.py --embedded --rounds 2
"""

from dataclasses import dataclass, field

import fedsim
from fedsim.data.protocols import Clients, Skew
from fedsim.data.texts.texts import TextOptions
from fedsim.experiments import Experiment, run_experiment
from fedsim.models.text import TextModel
from fedsim.parts.ranks import LoraRanks

RANKS = LoraRanks(values=(2,) * 5 + (8,) * 5 + (16,) * 10, assign="list")
TEXTS = Clients(
    source=TextOptions(task="agnews"), split=Skew(n_clients=20, alpha=1.6, min_share=1e-3, unseen_fraction=0.0)
)


@dataclass(frozen=True, kw_only=True)
class ILoRAScale(Experiment):
    """ILoRA with many clients of very unequal ranks."""

    rounds: int = 20
    """Rounds in all."""
    method: fedsim.ILoRA = field(default_factory=lambda: fedsim.ILoRA(ranks=RANKS))
    """ILoRA's settings."""
    data: Clients[TextOptions, Skew] = TEXTS
    """The texts and their clients."""
    model: TextModel = field(default_factory=TextModel)
    """The backbone."""
    local: fedsim.LocalTraining = field(
        default_factory=lambda: fedsim.LocalTraining(batch_size=64, learning_rate=1e-4, dropout=0.1)
    )
    """Local training."""


def main(recipe: ILoRAScale) -> None:
    """Train, and print the result."""
    run_experiment(recipe)


if __name__ == "__main__":
    fedsim.cli(ILoRAScale, main)
