"""ILoRA on text classification with RoBERTa-base, 3 clients of LoRA ranks 2, 4, 6, and its ladder (arXiv 2511.16069).

The ladder adds one part at a time: base (zero-padded FedIT), + init (QR), + aggregation (concatenated QR), + control
(variates, the whole of ILoRA). The paper's on QNLI, Dirichlet(0.8): 61.2, 71.4, 77.4, 84.3.

    fabric run recipes/ilora_text.py --devices 3 --methods base init aggregation control
    fabric run recipes/ilora_text.py --devices 3 --data.task sst2 --data.alpha 0.5
    python recipes/ilora_text.py --embedded --rounds 2
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import fedsim
from fedsim.data.protocols import Clients, Skew
from fedsim.data.texts.texts import TextOptions
from fedsim.experiments import Experiment, chosen, run_experiment
from fedsim.models.text import TextModel

TEXTS = Clients(source=TextOptions(task="qnli"), split=Skew(n_clients=3, alpha=0.8, unseen_fraction=0.0))


def ladder(method: fedsim.ILoRA) -> dict[str, fedsim.ILoRA]:
    """Return the four rungs of ILoRA, by name."""
    aggregation = replace(method, control=False)
    init = replace(aggregation, aggregation="mean")
    return {"base": replace(init, init="random"), "init": init, "aggregation": aggregation, "control": method}


@dataclass(frozen=True, kw_only=True)
class ILoRAText(Experiment):
    """ILoRA on texts."""

    methods: tuple[Literal["base", "init", "aggregation", "control"], ...] = ("control",)
    """How much of ILoRA; several rungs of the ladder are compared."""
    rounds: int = 5
    """Rounds in all."""
    method: fedsim.ILoRA = field(default_factory=fedsim.ILoRA)
    """ILoRA's settings."""
    data: Clients[TextOptions, Skew] = TEXTS
    """The texts and their clients."""
    model: TextModel = field(default_factory=TextModel)
    """The backbone."""
    local: fedsim.LocalTraining = field(
        default_factory=lambda: fedsim.LocalTraining(batch_size=64, learning_rate=1e-4, dropout=0.1)
    )
    """Local training."""


def main(recipe: ILoRAText) -> None:
    """Train, and print the result."""
    run_experiment(recipe, chosen(ladder(recipe.method), recipe.methods))


if __name__ == "__main__":
    fedsim.cli(ILoRAText, main)
