"""The quickstart over several seeds: what RESULTS.md says about it.

    python benchmarks/quickstart.py --seeds 0 1 2

Runs the recipe with two workers, or goes on where it stopped, and rewrites the table between the marks of RESULTS.md.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from results import ROOT, write

METHODS = ("local", "fedit", "hilora")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each decides split, unseen clients, initial adapters and data order."""
    out: Path = Path("runs/quickstart-seeds")
    """Where the runs are kept."""


def run(options: Options) -> None:
    """Run the recipe, when it is not there."""
    if not (options.out / "comparison.md").exists():
        launcher = [Path(sys.executable).parent / "fabric", "run", "recipes/quickstart.py"]
        seeds = ["--seeds", *map(str, options.seeds)]
        where = ["--resume" if (options.out / "recipe.json").exists() else "--out", options.out]
        command = [*launcher, "--accelerator", "cpu", "--devices", "2", *seeds, *where]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"PET_STANDALONE": "1"}, check=True)  # on a free port


def describe(options: Options) -> str:
    """Return the markdown between the marks."""
    lines = [(options.out / "comparison.md").read_text(), "HiLoRA by seed:", ""]
    for seed in options.seeds:
        folder = options.out / f"seed-{seed}"
        results = {method: json.loads((folder / method / "result.json").read_text()) for method in METHODS}
        hilora, seconds = results["hilora"], sum(result["seconds"] for result in results.values())
        tiers = " → ".join(f"{stage} {hilora[f'stage.{stage}.mean']:.3f}" for stage in ("root", "cluster", "leaf"))
        found = f"K* = {hilora['clusters.count']:.0f}, adjusted Rand index {hilora['clusters.ari']:.2f}"
        routed = f"routed to own cluster {hilora['unseen.routing_agreement']:.0%}"
        lines.append(f"- seed {seed}: {tiers}; {found}, {routed}; {seconds:.0f} s")
    return "\n".join(lines)


def main(options: Options) -> None:
    """Run, print and write."""
    run(options)
    text = describe(options)
    print(text)
    write("quickstart", text)


if __name__ == "__main__":
    main(tyro.cli(Options))
