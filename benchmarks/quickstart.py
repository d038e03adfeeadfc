"""The quickstart over several seeds: what RESULTS.md says about it.

    python benchmarks/quickstart.py --seeds 0 1 2

Runs the recipe once a seed with two workers (runs that are there already are read), prints mean ± standard deviation
over seeds, and rewrites the table between the marks of RESULTS.md.
"""

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from results import ROOT, write
from scipy.stats import wilcoxon

METHODS = ("local", "fedit", "hilora")
COLUMNS = {
    "mean": "global.mean",
    "p10": "global.p10",
    "worst": "global.worst",
    "std": "global.std",
    "mean (trained)": "personal.mean",
    "p10 (trained)": "personal.p10",
    "unseen untuned": "unseen.untuned.mean",
    "unseen tuned": "unseen.tuned.mean",
    "MB up": "bytes.up",
    "MB down": "bytes.down",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each decides split, unseen clients, initial adapters and data order."""
    out: Path = Path("runs/quickstart-seeds")
    """Where the runs are kept."""


def run(seed: int, out: Path) -> dict[str, float]:
    """Return result.json of one seed, running the recipe when it is not there."""
    folder = out / f"seed-{seed}"
    if not (folder / "result.json").exists():
        fabric = Path(sys.executable).parent / "fabric"
        options = ["--accelerator", "cpu", "--devices", "2", "--seed", str(seed), "--out", str(folder)]
        subprocess.run([fabric, "run", "recipes/quickstart.py", *options], cwd=ROOT, check=True)
    return json.loads((folder / "result.json").read_text())


def accuracies(folder: Path) -> dict[str, float]:
    """Return every seen client's accuracy after the last aggregation."""
    with (folder / "clients.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["evaluation"] == "after_aggregation"]
    return {row["client"]: float(row["accuracy"]) for row in rows}


def describe(options: Options) -> str:
    """Return the markdown between the marks."""
    results = [run(seed, options.out) for seed in options.seeds]
    lines = ["| method | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for method in METHODS:
        cells = []
        for key in COLUMNS.values():
            values = np.array([result[f"{method}.{key}"] for result in results]) / (1e6 if "bytes" in key else 1)
            cells.append(
                f"{values.mean():.2f}" if "bytes" in key else f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"
            )
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += ["", "HiLoRA by seed: "]
    for seed, result in zip(options.seeds, results, strict=True):
        tiers = " → ".join(f"{s} {result[f'hilora.stage.{s}.mean']:.3f}" for s in ("root", "cluster", "leaf"))
        count, ari = result["hilora.clusters.count"], result["hilora.clusters.ari"]
        routed, seconds = result["hilora.unseen.routing_agreement"], sum(result[f"{m}.seconds"] for m in METHODS)
        found = f"K* = {count:.0f}, adjusted Rand index {ari:.2f}, routed to own cluster {routed:.0%}"
        lines.append(f"- seed {seed}: {tiers}; {found}; {seconds:.0f} s")
    for other in ("local", "fedit"):
        gaps = []
        for seed in options.seeds:
            ours, theirs = (accuracies(options.out / f"seed-{seed}" / method) for method in ("hilora", other))
            gaps += [ours[client] - theirs[client] for client in ours]
        test = wilcoxon(gaps)
        lines.append(
            f"- HiLoRA − {other}: {np.mean(gaps):+.3f} over {len(gaps)} clients × seeds, Wilcoxon p = {test.pvalue:.1e}"
        )
    return "\n".join(lines)


def main(options: Options) -> None:
    """Run, print and write."""
    text = describe(options)
    print(text)
    write("quickstart", text)


if __name__ == "__main__":
    main(tyro.cli(Options))
