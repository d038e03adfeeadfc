"""ILoRA's ladder and the unequal-rank methods on real texts and images with pre-trained backbones, over several seeds.

    python benchmarks/ladder.py --text-model <folder of a pre-trained encoder> --seeds 0 1 2 3 4

Three clients of LoRA ranks 2, 4, 6 by Dirichlet, five rounds, as in ILoRA (arXiv 2511.16069), with fewer samples. Every
method has the same split, backbone, head, optimiser and rounds. Data are taken from $FEDSIM_DATA: SST-2, and the first
twenty classes of CIFAR-100 with ViT-Tiny. Finished runs are read. Rewrites the section of RESULTS.md.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from results import ROOT, write
from tasks import CIFAR, image_task, text_task

import fedsim
from fedsim.data.protocols import SkewedClients, SkewedTexts
from fedsim.report.comparison import markdown

sys.path.append(str(ROOT / "recipes"))
from ilora_text import ladder

METHODS: dict[str, fedsim.Method] = {**ladder(fedsim.ILoRA()), "FlexLoRA": fedsim.FlexLoRA()}
LOCAL = fedsim.LocalTraining(epochs=1, batch_size=16, learning_rate=2e-3)
TEXTS = SkewedTexts(
    task="sst2",
    path=Path("text/glue"),
    n_clients=3,
    alpha=0.8,
    unseen_fraction=0.0,
    train_samples=600,
    test_samples=240,
)
IMAGES = SkewedClients(
    **CIFAR,  # type: ignore[arg-type]
    first_classes=20,
    n_clients=3,
    alpha=0.3,
    unseen_fraction=0.0,
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    text_model: str
    """Folder of a pre-trained text encoder with its tokenizer."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds; each decides split, initial adapters and data order."""
    rounds: int = 5
    """Rounds of each method."""
    out: Path = Path("runs/ladder")
    """Where the runs are kept."""


def main(options: Options) -> None:
    """Run, print and write."""
    tables, tasks = [], {"SST-2": lambda: text_task(TEXTS, options.text_model), "CIFAR-100": lambda: image_task(IMAGES)}
    for name, task in tasks.items():
        (data, backbone), out = task(), options.out / name.lower()
        common = {"backbone": backbone, "rounds": options.rounds, "evaluate_every": options.rounds, "local": LOCAL}
        resume = (out / "recipe.json").exists()
        runs = fedsim.compare(METHODS, data, out=out, seeds=options.seeds, resume=resume, reference="base", **common)
        tables += [f"### {name}", markdown(runs)] if runs else []
    text = "\n\n".join(tables)
    print(text)
    write("ladder", text, "ILoRA's ladder, and unequal LoRA ranks")


if __name__ == "__main__":
    main(tyro.cli(Options))
