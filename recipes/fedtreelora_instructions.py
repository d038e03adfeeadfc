"""The small version of fedtreelora_flan.py: four kinds of Natural Instructions, 8 clients, minutes on a CPU.

Two clients each rewrite questions, put data into words, tell irony and choose what is common sense; the model is the
260,000-parameter LLaMA of llama2.c, whose 512-piece tokenizer makes prompts long: most are cut. Both lie in
$FEDSIM_DATA.

    python recipes/fedtreelora_instructions.py
    python recipes/fedtreelora_instructions.py --embedded --rounds 2
"""

from dataclasses import dataclass, field
from pathlib import Path

import fedsim
from fedsim.data.instructions.instructions import Instructions
from fedsim.experiments import Experiment, run_experiment
from fedsim.models.causal import CausalModel

NATURAL_INSTRUCTIONS = Instructions(
    path=Path("text/natural_instructions_fed"),
    input_column="input",
    task_column="category",
    client_column="client",
    split_column="split",
    tasks=("Question Rewriting", "Data to Text", "Irony Detection", "Commonsense Classification"),
    train_per_client=64,
    test_per_client=16,
    template="plain",
    max_length=192,
    max_new_tokens=24,
)


@dataclass(frozen=True, kw_only=True)
class FedTreeLoRAInstructions(Experiment):
    """FedTreeLoRA on Natural Instructions, two clients for each of four kinds."""

    rounds: int = 10
    """Rounds in all, the warm-up's among them."""
    evaluate_every: int = 2
    """Rounds between evaluations of all seen clients."""
    method: fedsim.FedTreeLoRA = field(
        default_factory=lambda: fedsim.FedTreeLoRA(lora_rank=8, lora_alpha=16.0, warmup_rounds=4)
    )
    """FedTreeLoRA's settings."""
    data: Instructions = NATURAL_INSTRUCTIONS
    """The instructions and their clients."""
    model: CausalModel = field(default_factory=lambda: CausalModel(name="stories260k", stop="<s>"))
    """The backbone. Texts that it has read were set apart by the token that begins one; it knows no end of text."""
    local: fedsim.LocalTraining = field(
        default_factory=lambda: fedsim.LocalTraining(epochs=1, batch_size=8, learning_rate=5e-3)
    )
    """Local training."""


def main(recipe: FedTreeLoRAInstructions) -> None:
    """Train, and print the result."""
    run_experiment(recipe)


if __name__ == "__main__":
    fedsim.cli(FedTreeLoRAInstructions, main)
