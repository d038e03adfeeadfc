"""FedTreeLoRA's ablations on real texts with a pre-trained encoder, over several seeds.

    python benchmarks/tree.py --text-model <folder of a pre-trained encoder> --seeds 0 1 2

TREC (six kinds of question) over eight clients of 60 training and 40 test samples by Dirichlet(0.5); LoRA rank 4,
eight rounds of which two are warm-up. Data are taken from $FEDSIM_DATA. Finished runs are read. Rewrites the section of
RESULTS.md.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from results import ROOT, write
from tasks import text_task

import fedsim
from fedsim.data.protocols import SkewedTexts
from fedsim.report.comparison import markdown

sys.path.append(str(ROOT / "recipes"))
from fedtreelora_glue import ablations

FULL = fedsim.FedTreeLoRA(lora_rank=4, warmup_rounds=2)
METHODS: dict[str, fedsim.Method] = {**ablations(FULL), "local": fedsim.Local(lora_rank=4)}
METHODS.pop("fixed-8")  # as many as there are clients
LOCAL = fedsim.LocalTraining(epochs=2, batch_size=15, learning_rate=5e-3)
TEXTS = SkewedTexts(
    task="trec",
    path=Path("text/trec"),
    label_column="label",
    partition="sized-dir",
    n_clients=8,
    train_per_client=60,
    test_per_client=40,
    unseen_fraction=0.0,
    max_length=16,
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    text_model: str
    """Folder of a pre-trained text encoder with its tokenizer."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each decides split, initial adapters and data order."""
    rounds: int = 8
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
    data, backbone = text_task(TEXTS, options.text_model)
    common = {"backbone": backbone, "rounds": options.rounds, "evaluate_every": options.rounds, "local": LOCAL}
    resume = (options.out / "recipe.json").exists()
    runs = fedsim.compare(
        METHODS, data, out=options.out, seeds=options.seeds, resume=resume, reference="full", **common
    )
    if runs is None:
        return
    lines = [markdown(runs)]
    lines += [f"- seed {seed}: c* by depth {staircase(options.out / f'seed-{seed}')}" for seed in options.seeds]
    text = "\n".join(lines)
    print(text)
    write("tree", text, "FedTreeLoRA's ablations")


if __name__ == "__main__":
    main(tyro.cli(Options))
