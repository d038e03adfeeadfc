"""How fast a step is: beside plain LoRA and a loop over adapters, by kernels, with dropout, placed and compiled."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import fedsim
from fedsim.data import placement
from fedsim.data.placement import move_to_device
from gpu.comparators import looped_step
from gpu.federations import Loop, Row, images, milliseconds, peak_memory, release, timed, use, vit, wait
from gpu.sizes import Sizes


def steps(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Time a local step of all clients on ViT-B by batch size, and the same samples in the two other ways."""
    device = use(accelerator)
    for batch in sizes.batches:
        n_steps = sizes.steps if batch <= 32 else 2
        data = images(sizes, [n_steps * batch] * sizes.clients)

        def ours(data: fedsim.FederatedData = data, batch: int = batch) -> float:
            return Loop(vit(sizes), data, {"batch_size": batch}).step_seconds(sizes.repeats)

        def looped(n: int, data: fedsim.FederatedData = data, batch: int = batch) -> float:
            near, rows = move_to_device(data, device), [table[:batch] for table in data.train]
            return timed(looped_step(vit(sizes), n, near, rows, device), device, sizes.repeats)

        name = f"{sizes.clients} clients × {batch} images"
        limit, at_most = attempted(lambda: looped(1), device)
        yield f"{name}, plain LoRA", at_most
        for way, work in (("fedsim", ours), ("loop over adapters", lambda: looped(sizes.clients))):
            seconds, text = attempted(work, device)
            yield f"{name}, {way}", f"{text}, {seconds / limit:.2f} × plain LoRA" if seconds and limit else text


def attempted(work: Callable[[], float], device: torch.device) -> tuple[float, str]:
    """Return the seconds of a step, 0 where memory ran out, and them with the peak of memory as a text."""
    with peak_memory(device) as peak:
        try:
            seconds = work()
        except torch.OutOfMemoryError:
            return 0.0, "out of memory"
        return seconds, f"{milliseconds(seconds)} a step, peak {peak()}"


