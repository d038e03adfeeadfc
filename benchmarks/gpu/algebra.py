"""The server's linear algebra on the device against the host's: distances of subspaces, SVD and QR."""

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fedsim.parts.clustering import column_basis, subspace_distances
from gpu.federations import Row, milliseconds, release, timed, use
from gpu.sizes import Sizes

WIDTH, RANK, MERGED = 768, 8, 100


def distances(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Compare clients of ViT-B by all sites on the device, and by one of them on both."""
    device = use(accelerator)
    for n in sizes.clustered:
        basis = column_basis(torch.randn(n, WIDTH, RANK, generator=torch.Generator().manual_seed(0)))
        started = time.perf_counter()
        found = subspace_distances([basis] * sizes.sites, device)
        text = f"{time.perf_counter() - started:.1f} s on {device.type}"
        if n <= 2000:
            started = time.perf_counter()
            gap = float((found - subspace_distances([basis])).abs().max())
            text += f"; one site on the host {time.perf_counter() - started:.1f} s, apart by {gap:.0e}"
        yield f"distances of {n:,} clients by {sizes.sites} sites", text
        release()


def decompositions(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Time the decompositions of an aggregation of ViT-B's clients on the device and on the host."""
    device = use(accelerator)
    stacked = torch.randn(WIDTH, MERGED * RANK, generator=torch.Generator().manual_seed(0))
    ways: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {"SVD": torch.linalg.svd, "QR": torch.linalg.qr}
    for name, work in ways.items():
        times = []
        for where in (device, torch.device("cpu")):
            matrix = stacked.to(where)
            times.append(timed(lambda work=work, matrix=matrix: work(matrix), where, sizes.repeats))
        yield f"{name} of {WIDTH} × {MERGED * RANK}", f"{milliseconds(times[0])}, on the host {milliseconds(times[1])}"
