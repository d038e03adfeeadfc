"""Fed-HeLLo on instructions: Natural Instructions, clients that can train half, three quarters or all layers.

The paper (arXiv 2506.12213) names Natural Instructions and Dolly-15K; its models, clients and hyper-parameters could
not be found. Here: TinyLlama, the clients that the file names, and a shorter schedule than on images. For Dolly:
`--data.dataset dolly --data.path text/dolly --data.input-column "" --data.client-column "" --data.split-column ""`.

    fabric run recipes/fedhello_instructions.py --devices 8
    python recipes/fedhello_instructions.py --embedded --rounds 2
"""

from dataclasses import dataclass, field
from pathlib import Path

import fedsim
from fedsim.data.instructions.instructions import Instructions
from fedsim.experiments import Experiment, run_experiment
from fedsim.models.causal import CausalModel
from fedsim.parts.fisher import FisherAllocation

FEDHELLO = fedsim.FedHeLLo(
    capabilities=fedsim.Capabilities(out_of=12, assign="cycle"), fim=FisherAllocation(warmup_rounds=10, period=10)
)
NATURAL_INSTRUCTIONS = Instructions(
    path=Path("text/natural_instructions_fed"),
    input_column="input",
    task_column="category",
    client_column="client",
    split_column="split",
    proxy_samples=50,
)


@dataclass(frozen=True, kw_only=True)
class FedHeLLoInstructions(Experiment):
    """Fed-HeLLo on Natural Instructions."""

    rounds: int = 100
    """Rounds in all."""
    cohort_size: int | None = 10
    """Clients sampled in a round."""
    evaluate_every: int = 10
    """Rounds between evaluations of all seen clients."""
    method: fedsim.FedHeLLo = FEDHELLO
    """Fed-HeLLo's settings."""
    data: Instructions = NATURAL_INSTRUCTIONS
    """The instructions and their clients."""
    model: CausalModel = field(default_factory=lambda: CausalModel(name="TinyLlama/TinyLlama-1.1B-Chat-v1.0"))
    """The backbone and its tokenizer."""
    local: fedsim.LocalTraining = field(
        default_factory=lambda: fedsim.LocalTraining(batch_size=8, learning_rate=1e-3, dropout=0.1)
    )
    """Local training."""


def main(recipe: FedHeLLoInstructions) -> None:
    """Train, and print the result."""
    run_experiment(recipe)


if __name__ == "__main__":
    fedsim.cli(FedHeLLoInstructions, main)
