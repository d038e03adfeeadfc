"""What a run costs by the size of its population: start, round, evaluation of a client, checkpoint, memory.

    python benchmarks/population.py
    python benchmarks/population.py --populations 1000 --methods local --rounds 6

The quickstart's backbone and adapters on random digits, three samples a client. Nothing is downloaded. The table goes
to RESULTS.md too, where --write is given. Exit code 1 when a target is missed.
"""

import contextlib
import csv
import io
import json
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import results
import timm
import torch
import tyro

import fedsim
from fedsim.data.builtin.digits import normalise
from fedsim.models.digits_vit import ARCHITECTURE
from fedsim.parts.directions import SubspaceClustering

MIB = 2**20
IMAGES = 3000
"""Pictures that all clients' tables point to: a million clients with their own would be three gigabytes of them."""
SHARED = {"lora_rank": 4}
METHODS = {
    "fedit": fedsim.FedIT(**SHARED),
    "local": fedsim.Local(**SHARED),
    "fedsalora": fedsim.FedSALoRA(**SHARED),
    "hilora": fedsim.HiLoRA(**SHARED, root_share=0.3, cluster_share=0.3, clustering=SubspaceClustering(k_min=2)),
}
FACTS = ("start, s", "round, s", "evaluation, ms a client", "checkpoint, KiB a round", "memory, MiB")
"""What is measured."""
LARGEST_MEMORY, LONGEST_START, LARGEST_RATIO = 3072, 60, 1.2
"""The targets: MiB, seconds, and a round against that of the smallest population."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much to measure; the defaults are what the targets are for."""

    populations: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    """Clients."""
    methods: tuple[str, ...] = ("fedit", "local", "fedsalora")
    """Of fedit, local, fedsalora and hilora; hilora goes through its three stages."""
    cohort: int = 100
    """Clients in a round."""
    evaluated: int = 200
    """Clients that are evaluated every other round."""
    rounds: int = 10
    """Rounds, 5 or more; the first two are not counted."""
    threads: int = 1
    """CPU threads."""
    write: bool = False
    """Put the table into RESULTS.md."""

    def __post_init__(self) -> None:
        if self.rounds < 5:
            raise ValueError(
                f"rounds is {self.rounds}; it must be 5 or more, of which the first two do not count (--rounds)."
            )


class Enough(Exception):
    """The rounds that count are over; to evaluate a million clients at the end is no part of them."""


@dataclass
class Stopping:
    """A method that ends the run before a round."""

    method: fedsim.Method
    last: int
    started: float = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def plan(self, state: fedsim.ServerState, population: fedsim.Population) -> fedsim.Plan:
        """The method's own plan; notes when a round was planned first with its clients known."""
        if state.cohort and not self.started:
            self.started = time.perf_counter()
        if state.round_index == self.last and state.cohort:
            raise Enough
        return self.method.plan(state, population)


def federation(n_clients: int) -> fedsim.FederatedData:
    """Return clients with two samples to train on and one to be tested on, of pictures that they share."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randint(IMAGES, (n_clients, 3), generator=random)
    return fedsim.FederatedData(
        inputs=torch.randint(256, (IMAGES, 1, 32, 32), generator=random, dtype=torch.uint8),
        targets=torch.randint(10, (IMAGES,), generator=random),
        train=rows[:, :2],
        test=rows[:, 2:],
        class_names=[str(digit) for digit in range(10)],
        transform=normalise,
    )


def measure(name: str, n_clients: int, options: Options) -> list[float]:
    """Return what `FACTS` names, of one run in this process."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    method, begun = Stopping(METHODS[name], options.rounds), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        with contextlib.suppress(Enough):
            fedsim.simulate(
                method=method,
                backbone=timm.create_model("vit_tiny_patch16_224", pretrained=False, **ARCHITECTURE),
                data=federation(n_clients),
                rounds=options.rounds + 1,
                cohort_size=options.cohort,
                out=Path(folder) / "run",
                threads=options.threads,
                evaluate_every=2,
                evaluate_clients=options.evaluated,
                bank="disk",
            )
        seconds, bytes_written = read(Path(folder) / "run")
    plain, evaluating = median(seconds[2::2]), median(seconds[3::2])
    evaluation = 1e3 * (evaluating - plain) / min(options.evaluated, n_clients)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
    return [method.started - begun, plain, evaluation, bytes_written / 1024, peak]


def read(folder: Path) -> tuple[list[float], int]:
    """Return the seconds of every round, and the bytes of the newest checkpoint's own files."""
    with (folder / "timing.csv").open(newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    newest = max((folder / "checkpoints").glob("round-*.json"))
    return seconds, sum(path.stat().st_size for path in folder.glob(f"checkpoints/{newest.stem}.*"))


def slope(populations: tuple[int, ...], values: list[float]) -> float:
    """Return the exponent b of value ~ population ** b, by least squares over logarithms; 0 grows with nothing."""
    return float(np.polyfit(np.log(populations), np.log(np.maximum(values, 1e-9)), 1)[0])


def written(value: float) -> str:
    """Return three figures of a number, all of them before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def problems(name: str, found: dict[int, list[float]]) -> list[str]:
    """Return the targets that a method misses."""
    smallest = found[min(found)][1]
    missed = []
    for n_clients, (start, seconds, _, _, memory) in found.items():
        checks = {f"starts in {start:.0f} s": start > LONGEST_START}
        checks |= {f"{seconds / smallest:.2f} times the smallest's round": seconds > LARGEST_RATIO * smallest}
        checks |= {f"{memory:.0f} MiB": memory > LARGEST_MEMORY}
        missed += [f"{name}, {n_clients:,} clients: {what}" for what, is_missed in checks.items() if is_missed]
    return missed


def main(options: Options) -> int:
    """Measure everything, one fresh process after the other, and print the table."""
    rows, missed = [], []
    for name in options.methods:
        found = {}
        for n_clients in options.populations:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                found[n_clients] = fresh.submit(measure, name, n_clients, options).result()
            print(json.dumps([name, n_clients, found[n_clients]]), file=sys.stderr, flush=True)
            rows.append([name, f"{n_clients:,}", *map(written, found[n_clients])])
        if len(found) > 1:
            slopes = [slope(options.populations, [found[n][fact] for n in found]) for fact in range(len(FACTS))]
            rows.append([name, "slope", *(f"{value:.2f}" for value in slopes)])
        missed += problems(name, found)
    title, columns = f"Population, cohort {options.cohort}", ["method", "clients", *FACTS]
    results.show(title, columns, rows)
    print("\n".join(missed) or "all targets are met")
    if options.write:
        said = (
            "`slope` is b of value ~ clients ** b over the rows above it: 0 does not grow, 1 grows as the population."
        )
        text = f"{results.markdown(columns, rows)}\n\n{said}\n\n{results.provenance(options.threads)}"
        results.write("population", text, "A large population")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
