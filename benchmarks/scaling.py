"""Rounds with one worker and with two, one thread each. `engines.py` measures; by itself this is a small recipe:

fabric run benchmarks/scaling.py --accelerator cpu --devices 2 --out runs/two
"""

import csv
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from workloads import LONG

import fedsim

WORKERS = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Scaling(fedsim.RunOptions):
    """The batched engine on small images."""

    rounds: int = 3
    """Rounds; the first is not counted."""
    evaluate_every: int = 100
    """There is nothing to evaluate."""
    threads: int = 1
    """CPU threads of a worker."""


def simulate(recipe: Scaling) -> None:
    """Run as many workers as were launched."""
    fedsim.simulate(**LONG.arguments(), **recipe.arguments())


def round_seconds(workers: int, folder: Path) -> list[float]:
    """Run a few rounds in a fresh folder; return their seconds but for the first."""
    fabric, script = Path(sys.executable).parent / "fabric", Path(__file__)
    options = ["--accelerator", "cpu", "--devices", str(workers), "--out", str(folder)]
    free_port = {"PET_STANDALONE": "1"}
    environment = os.environ | free_port | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([fabric, "run", script, *options], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{workers} workers failed: {done.stderr.strip().splitlines()[-1]}")
    with (folder / "timing.csv").open(newline="") as file:
        return [float(row["seconds"]) for row in csv.DictReader(file)][1 : Scaling.rounds]


def measure(repeats: int = 2) -> str:
    """Return a line with both medians and their ratio; runs with one and with two workers take turns."""
    seconds: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            for workers in WORKERS:
                seconds[workers] += round_seconds(workers, Path(folder) / f"{workers}-{repeat}")
    one, two = (median(seconds[workers]) for workers in WORKERS)
    ranges = ", ".join(f"{n} worker(s) {median(s):.2f} s ({min(s):.2f}–{max(s):.2f})" for n, s in seconds.items())
    return (
        f"Scaling: fedsim batched, {LONG.clients} clients × {LONG.samples_each} samples, one thread a "
        f"worker, {len(seconds[1])} rounds each: {ranges}; two workers are {one / two:.2f} times as fast as one."
    )


if __name__ == "__main__":
    fedsim.cli(Scaling, simulate)
