"""ILoRA's ladder and the unequal-rank methods on real texts and images with pre-trained backbones, over several seeds.

    fabric run benchmarks/ladder.py --accelerator cpu --devices 2 --text-model <folder of a text encoder>

Three clients of LoRA ranks 2, 4, 6 by Dirichlet, five rounds, as in ILoRA (arXiv 2511.16069), with fewer samples. Every
method has the same split, backbone, head, optimiser and rounds. Data are taken from $FEDSIM_DATA: SST-2, and the first
twenty classes of CIFAR-100 with ViT-Tiny, on which the three ways to truncate the merged update are compared too, and
corrections at the scale of the released code. Finished runs are read. Rewrites the section of RESULTS.md.
"""

import csv
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import tyro
from gates import Gate, gate_table
from results import ROOT
from results import markdown as table
from tasks import CIFAR, compared, image_task, record, text_task

import fedsim
from fedsim.data.images.images import ImageOptions
from fedsim.data.protocols import Clients, Skew
from fedsim.data.texts.texts import TextOptions
from fedsim.report.comparison import Comparison

sys.path.append(str(ROOT / "recipes"))
from ilora_text import ladder

RUNGS = ladder(fedsim.ILoRA())
METHODS: dict[str, fedsim.Method] = {**RUNGS, "FlexLoRA": fedsim.FlexLoRA()}
VARIANTS: dict[str, fedsim.Method] = {
    "qr-pivot": replace(RUNGS["aggregation"], core="qr_pivot"),
    "svd": replace(RUNGS["aggregation"], core="svd"),
    "control-1/16": replace(RUNGS["control"], correction_scale=1 / 16),
}
"""Other truncations than leading columns; corrections divided by the batch size, as the release does."""
GATES = [
    Gate("init", "base", "+0.102"),
    Gate("aggregation", "init", "+0.060"),
    Gate("control", "aggregation", "+0.069"),
]
"""On QNLI with RoBERTa, one seed."""
LOCAL = fedsim.LocalTraining(epochs=1, batch_size=16, learning_rate=2e-3)
TEXTS = Clients(
    source=TextOptions(task="sst2", path=Path("text/glue"), train_samples=240, test_samples=150, max_length=32),
    split=Skew(n_clients=3, alpha=0.8, unseen_fraction=0.0),
)
IMAGES = Clients(
    source=ImageOptions(**CIFAR, first_classes=20, train_samples=390, test_samples=180),  # type: ignore[arg-type]
    split=Skew(n_clients=3, alpha=0.3, unseen_fraction=0.0),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    text_model: str
    """Folder of a pre-trained text encoder with its tokenizer."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each decides split, initial adapters and data order."""
    rounds: int = 5
    """Rounds of each method."""
    out: Path = Path("runs/ladder")
    """Where the runs are kept."""


def discarded(runs: Comparison) -> str:
    """Return the share of the merged update's energy that truncation threw away, over rounds, by method."""
    rows = []
    for name in ("aggregation", "qr-pivot", "svd", "FlexLoRA"):
        shares = []
        for run in runs.results.get(name, ()):
            with (run.folder / "metrics.csv").open(newline="") as file:
                shares += [float(row["discarded_energy"]) for row in csv.DictReader(file) if row["discarded_energy"]]
        rows += [[name, f"{mean(shares):.3f}", f"{min(shares):.3f} – {max(shares):.3f}"]] if shares else []
    return table(["energy discarded by", "mean over rounds and seeds", "least – most"], rows)


def main(options: Options) -> None:
    """Run, print and write."""
    tasks = {"SST-2": lambda: text_task(TEXTS, options.text_model), "CIFAR-100": lambda: image_task(IMAGES)}
    sections, common = {}, {"rounds": options.rounds, "evaluate_every": options.rounds, "local": LOCAL}
    for name, task in tasks.items():
        methods = METHODS | (VARIANTS if name == "CIFAR-100" else {})
        runs = compared(task(), methods, options.out / name.lower(), seeds=options.seeds, reference="base", **common)
        sections[name] = runs, [gate_table(runs, GATES), discarded(runs)] if runs else []
    record("ladder", "ILoRA's ladder, and unequal LoRA ranks", options.out, sections)


if __name__ == "__main__":
    main(tyro.cli(Options))
