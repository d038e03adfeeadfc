"""What worker 0 pays: seconds to merge and to cluster ViT-B clients, and memory of a large population.

    python benchmarks/server.py

Prints one table. Nothing is downloaded; all inputs are synthetic. Exit code 1 when a target is missed.
"""

import contextlib
import ctypes
import io
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import timm
import torch
import tyro
from rich.console import Console
from rich.table import Table
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits
from torch import Tensor

import fedsim
from fedsim.adapters.bank import Bank
from fedsim.adapters.layout import byte_count
from fedsim.data.builtin.digits import normalise
from fedsim.models.digits_vit import ARCHITECTURE
from fedsim.parts.aggregation import normalised_weights, product_svd
from fedsim.parts.clustering import Clusters, column_basis, gaussian_affinity, spectral_clusters, subspace_distances
from fedsim.parts.concatenation import concatenated, stacked
from fedsim.parts.directions import SubspaceClustering

SITES, WIDTH, RANK = 24, 768, 8  # ViT-B: query and value of 12 blocks
N_GROUPS = 5
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much to measure; the defaults are what the targets are for."""

    merged: int = 100
    """Clients whose adapters are merged."""
    clustered: int = 1000
    """Clients that are clustered."""
    many: int = 10_000
    """Clients that are clustered by one site, to see what memory that takes."""
    clients: int = 1000
    """Population of the memory measurement."""
    cohort: int = 10
    """Clients per round of the memory measurement."""
    rounds: int = 300
    """Rounds of the memory measurement; 300 cohorts of 10 reach 95 % of 1,000 clients."""
    threads: int = 1
    """CPU threads."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    measured: str
    target: str
    is_met: bool


def merging(n: int) -> Row:
    """Time HiLoRA's aggregation of `n` clients at every site of ViT-B, site by site like the server: best of three."""
    random = torch.Generator().manual_seed(0)
    weights, best = normalised_weights([100] * n), float("inf")
    common = column_basis(torch.randn(WIDTH, RANK, generator=random))
    B = common + 1e-3 * torch.randn(n, WIDTH, RANK, generator=random)
    A = 1e-2 * torch.randn(RANK, WIDTH, generator=random) + 1e-3 * torch.randn(n, RANK, WIDTH, generator=random)
    product_svd(B, A, weights)
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(SITES):
            product_svd(B, A, weights)
        best = min(best, time.perf_counter() - started)
    return Row(f"merge {n} ViT-B clients (product SVD, {SITES} sites)", f"{best:.2f} s", "≤ 2 s", best <= 2)


