"""Fed-HeLLo (arXiv 2506.12213) against FedRA, HetLoRA, FlexLoRA, Exclusive and Straggler on real images.

    fabric run benchmarks/fedhello.py --accelerator cpu --devices 2 --seeds 0 1 2

Thirty classes of CIFAR-100 over twenty clients, IID and with 20 or 10 classes a client; ten clients a round, each some
three steps of 12 images; a hundred training images are the server's. Budgets are equal: clients train 6, 9 or 12 of 12
layers of LoRA rank 8, or all layers at rank 4, 6 or 8. Data and ViT-Tiny are taken from $FEDSIM_DATA. Finished runs are
read. Rewrites the section of RESULTS.md.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from gates import Gate, gate_table
from tasks import CIFAR, compared, image_task, record

import fedsim
from fedsim.data.images.images import ImageOptions
from fedsim.data.protocols import Clients, Skew
from fedsim.parts.fisher import FisherAllocation

RANKS = fedsim.LoraRanks(values=(4, 6, 8), assign="blocks")
"""As many parameters as 6, 9 or 12 of 12 layers of rank 8, for the same clients."""
METHODS: dict[str, fedsim.Method] = {
    "fed-hello": fedsim.FedHeLLo(lora_rank=8, fim=FisherAllocation(warmup_rounds=2, period=2)),
    "fedra": fedsim.FedRA(lora_rank=8),
    "hetlora": fedsim.HetLoRA(ranks=RANKS, lora_alpha=None),
    "flexlora": fedsim.FlexLoRA(ranks=RANKS, lora_alpha=None),
    "exclusive": fedsim.Exclusive(lora_rank=8),
    "straggler": fedsim.Straggler(lora_rank=8),
}
LOCAL = fedsim.LocalTraining(epochs=1, share=0.3, batch_size=12, learning_rate=1e-2)
IMAGES = ImageOptions(**CIFAR, first_classes=30, test_samples=200)  # type: ignore[arg-type]
SPLIT = Skew(n_clients=20, alpha=1.0, unseen_fraction=0.0, proxy_samples=100)
SETTINGS = {
    "IID": Clients(source=IMAGES, split=replace(SPLIT, partition="iid")),
    "20 classes a client": Clients(source=IMAGES, split=replace(SPLIT, partition="patho", classes_per_client=20)),
    "10 classes a client": Clients(source=IMAGES, split=replace(SPLIT, partition="patho", classes_per_client=10)),
}
PUBLISHED = {
    "IID": {"fedra": "+0.000", "hetlora": "+0.016", "exclusive": "+0.019", "flexlora": "+0.448", "straggler": "–"},
    "20 classes a client": {"fedra": "+0.006", "hetlora": "+0.036", "exclusive": "+0.035", "flexlora": "+0.442"},
    "10 classes a client": {"fedra": "+0.013", "hetlora": "+0.101", "exclusive": "+0.095", "flexlora": "+0.434"},
}
"""Best accuracy over rounds of Fed-HeLLo less the method's, one seed, released logs; of Straggler there is no log."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each decides split, proxy set, cohorts, initial adapters and data order."""
    rounds: int = 6
    """Rounds of each method."""
    out: Path = Path("runs/fedhello")
    """Where the runs are kept."""


def gates(setting: str) -> list[Gate]:
    """Return what the released logs say of a setting."""
    others = [name for name in METHODS if name != "fed-hello"]
    return [Gate("fed-hello", name, PUBLISHED[setting].get(name, "–")) for name in others]


def main(options: Options) -> None:
    """Run, print and write."""
    sections, common = {}, {"rounds": options.rounds, "cohort_size": 10, "evaluate_every": 3, "local": LOCAL}
    for setting, images in SETTINGS.items():
        out, more = options.out / setting.split()[0].lower(), {"seeds": options.seeds, "reference": "fed-hello"}
        runs = compared(image_task(images), METHODS, out, **more, **common)
        sections[setting] = runs, [gate_table(runs, gates(setting))] if runs else []
    record("fedhello", "Fed-HeLLo at equal budgets", options.out, sections)


if __name__ == "__main__":
    main(tyro.cli(Options))