def kernels(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Count kernels and copies of a local step, and the share of the time in which the device is busy."""
    device, batch = use(accelerator), sizes.batches[0]
    for dropout in (0.0, 0.1):
        data = images(sizes, [sizes.steps * batch] * sizes.clients)
        loop = Loop(vit(sizes), data, {"batch_size": batch, "dropout": dropout})
        block = loop.dispatch()
        loop.train(block)
        wait(device)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            started = time.perf_counter()
            loop.train(block)
            wait(device)
            seconds = time.perf_counter() - started
        events = [event for event in found.events() if event.device_type == DeviceType.CUDA]
        busy = sum(event.time_range.elapsed_us() for event in events) / 1e6 / seconds
        name = f"{sizes.clients} clients × {batch} images, dropout {dropout}"
        each = len(events) / sizes.steps
        yield name, f"{each:.0f} kernels and copies a step (those of a round's start and end included), busy {busy:.0%}"
        release()


def dropouts(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Time a local step without dropout and with."""
    use(accelerator)
    batch = sizes.batches[0]
    for dropout in (0.0, 0.1):
        data = images(sizes, [sizes.steps * batch] * sizes.clients)
        loop = Loop(vit(sizes), data, {"batch_size": batch, "dropout": dropout})
        yield f"dropout {dropout}", f"{milliseconds(loop.step_seconds(sizes.repeats))} a step"
        release()


def options(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Time a local step in each precision, with TF32 and with deterministic algorithms."""
    batch = sizes.batches[0]
    ways = {
        "--precision 32-true": ("32-true", False, False),
        "--precision 32-true, --tf32": ("32-true", False, True),
        "--precision bf16-mixed": ("bf16-mixed", False, False),
        "--precision bf16-mixed, --deterministic": ("bf16-mixed", True, False),
    }
    for name, (precision, is_deterministic, is_tf32) in ways.items():
        use(accelerator, precision)
        data = images(sizes, [sizes.steps * batch] * sizes.clients)
        loop = Loop(vit(sizes), data, {"batch_size": batch}, deterministic=is_deterministic, tf32=is_tf32)
        yield name, f"{milliseconds(loop.step_seconds(sizes.repeats))} a step"
        release()


def placements(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Time a local step with data on the device, in the host's memory (through pinned memory), and in a mapped file."""
    use(accelerator)
    batch = sizes.batches[0]
    data, share = images(sizes, [sizes.steps * batch] * sizes.clients), placement.SHARE
    with tempfile.TemporaryDirectory() as folder:
        mapped = replace(data, inputs=in_file(data.inputs, Path(folder) / "inputs"))
        for name, each, allowed in (("device", data, share), ("host", data, 0.0), ("mapped file", mapped, 0.0)):
            placement.SHARE = allowed
            try:
                loop = Loop(vit(sizes), each, {"batch_size": batch})
            finally:
                placement.SHARE = share
            seconds, where = loop.step_seconds(sizes.repeats), loop.engine.data.inputs.device.type
            yield name, f"{milliseconds(seconds)} a step, inputs in the memory of {where}"
            release()


def in_file(tensor: Tensor, path: Path) -> Tensor:
    """Return the same uint8 numbers in a file that is mapped."""
    mapped = torch.from_file(os.fspath(path), shared=True, size=tensor.numel(), dtype=tensor.dtype)
    return mapped.view(tensor.shape).copy_(tensor)


def shapes(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Time a local step of uneven clients with shapes as they are, and static ones."""
    use(accelerator)
    for name, is_static in (("shapes as they are", False), ("static shapes", True)):
        yield name, f"{milliseconds(uneven(sizes, static_shapes=is_static).step_seconds(sizes.repeats))} a step"
        release()


def compiled(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Time the first training of uneven clients with static shapes through torch.compile, and further ones.

    Then the same with CUDA graphs of what was compiled.
    """
    device = use(accelerator)
    graphs = (False, True) if device.type == "cuda" else (False,)
    for name, is_recorded in zip(("torch.compile", "torch.compile, --cuda-graphs"), graphs, strict=False):
        loop = uneven(sizes, static_shapes=True, compile=True, cuda_graphs=is_recorded)
        started, block = time.perf_counter(), loop.dispatch()
        loop.train(block)
        wait(device)
        yield f"{name}, the first training", f"{time.perf_counter() - started:.1f} s"
        given_up = "" if loop.engine.module.compiled else ", without: the compiler gave up"
        seconds = loop.step_seconds(sizes.repeats)
        yield f"{name}, further ones", f"{milliseconds(seconds)} a step{given_up}{recorded(loop, is_recorded)}"
        release()


def graphs(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Time a local step of uneven clients with and without CUDA graphs, and compare what they have trained."""
    use(accelerator)
    for dropout in (0.0, 0.1):
        found = []
        for is_recorded in (False, True):
            loop = uneven(sizes, {"dropout": dropout}, static_shapes=True, cuda_graphs=is_recorded)
            seconds = loop.step_seconds(max(3, sizes.repeats))  # a pass is recorded when it comes again
            found.append(trained(loop))
            name = f"dropout {dropout}, {'--cuda-graphs' if is_recorded else 'kernel by kernel'}"
            yield name, f"{milliseconds(seconds)} a step{recorded(loop, is_recorded)}"
            release()
        gaps = [(b - a).norm() / a.norm().clamp(min=1e-30) for a, b in zip(*found, strict=True)]
        gap = float(torch.stack(gaps).max())  # which is no number where one of them is none
        yield f"dropout {dropout}, largest ‖difference‖ ÷ ‖trained‖", f"{gap:.1e}"


def trained(loop: Loop) -> list[Tensor]:
    """Return what all clients have trained in the first round, slot by slot."""
    block = loop.dispatch()
    with loop.computing():
        updates = loop.engine.local_update(loop.plan, [block])
    return [update.tensors[slot] for update in updates for slot in sorted(update.tensors)]


def recorded(loop: Loop, is_asked: bool) -> str:
    """Return how many kinds of passes were recorded, as an addition to a text."""
    n = sum(kept is not None for kept in loop.engine.passes.recorded.values())
    return f", {n} recorded" if n else ", none could be recorded" if is_asked else ""


def uneven(sizes: Sizes, local: dict[str, Any] | None = None, **fields: Any) -> Loop:
    """Return clients of whom each has one sample less than the one before."""
    batch = sizes.batches[0]
    data = images(sizes, [max(1, sizes.steps * batch - k) for k in range(sizes.clients)])
    return Loop(vit(sizes), data, {"batch_size": batch} | (local or {}), **fields)


def large_round(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Time a round of Fed-HeLLo's size, which its authors' logs give with 14.7 s on four GPUs."""
    device = use(accelerator)
    data = images(sizes, [sizes.round_samples] * sizes.clients, sizes.test_samples)
    data = fedsim.with_proxy(data, data.test[0][:1])
    backbone = vit(sizes)
    method = fedsim.FedHeLLo(capabilities=fedsim.Capabilities(values=(6, 9, 12), out_of=12))
    loop = Loop(backbone, data, {"batch_size": sizes.round_batch}, method=method, block_size=None)
    loop.round()
    times = [time.perf_counter()]
    for work in (loop.round, loop.evaluate):
        work()
        wait(device)
        times.append(time.perf_counter())
    trained, tested = (later - sooner for sooner, later in pairwise(times))
    n = sizes.clients
    yield f"{n} × {sizes.round_samples} images in batches of {sizes.round_batch}", f"{trained:.1f} s"
    yield f"{n * sizes.test_samples:,} test images", f"{tested:.1f} s"
    note = f"blocks of {loop.engine.block_size}; the authors' logs: 14.7 s on four GPUs"
    yield "together", f"{trained + tested:.1f} s, {note}"
