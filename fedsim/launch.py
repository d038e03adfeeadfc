"""The processes of a run: Fabric, its precision, the CPU threads of a worker. The command line comes before."""

import functools
import os

import torch
from lightning.fabric import Fabric

from fedsim.interruption import is_launched

PRECISIONS = ("32-true", "bf16-mixed", "32", "bf16")
"""What Lightning calls them. fp16 would need a loss scale for every client."""


def check_precision() -> None:
    """Raise ValueError when `fabric run` was asked for a precision in which adapters would not be trained in fp32."""
    precision = os.environ.get("LT_PRECISION", PRECISIONS[0])
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision}; it must be one of {', '.join(PRECISIONS)} (--precision).")


@functools.cache
def launch() -> Fabric:
    """Return the process's Fabric: that of `fabric run`, or one worker under plain `python`.

    Under `fabric run` constructing Fabric starts the process group, and launching again would raise.
    """
    if is_launched():
        return Fabric()
    fabric = Fabric(accelerator="auto", devices=1)
    fabric.launch()
    return fabric


def set_threads(threads: int | None, device: torch.device) -> None:
    """Use this many CPU threads; by default one on a CPU, on a GPU the machine's cores shared among its workers.

    A CPU's sums are rounded by the number of threads, so a default that depended on the number of workers would let
    bits depend on it too.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    torch.set_num_threads(threads or (1 if device.type == "cpu" else share))
