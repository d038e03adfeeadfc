"""FedTreeLoRA on TREC's six kinds of question with a small encoder: minutes on two cores (arXiv 2603.13282).

The small version of fedtreelora_glue.py. Any small BERT will do, from the hub or a folder; all-MiniLM-L6-v2 has six
layers of width 384.

    fabric run recipes/fedtreelora_trec.py --accelerator cpu --devices 2
    fabric run recipes/fedtreelora_trec.py --accelerator cpu --devices 2 --data.path text/trec --data.label-column label
    python recipes/fedtreelora_trec.py --embedded --rounds 4
"""

from dataclasses import dataclass, field

import fedsim
from fedsim.data.protocols import Clients, Skew
from fedsim.data.texts.texts import TextOptions
from fedsim.experiments import Experiment, run_experiment
from fedsim.models.text import TextModel

TEXTS = Clients(
    source=TextOptions(task="trec", max_length=16),
    split=Skew(partition="sized-dir", n_clients=8, train_per_client=60, test_per_client=20, unseen_fraction=0.0),
)


@dataclass(frozen=True, kw_only=True)
class FedTreeLoRATrec(Experiment):
    """FedTreeLoRA on TREC."""

    rounds: int = 8
    """Rounds in all, the warm-up's among them."""
    method: fedsim.FedTreeLoRA = field(default_factory=lambda: fedsim.FedTreeLoRA(lora_rank=4, warmup_rounds=2))
    """FedTreeLoRA's settings."""
    data: Clients[TextOptions, Skew] = TEXTS
    """The texts and their clients."""
    model: TextModel = field(default_factory=lambda: TextModel(name="sentence-transformers/all-MiniLM-L6-v2"))
    """The backbone and its tokenizer."""
    local: fedsim.LocalTraining = field(
        default_factory=lambda: fedsim.LocalTraining(epochs=2, batch_size=15, learning_rate=5e-3)
    )
    """Local training."""


def main(recipe: FedTreeLoRATrec) -> None:
    """Train, and print the result."""
    run_experiment(recipe)


if __name__ == "__main__":
    fedsim.cli(FedTreeLoRATrec, main)
