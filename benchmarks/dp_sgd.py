"""What DP-SGD costs: rounds in which each sample's gradient is clipped and noised, beside plain ones, and memory.

python benchmarks/dp_sgd.py
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from resource import RUSAGE_SELF, getrusage
from statistics import median

import torch
from results import markdown as as_markdown
from results import provenance, show, write
from rows.simulated import RoundLoop
from workloads import CPU, Workload

COLUMNS = ("workload", "plain, s", "DP-SGD, s", "÷ plain", "memory, MiB", "computed")
MIB = 2**20


def loops(workload: Workload) -> tuple[RoundLoop, RoundLoop]:
    """The same federation without and with DP-SGD, of the batched engine."""
    plain = workload.setting()
    local = replace(plain.local, sample_clip=1.0, sample_noise=1.0)
    private = replace(workload.setting(), local=local)
    return RoundLoop(plain, workload.initial(plain)), RoundLoop(private, workload.initial(private))


def peak() -> float:
    """The most memory of this process so far, in MiB."""
    return getrusage(RUSAGE_SELF).ru_maxrss / 1024


def measure(workload: Workload, repeats: int) -> list[str]:
    """Return a row of the table: rounds of both take turns, after one of each that is not timed."""
    both, peaks = loops(workload), []
    for loop in both:
        loop.round()
        peaks.append(peak())
    seconds: list[list[float]] = [[], []]
    for _ in range(repeats):
        for taken, loop in zip(seconds, both, strict=True):
            start = time.process_time()
            loop.round()
            taken.append(time.process_time() - start)
    plain, private = seconds
    ratio = median(two / one for one, two in zip(plain, private, strict=True))
    spec, n_blocks = both[1].simulation.spec, -(-workload.clients // both[1].simulation.engine.block_size)
    samples = -(-workload.clients // n_blocks) * workload.batch_size
    numbers = 2 * samples * sum(shape.numel() for shape in spec.layout.shapes.values())
    return [
        workload.name, f"{median(plain):.2f} ({min(plain):.2f}–{max(plain):.2f})",
        f"{median(private):.2f} ({min(private):.2f}–{max(private):.2f})", f"{ratio:.2f}",
        f"{peaks[0]:.0f} + {peaks[1] - peaks[0]:.0f}", f"{4 * numbers / MIB:.1f}",
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, show and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="rounds of each that are timed")
    parser.add_argument("--workloads", nargs="*", default=[workload.name for workload in CPU], help="which federations")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = [workload for workload in CPU if workload.name in asked.workloads]
    rows = [measure(workload, asked.repeats) for workload in chosen]
    show("What DP-SGD costs", COLUMNS, rows)
    note = (
        "CPU seconds of a round, median (min–max); ÷ plain: median of its ratio to the plain round before it; memory: "
        "the process's peak after a plain round, and what a round of DP-SGD adds to it (a peak never falls: less shows "
        "after a larger row); computed: a copy of what is trained and its gradient, for each sample of a pass."
    )
    write("dp_sgd", f"{provenance(1)}\n\n{note}\n\n{as_markdown(COLUMNS, rows)}", "What DP-SGD costs")


if __name__ == "__main__":
    main()
