"""FedTreeLoRA's ablations (arXiv 2603.13282) on real texts and images with pre-trained encoders, over several seeds.

    fabric run benchmarks/tree.py --accelerator cpu --devices 2 --text-model <folder of a text encoder> --seeds 0 1 2

TREC (six kinds of question) over eight clients of 30 training and test samples, and twenty classes of CIFAR-100 with
ViT-Tiny over eight of 30 and 16, by Dirichlet(0.5); LoRA rank 4, six rounds of which two are warm-up. Data are taken
from $FEDSIM_DATA. Finished runs are read. Rewrites the section of RESULTS.md.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from gates import Gate, gate_table
from results import ROOT
from tasks import CIFAR, compared, image_task, record, text_task

import fedsim
from fedsim.data.images.images import ImageOptions
from fedsim.data.protocols import Clients, Skew
from fedsim.data.texts.texts import TextOptions

sys.path.append(str(ROOT / "recipes"))
from fedtreelora_glue import ablations

FULL = fedsim.FedTreeLoRA(lora_rank=4, warmup_rounds=2)
METHODS: dict[str, fedsim.Method] = {**ablations(FULL), "local": fedsim.Local(lora_rank=4)}
METHODS.pop("fixed-8")  # as many as there are clients
LOCAL = fedsim.LocalTraining(epochs=2, batch_size=12, learning_rate=5e-3)
SPLIT = Skew(partition="sized-dir", n_clients=8, train_per_client=30, test_per_client=30, unseen_fraction=0.0)
TEXTS = Clients(
    source=TextOptions(task="trec", path=Path("text/trec"), label_column="label", max_length=16), split=SPLIT
)
IMAGES = Clients(
    source=ImageOptions(**CIFAR, first_classes=20),  # type: ignore[arg-type]
    split=replace(SPLIT, test_per_client=16),
)
PUBLISHED = {
    "no-external": "+0.010",
    "no-tree": "+0.029",
    "fixed-4": "+0.009",
    "fixed-1": "+0.052",
}
GATES = [Gate("full", name, difference) for name, difference in PUBLISHED.items()]
"""Full FedTreeLoRA less the variant, in the mean over four GLUE tasks."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    text_model: str
    """Folder of a pre-trained text encoder with its tokenizer."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each decides split, initial adapters and data order."""
    rounds: int = 6
    """Rounds of each method."""
    out: Path = Path("runs/tree")
    """Where the runs are kept."""


def staircase(folder: Path) -> str:
    """Return the number of groups at each depth."""
    events = [json.loads(line) for line in (folder / "full" / "events.jsonl").read_text().splitlines()]
    counts = next(event["cuts"] for event in events if "cuts" in event)
    return ", ".join(map(str, counts))


def main(options: Options) -> None:
    """Run, print and write."""
    tasks = {"TREC": lambda: text_task(TEXTS, options.text_model), "CIFAR-100": lambda: image_task(IMAGES)}
    sections, common = {}, {"rounds": options.rounds, "evaluate_every": options.rounds, "local": LOCAL}
    for name, task in tasks.items():
        out = options.out / name.lower()
        runs = compared(task(), METHODS, out, seeds=options.seeds, reference="full", **common)
        cuts = [f"- seed {seed}: c* by depth {staircase(out / f'seed-{seed}')}" for seed in options.seeds if runs]
        sections[name] = runs, [gate_table(runs, GATES), "\n".join(cuts)] if runs else []
    record("tree", "FedTreeLoRA's ablations", options.out, sections)


if __name__ == "__main__":
    main(tyro.cli(Options))
