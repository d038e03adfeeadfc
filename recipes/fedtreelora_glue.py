"""FedTreeLoRA on a GLUE task: RoBERTa-large, 20 clients of 1,000 and 200 samples by Dirichlet(0.5) (arXiv 2603.13282).

One federation per task (mnli, qnli, sst2, qqp). The paper states backbone, clients, rank and query/value; learning
rate, batch, epochs, rounds and the frozen head are its group's later ones (FedRoRA). SST-2's validation set is too
small for 20 x 200: `--data.test-split ''` holds test samples out of the training split.

    fabric run recipes/fedtreelora_glue.py --devices 8 --data.task qnli
    fabric run recipes/fedtreelora_glue.py --devices 8 --data.task sst2 --data.test-split '' --ablation all
    python recipes/fedtreelora_glue.py --embedded --rounds 7
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import fedsim
from fedsim.data.protocols import Clients, Skew
from fedsim.data.texts.texts import TextOptions
from fedsim.experiments import Experiment, changed, run_experiment
from fedsim.models.text import TextModel

TEXTS = Clients(
    source=TextOptions(task="qnli", max_length=128),
    split=Skew(partition="sized-dir", n_clients=20, unseen_fraction=0.0),
)
ROBERTA = TextModel(name="FacebookAI/roberta-large")


def ablations(method: fedsim.FedTreeLoRA) -> dict[str, fedsim.FedTreeLoRA]:
    """Return the paper's variants by name."""
    fixed = {f"fixed-{n}": replace(method, tree=replace(method.tree, clusters=n)) for n in (1, 4, 8)}
    no_tree = replace(method, tree=replace(method.tree, one_tree=False))
    return {"full": method, **fixed, "no-tree": no_tree, "no-external": replace(method, external=False)}


@dataclass(frozen=True, kw_only=True)
class FedTreeLoRAGlue(Experiment):
    """FedTreeLoRA on a GLUE task."""

    ablation: Literal["full", "fixed-1", "fixed-4", "fixed-8", "no-tree", "no-external", "all"] = "full"
    """Which variant; `all` compares them."""
    rounds: int = 40
    """Rounds in all, the warm-up's among them."""
    method: fedsim.FedTreeLoRA = field(
        default_factory=lambda: fedsim.FedTreeLoRA(lora_rank=4, lora_alpha=16.0, head_policy="frozen")
    )
    """FedTreeLoRA's settings."""
    data: Clients[TextOptions, Skew] = TEXTS
    """The texts and their clients."""
    model: TextModel = ROBERTA
    """The backbone and its tokenizer."""
    local: fedsim.LocalTraining = field(
        default_factory=lambda: fedsim.LocalTraining(epochs=2, batch_size=128, learning_rate=5e-4, dropout=0.05)
    )
    """Local training."""


def main(recipe: FedTreeLoRAGlue) -> None:
    """Train, and print the result."""
    variants = ablations(recipe.method)
    methods = variants if recipe.ablation == "all" else variants[recipe.ablation]
    if recipe.embedded:
        recipe = changed(recipe, "data.split", replace(recipe.data.split, train_per_client=30, test_per_client=8))
    run_experiment(recipe, methods)


if __name__ == "__main__":
    fedsim.cli(FedTreeLoRAGlue, main)
