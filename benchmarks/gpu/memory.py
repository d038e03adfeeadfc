"""Whether blocks are as large as they can be, and what happens where they are too large or others need memory too."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedsim.round import Assignment
from gpu.federations import Loop, Row, images, peak_memory, release, use, vit
from gpu.language import large_block
from gpu.sizes import Sizes

HOLDING = """
import sys, torch
held = torch.empty(int(float(sys.argv[1]) * 2**30), dtype=torch.uint8, device="cuda").fill_(1)
torch.cuda.synchronize()
print("held", flush=True)
sys.stdin.read()
"""


def blocks(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Compare the measured block with the largest that trains; force a larger one; measure beside another process."""
    device = use(accelerator)
    loop = crowd(sizes, device)
    measured, everyone = loop.engine.block_size, loop.dispatch()
    with peak_memory(device) as peak:
        loop.train(everyone[:measured])
        yield "measured block", f"{measured} clients × {sizes.batches[0]} images, peak {peak()}"
    largest = largest_that_trains(loop, measured, len(everyone))
    bound = " (all there are)" if largest == len(everyone) else ""
    yield "largest that trains", f"{largest} clients{bound}; measured ÷ largest {measured / largest:.2f}"
    halved = halvings(loop, everyone[:largest], device)
    name = f"a block of {largest} in the memory of {largest // 2}"
    yield name, f"halved {halved} time(s), to {loop.engine.pass_size}"
    del loop
    release()
    with another_process(sizes.held_gib):
        loop = crowd(sizes, device)
        beside = loop.engine.block_size
        loop.train(loop.dispatch()[:beside])
        kept = "and it trains" if loop.engine.pass_size == beside else f"halved to {loop.engine.pass_size}"
        yield f"measured beside a process with {sizes.held_gib:g} GiB", f"{beside} clients, {kept}"
    del loop
    release()
    yield large_block(sizes, device)


def crowd(sizes: Sizes, device: torch.device) -> Loop:
    """Return a federation of many clients with one batch each, whose block size is measured."""
    batch = sizes.batches[0]
    data = images(sizes, [batch] * sizes.crowd, n_rows=256)
    return Loop(vit(sizes), data, {"batch_size": batch}, block_size=None)


def largest_that_trains(loop: Loop, trains: int, most: int) -> int:
    """Return the most clients that one pass takes, to 2 % of them, by halving the interval."""
    fails = min(2 * trains, most) + 1
    while fails - trains > max(1, trains // 50):
        middle = (trains + fails) // 2
        loop.engine.resize(middle)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loop.train(loop.dispatch(middle))
        trains, fails = (middle, fails) if loop.engine.pass_size == middle else (trains, middle)
        release()
    return trains


def halvings(loop: Loop, block: list[Assignment], device: torch.device) -> int:
    """Train a block in the memory that half of its clients need; return how often the engine halved its pass."""
    half, whole = max(1, len(block) // 2), torch.cuda.mem_get_info(device)[1]
    release()
    torch.cuda.reset_peak_memory_stats(device)
    loop.engine.resize(half)
    loop.train(block[:half])
    needed = torch.cuda.max_memory_reserved(device)
    release()
    loop.engine.resize(len(block))
    torch.cuda.set_per_process_memory_fraction(needed / whole, device)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            loop.train(block)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    return sum("Out of memory" in str(each.message) for each in said)


@contextmanager
def another_process(gib: float) -> Iterator[None]:
    """Let another process hold so much of the device's memory inside of a with-block."""
    command = [sys.executable, "-c", HOLDING, str(gib)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline().strip() != "held":
            raise RuntimeError(f"another process could not hold {gib:g} GiB")
        try:
            yield
        finally:
            process.stdin.close()
