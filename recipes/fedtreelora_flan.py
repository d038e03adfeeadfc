"""FedTreeLoRA on four FLAN tasks: LLaMA-2-7B in 8 bits, 8 clients, LoRA rank 8, ROUGE-1 (arXiv 2603.13282).

The paper states backbone, kinds of task (text editing, structure to text, sentiment, reasoning), clients and rank. The
rest is its group's: tasks, batch, epochs, learning rate, length and ten rounds FedRoRA's; α, dropout, decay, prompt and
beams FedALT's; the five rounds of warm-up FedLEASE's.

    hf download --repo-type dataset Muennighoff/flan --local-dir flan
    fabric run recipes/fedtreelora_flan.py --devices 4 --data.path flan
    python recipes/fedtreelora_flan.py --embedded --rounds 2
"""

from dataclasses import dataclass, field
from pathlib import Path

import fedsim
from fedsim.data.instructions.instructions import Instructions
from fedsim.experiments import Experiment, run_experiment
from fedsim.models.causal import CausalModel

FLAN = Instructions(
    dataset="flan",
    path=Path("flan"),
    tasks=("word_segment", "common_gen", "sentiment140", "story_cloze"),
    train_per_client=1000,
    test_per_client=200,
    beams=4,
)


@dataclass(frozen=True, kw_only=True)
class FedTreeLoRAFlan(Experiment):
    """FedTreeLoRA on FLAN, two clients for each of four tasks."""

    rounds: int = 15
    """Rounds in all, the warm-up's among them."""
    method: fedsim.FedTreeLoRA = field(default_factory=lambda: fedsim.FedTreeLoRA(lora_rank=8, lora_alpha=32.0))
    """FedTreeLoRA's settings."""
    data: Instructions = FLAN
    """The instructions and their clients."""
    model: CausalModel = field(default_factory=lambda: CausalModel(bits=8))
    """The backbone."""
    local: fedsim.LocalTraining = field(
        default_factory=lambda: fedsim.LocalTraining(
            epochs=2, batch_size=8, learning_rate=3e-4, weight_decay=0.05, dropout=0.05
        )
    )
    """Local training."""


def main(recipe: FedTreeLoRAFlan) -> None:
    """Train, and print the result."""
    run_experiment(recipe)


if __name__ == "__main__":
    fedsim.cli(FedTreeLoRAFlan, main)