def concatenating(ranks: int) -> Row:
    """Time ILoRA's aggregation of clients whose LoRA ranks add up to `ranks` against a QR of the dense sum."""
    random, n = torch.Generator().manual_seed(0), ranks // RANK
    B = torch.randn(n, WIDTH, RANK, generator=random, dtype=torch.float64)
    A = torch.randn(n, RANK, WIDTH, generator=random, dtype=torch.float64)
    weights = normalised_weights([100] * n)

    def dense() -> tuple[Tensor, Tensor]:
        wide, tall = stacked(B, A, weights)
        Q, R = torch.linalg.qr(wide @ tall)
        return Q[:, :RANK], R[:RANK]

    def cheap() -> tuple[Tensor, Tensor]:
        return concatenated(B, A, weights)[:2]

    times: dict[str, list[float]] = {"dense": [], "cheap": []}
    for _ in range(10):  # in turn, so that both meet the same machine
        for way in (dense, cheap):
            started = time.perf_counter()
            way()
            times[way.__name__].append(time.perf_counter() - started)
    seconds = {name: sorted(found)[len(found) // 2] for name, found in times.items()}
    (left, right), (new_B, new_A) = dense(), cheap()
    error = float((new_B @ new_A - left @ right).norm() / (left @ right).norm())
    ratio = seconds["dense"] / seconds["cheap"]
    measured = f"{seconds['cheap'] * 1e3:.1f} ms, {ratio:.0f} × as fast as dense, apart by {error:.0e}"
    what = f"concatenated QR at {WIDTH} x {WIDTH}, Σ r_k = {ranks}"
    return Row(what, measured, "≥ 20 ×, 1e-6", ratio >= 20 and error <= 1e-6)


def clustering(n: int) -> Row:
    """Time bases, distances, spectrum and labels of `n` ViT-B clients in five planted groups."""
    seconds, found = clustered(n, SITES)
    measured = f"{seconds:.1f} s (K* = {found.n_clusters}, ARI {agreement(found):.2f})"
    what = f"cluster {n:,} ViT-B clients ({SITES} sites)"
    return Row(what, measured, f"≤ 30 s, K* = {N_GROUPS}", seconds <= 30 and agreement(found) == 1)


def clustering_many(n: int) -> Row:
    """Time the same for one site, and measure the memory that it takes at most; the bases of the site are in it."""
    torch.set_num_threads(1)
    start, whole = psutil.Process().memory_info().rss, n * n * 8 / MIB
    with threadpool_limits(1):
        seconds, found = clustered(n, 1)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - start) / MIB
    measured = f"{seconds:.0f} s, peak {peak:,.0f} MiB (K* = {found.n_clusters}, ARI {agreement(found):.2f})"
    is_met = peak <= 5 * whole and agreement(found) == 1
    return Row(f"cluster {n:,} clients by one site", measured, f"≤ 5 × n × n doubles ({5 * whole:,.0f} MiB)", is_met)


def clustered(n: int, n_sites: int) -> tuple[float, Clusters]:
    """Return the seconds of clustering `n` clients of planted groups, without those of drawing them, and what is found.

    SciPy is loaded before.
    """
    random, drawing, settings = torch.Generator().manual_seed(0), 0.0, SubspaceClustering()
    spectral_clusters(torch.eye(3, dtype=torch.float64), 1, 2)

    def bases() -> Iterator[Tensor]:
        nonlocal drawing
        for _ in range(n_sites):
            started = time.perf_counter()
            centres = column_basis(torch.randn(N_GROUPS, WIDTH, RANK, generator=random))
            directions = centres[torch.arange(n) % N_GROUPS]
            directions += 0.05 * torch.randn(n, WIDTH, RANK, generator=random)
            drawing += time.perf_counter() - started
            yield column_basis(directions)

    started = time.perf_counter()
    affinity = gaussian_affinity(subspace_distances(bases()))
    found = spectral_clusters(affinity, settings.k_min, settings.k_max)
    return time.perf_counter() - started - drawing, found


def agreement(found: Clusters) -> float:
    """Return the adjusted Rand index between what is found and what was planted."""
    return adjusted_rand_score(torch.arange(len(found.labels)) % N_GROUPS, found.labels)


@dataclass
class Watched:
    """A method that notes, whenever the server plans with it, the round and the memory that the process holds.

    Freed memory that glibc keeps for later is given back first: it is not held by anyone.
    """

    method: fedsim.Method
    held: list[tuple[int, int]] = field(default_factory=list)
    bank: Bank | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def plan(self, state: fedsim.ServerState, population: fedsim.Population) -> fedsim.Plan:
        """The method's own plan."""
        self.bank = state.bank
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        self.held.append((state.round_index, psutil.Process().memory_info().rss))
        return self.method.plan(state, population)


def run(method: fedsim.Method, n_clients: int, options: Options, rounds: int) -> Watched:
    """Simulate on random digits, three samples a client, and return what was noted."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.randint(256, (3 * n_clients, 1, 32, 32), generator=random, dtype=torch.uint8)
    rows = torch.arange(3 * n_clients).view(n_clients, 3)
    data = fedsim.FederatedData(
        inputs=inputs,
        targets=torch.randint(10, (len(inputs),), generator=random),
        train=list(rows[:, :2]),
        test=list(rows[:, 2:]),
        class_names=[str(digit) for digit in range(10)],
        transform=normalise,
    )
    watched = Watched(method)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        fedsim.simulate(
            method=watched,
            backbone=timm.create_model("vit_tiny_patch16_224", pretrained=False, **ARCHITECTURE),
            data=data,
            rounds=rounds,
            cohort_size=options.cohort,
            out=Path(folder) / "run",
            threads=options.threads,
            evaluate_every=rounds,
        )
    return watched


def memory(method: fedsim.Method, options: Options) -> Row:
    """Measure by how much a worker grows over the rounds of a run, after a small run to warm up.

    The copies of all clients are what it has to hold. The peak includes freed memory, checkpoints being written and,
    for HiLoRA, the probes after the last round.
    """
    warnings.filterwarnings("ignore")
    run(method, 2 * options.cohort, options, 6)
    watched = run(method, options.clients, options, options.rounds)
    assert watched.bank is not None
    adapters = byte_count(watched.bank.rows.values())
    start = watched.held[0][1]
    growth = next(held for round_index, held in watched.held if round_index == options.rounds) - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - start
    measured = f"{growth / MIB:.1f} MiB for {adapters / MIB:.1f} MiB of adapters (peak {peak / MIB:.0f} MiB)"
    what = f"{type(method).__name__}: {options.clients:,} clients, {options.cohort} a round, {options.rounds} rounds"
    return Row(what, measured, "≤ adapters + 10 %", growth <= 1.1 * adapters)


def main(options: Options) -> int:
    """Measure everything and print the table."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    hilora = fedsim.HiLoRA(root_share=0.4, cluster_share=0.2, clustering=SubspaceClustering(probe_steps=1))
    with threadpool_limits(options.threads):
        rows = [merging(options.merged), concatenating(160), clustering(options.clustered)]
    alone = [(clustering_many, (options.many,))]
    alone += [(memory, (method, options)) for method in (fedsim.Local(), hilora)]
    for measure, arguments in alone:  # each in a fresh process, which has no freed memory to grow into
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            rows.append(fresh.submit(measure, *arguments).result())
    table = Table(title=f"The server, {options.threads} thread(s)")
    for column in ("what", "measured", "target", ""):
        table.add_column(column)
    for row in rows:
        table.add_row(row.what, row.measured, row.target, "met" if row.is_met else "[bold]missed[/bold]")
    Console().print(table)
    return 0 if all(row.is_met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
