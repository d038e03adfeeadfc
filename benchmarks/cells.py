"""The cells of a comparison side by side, or all workers on each: the demo on two workers, and a schedule for eight.

    python benchmarks/cells.py --repeats 3 --write

The demo's three cells are run together, side by side and by one worker in turn, and timed from the first to the last.
What one worker takes says what side by side could bring at most. For eight workers the schedule alone is asked: when
the last cell ends, over the work of all cells shared evenly.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro
from results import ROOT, markdown, provenance, write

from fedsim.experiments.makespan import Job, makespan, stages
from fedsim.storage.disk import read_json

WAYS = {"together": ("together", 2), "auto": ("auto", 2), "one worker": ("together", 1)}
"""What `--cells` is, and how many workers there are."""
WORKERS, COHORT, METHODS = 8, 10, 3
TARGET, MOST = 1.15, 1.1
"""How much faster side by side is to be on two workers, and how much later than evenly the last may end on eight."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    repeats: int = 3
    """Runs of each way, in turn."""
    rounds: int = 20
    """Rounds of each cell; 20 are the demo's."""
    seeds: tuple[int, ...] = (1, 2, 3, 5, 10)
    """Numbers of seeds for which three methods are scheduled."""
    write: bool = False
    """Put what is printed into RESULTS.md, too."""


def run(way: str, rounds: int, out: Path) -> tuple[float, float, str]:
    """Run the demo; return the seconds of its cells, of the whole command, and the digest."""
    fabric = Path(sys.executable).parent / "fabric"
    how, devices = WAYS[way]
    command = [fabric, "run", "recipes/quickstart.py", "--accelerator", "cpu", "--devices", str(devices)]
    environment = os.environ | {"PET_STANDALONE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    begun = time.perf_counter()
    options = ["--rounds", str(rounds), "--cells", how, "--out", str(out)]
    done = subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way} failed: {done.stderr.strip().splitlines()[-1]}")
    cells = (out / "comparison.md").stat().st_mtime - (out / "recipe.json").stat().st_mtime
    return cells, time.perf_counter() - begun, str(read_json(out / "result.json")["digest"])


def measured(options: Options) -> Iterator[str]:
    """Yield what the demo took either way."""
    found: dict[str, list[tuple[float, float, str]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats):
            for way in list(WAYS)[:: 1 if repeat % 2 else -1]:
                found[way].append(run(way, options.rounds, Path(folder) / f"{way}-{repeat}"))
    rows = []
    for way, runs in found.items():
        cells, whole = ([each[index] for each in runs] for index in (0, 1))
        rows.append([way, f"{median(cells):.1f} s ({min(cells):.1f}–{max(cells):.1f})", f"{median(whole):.1f} s"])
    ratio, whole = (median(e[i] for e in found["together"]) / median(e[i] for e in found["auto"]) for i in (0, 1))
    alone = median(e[0] for e in found["one worker"]) / median(e[0] for e in found["together"])
    is_same = len({digest for runs in found.values() for *_, digest in runs}) == 1
    verdict = "met" if ratio >= TARGET else "missed"
    yield markdown(("three cells of the demo", "the cells", "with start and figures"), rows)
    yield ""
    yield (
        f"Side by side is {ratio:.2f} × as fast (the whole command {whole:.2f} ×); target ≥ {TARGET} ×: {verdict}. "
        f"The digests are {'the same' if is_same else 'NOT the same'}."
    )
    yield (
        f"Two workers on a cell are {alone:.2f} × as fast as one, so the server's share of a round is "
        f"{(1 - alone / 2) / (alone - 1):.2f} of a block for each block. Two cells side by side and the third by both "
        f"are {METHODS / (1 + alone):.2f} × as fast as together at most, and no deal more than {2 / alone:.2f} ×."
    )


def planned(options: Options) -> Iterator[str]:
    """Yield how evenly cells of cohorts of ten are shared by eight workers, where a client takes as long as any."""
    rows = []
    for n_seeds in options.seeds:
        jobs = [Job(100, COHORT, server=0.0)] * (METHODS * n_seeds)
        plan, evenly = stages(jobs, WORKERS), sum(job.time(1) for job in jobs) / WORKERS
        teams = ", then ".join(" + ".join(map(str, stage.sizes)) for stage in plan)
        ratios = [makespan(jobs, plan) / evenly, sum(job.time(WORKERS) for job in jobs) / evenly]
        rows.append([f"{METHODS} × {n_seeds}", teams, *(f"{ratio:.3f}" for ratio in ratios)])
    worst = max(float(row[2]) for row in rows)
    header = ("methods × seeds", "teams of workers", "end / even share", "together")
    yield markdown(header, rows)
    yield ""
    yield f"At worst {worst:.3f} of the even share; target ≤ {MOST}: {'met' if worst <= MOST else 'missed'}."


def main(options: Options) -> None:
    """Measure and print."""
    lines = [provenance(1), "", *measured(options), "", f"{WORKERS} workers, cohorts of {COHORT} clients:", ""]
    text = "\n".join([*lines, *planned(options)])
    print(text)
    if options.write:
        write("cells", text, "Cells of a comparison side by side")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
