"""Fed-HeLLo on LEDGAR: BERT-base, provisions of contracts in 100 classes, 512 tokens (arXiv 2506.12213).

Model, length and the proxy set of 50 are the released ones. Its clients and local work could not be found: 100 clients
of 10 classes as on CIFAR-100, batches of 32 at 1e-3. In the release nobody trains the classifier
(`--method.head-policy frozen`).

    fabric run recipes/fedhello_ledgar.py --devices 8
    fabric run recipes/fedhello_ledgar.py --devices 8 --data.partition iid
    python recipes/fedhello_ledgar.py --embedded --rounds 2
"""

from dataclasses import dataclass, field

import fedsim
from fedsim.data.protocols import Clients, Skew
from fedsim.data.texts.texts import TextOptions
from fedsim.experiments import Experiment, changed, run_experiment
from fedsim.models.text import TextModel

FEDHELLO = fedsim.FedHeLLo(capabilities=fedsim.Capabilities(out_of=12))
TEXTS = Clients(
    source=TextOptions(task="ledgar", max_length=512),
    split=Skew(partition="patho", alpha=1.0, classes_per_client=10, unseen_fraction=0.0, proxy_samples=50),
)


@dataclass(frozen=True, kw_only=True)
class FedHeLLoLedgar(Experiment):
    """Fed-HeLLo on LEDGAR."""

    rounds: int = 500
    """Rounds in all."""
    cohort_size: int | None = 10
    """Clients sampled in a round."""
    method: fedsim.FedHeLLo = FEDHELLO
    """Fed-HeLLo's settings."""
    data: Clients[TextOptions, Skew] = TEXTS
    """The texts and their clients."""
    model: TextModel = field(default_factory=lambda: TextModel(name="google-bert/bert-base-uncased"))
    """The backbone and its tokenizer."""
    local: fedsim.LocalTraining = field(
        default_factory=lambda: fedsim.LocalTraining(batch_size=32, learning_rate=1e-3, dropout=0.1)
    )
    """Local training."""


def main(recipe: FedHeLLoLedgar) -> None:
    """Train, and print the result."""
    if recipe.embedded:  # its topics are only four
        recipe = changed(recipe, "data.split.partition", "iid")
    run_experiment(recipe)


if __name__ == "__main__":
    fedsim.cli(FedHeLLoLedgar, main)
