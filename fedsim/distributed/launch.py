"""The processes of a run: Fabric, its precision, the CPU threads of a worker. The command line comes before."""

import functools
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from fedsim.distributed.signals import is_launched

if TYPE_CHECKING:
    from lightning.fabric import Fabric

PRECISIONS = ("32-true", "bf16-mixed", "32", "bf16")
"""What Lightning calls them. fp16 would need a loss scale for every client."""


THREADS_A_CORE = 8
"""So many may be asked for: a run goes on, if slowly, with the threads of a machine that has more cores."""


def check_precision() -> None:
    """Raise ValueError when `fabric run` was asked for a precision in which adapters would not be trained in fp32."""
    precision = os.environ.get("LT_PRECISION", PRECISIONS[0])
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision}; it must be one of {', '.join(PRECISIONS)} (--precision).")


@functools.cache
def launch() -> "Fabric":
    """Return the process's Fabric: that of `fabric run`, or one worker under plain `python`.

    Under `fabric run` constructing Fabric starts the process group, and launching again would raise. Workers exchange
    what lies in CPU memory, so the group is gloo's on GPUs too: one that is there before Fabric is the one it takes.
    """
    from lightning.fabric import Fabric

    if is_launched():
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            dist.init_process_group("gloo")
        return Fabric()
    fabric = Fabric(accelerator="auto", devices=1)
    fabric.launch()
    return fabric


def check_threads(threads: int | None) -> None:
    """Raise ValueError for a number of CPU threads that is not positive, or with which nothing would move any more."""
    most = THREADS_A_CORE * cores()
    if threads is not None and not 1 <= threads <= most:
        allowed = f"1 … {most}, {THREADS_A_CORE} for each of the {cores()} cores here"
        raise ValueError(f"threads is {threads}; it must lie in {allowed} (--threads).")


def set_threads(threads: int | None, device: torch.device, is_alone: bool = False) -> int:
    """Use this many CPU threads and return how many there are; a worker that is alone says how to use more cores.

    The default is one on a CPU, and on a GPU the machine's cores shared among its workers.

    A CPU's sums are rounded by the number of threads, so a default that depended on the number of workers would let
    bits depend on it too.
    """
    share = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    torch.set_num_threads(threads or (1 if device.type == "cpu" else share))
    if is_alone and not threads and device.type == "cpu" and cores() > 1:
        _say_how_to_use_cores()
    return torch.get_num_threads()


@functools.cache
def _say_how_to_use_cores() -> None:
    """Once a process, however many runs it has."""
    print(
        f"One worker uses one of {cores()} cores. More workers are faster in the same bits: fabric run … --devices "
        f"{cores()}. More threads give other bits: --threads {cores()}.",
        file=sys.stderr,
        flush=True,
    )


@contextmanager
def arithmetic(is_deterministic: bool, is_tf32: bool, has_cudnn_attention: bool) -> Iterator[None]:
    """Inside, have a GPU compute so, and afterwards as before: the settings are the process's.

    cuDNN plans its attention anew for every shape that it meets.
    """
    algorithms, precision = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    fills, attention = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cuda.cudnn_sdp_enabled()
    if is_deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if is_tf32:
        torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(attention and has_cudnn_attention)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
        torch.set_float32_matmul_precision(precision)
        torch.backends.cuda.enable_cudnn_sdp(attention)


def has_gpu() -> bool:
    """Whether workers will compute on a GPU that CUDA knows: there is one, and `fabric run` was not told otherwise."""
    return torch.cuda.is_available() and os.environ.get("LT_ACCELERATOR") not in ("cpu", "mps")


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tell_launcher(message: str) -> None:
    """Let `fabric run` end with this message: what a worker's error file holds it shows behind all that it says itself.

    Its own exit code is 1 whatever its workers' are.
    """
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        told = {"message": message, "extraInfo": {"py_callstack": message, "timestamp": str(int(time.time()))}}
        Path(path).write_text(json.dumps({"message": told}))


@contextmanager
def one_voice() -> Iterator[None]:
    """Inside, only the first worker of several says anything, and what it says of an error the launcher says last."""
    if int(os.environ.get("RANK", 0)):
        with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
            yield
    elif "TORCHELASTIC_ERROR_FILE" not in os.environ:
        yield
    else:
        said = io.StringIO()
        try:
            with redirect_stderr(said):
                yield
        finally:
            print(said.getvalue(), end="", file=sys.stderr, flush=True)
            if said.getvalue():
                tell_launcher(said.getvalue())


def machine(fabric: "Fabric", workers: int, threads: int) -> dict[str, object]:
    """Return what a run was carried out on, for its recipe.json."""
    used = {"workers": workers, "device": str(fabric.device.type), "threads": threads}
    return used | {"precision": str(fabric.strategy.precision.precision)}
