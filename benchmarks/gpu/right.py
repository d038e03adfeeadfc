"""Whether fedsim is right on a device: its versions, the engines against each other, waits, and the same run twice."""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from rows.simulated import RoundLoop
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fedsim
import fedsim.methods
from fedsim.simulation import RunSpec
from fedsim.storage.provenance import environment
from gpu.federations import LOCAL, Loop, Row, bert, images, milliseconds, release, texts, timed, use, vit, wait
from gpu.language import BATCH, instructions, llama, writing_seconds
from gpu.sizes import Sizes

PRECISIONS = ("32-true", "bf16-mixed")
WAIT = "called a synchronizing CUDA operation"


def versions(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Say what there is, and time each way of computing attention on the shapes of the ViT."""
    device = use(accelerator)
    yield from environment()["versions"].items()
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        yield "card", f"{card.name}, {card.total_memory / 2**30:.0f} GiB, compute capability {card.major}.{card.minor}"
        yield "CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}"
    batch, tokens = sizes.clients * sizes.batches[0], (sizes.vit.image // 16) ** 2 + 1
    for dtype in (torch.bfloat16, torch.float32):
        for backend in SDPBackend.__members__.values():
            if backend in (SDPBackend.ERROR, SDPBackend.OVERRIDEABLE):
                continue
            try:
                first, later = attention(backend, (batch, 12, tokens, 64), dtype, device, sizes.repeats)
            except RuntimeError as error:
                yield f"attention, {backend.name}, {dtype}", f"none: {str(error).splitlines()[0][:80]}"
            else:
                yield (
                    f"attention, {backend.name}, {dtype}",
                    f"{milliseconds(later)} there and back, at first {milliseconds(first)}",
                )


def attention(
    backend: SDPBackend, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, repeats: int
) -> tuple[float, float]:
    """Return the seconds of one attention, forward and backward, with this implementation: the first and later ones."""
    query, key, value = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))

    def once() -> None:
        F.scaled_dot_product_attention(query, key, value).sum().backward()

    with sdpa_kernel(backend), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says at length why it cannot, and then raises
        started = time.perf_counter()
        once()
        wait(device)
        return time.perf_counter() - started, timed(once, device, repeats)


class Tiny(nn.Module):
    """The least that every method can train: two blocks with query and value."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        maps = ("q_proj", "v_proj")
        self.blocks = nn.ModuleList(nn.ModuleDict({name: nn.Linear(12, 12) for name in maps}) for _ in range(2))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        for block in self.blocks:
            x = x + torch.tanh(block["q_proj"](x)) * block["v_proj"](x)
        return self.head(x)


def tiny_federation() -> fedsim.FederatedData:
    """Return six clients, one of them unseen, and a proxy set."""
    inputs = torch.randn(96, 12, generator=torch.Generator().manual_seed(0))
    data = fedsim.from_tensors(inputs, torch.arange(96) % 3, torch.arange(96) // 16, unseen=[5])
    return fedsim.with_proxy(data, torch.arange(4))


def small(kind: type) -> fedsim.Method:
    """Return a method with ranks and warm-ups that suit a few rounds of a tiny federation."""
    wanted: dict[str, Any] = {"lora_rank": 2, "client_rank": 1, "n_clusters": 2, "warmup_rounds": 1, "sync_period": 2}
    wanted |= {"ranks": fedsim.LoraRanks(values=(1, 2)), "capabilities": fedsim.Capabilities(values=(1, 2))}
    names = {field.name for field in fields(kind)}
    made = kind(**{name: value for name, value in wanted.items() if name in names})
    return replace(made, fim=replace(made.fim, warmup_rounds=1)) if "fim" in names else made


def agreement(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Train with every method under both engines; say how far apart they end."""
    for name in fedsim.methods.__all__:
        found = []
        for precision in PRECISIONS:
            use(accelerator, precision)
            try:
                found.append(f"{apart(getattr(fedsim.methods, name), sizes.rounds):.1e}")
            except Exception as error:
                found.append(f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")
        yield name, f"{found[0]} in fp32, {found[1]} in bf16"


def apart(kind: type, rounds: int) -> float:
    """Return the largest of ‖batched − sequential‖ / ‖sequential‖ over all products B A and heads, after the rounds."""
    local = fedsim.LocalTraining(batch_size=4, clip_norm=1.0, dropout=0.1, **LOCAL)
    found = []
    for engine in ("batched", "sequential"):
        parts = {"method": small(kind), "backbone": Tiny(), "data": tiny_federation(), "on_nan": "skip"}
        loop = RoundLoop(RunSpec(**parts, rounds=rounds, local=local, engine=engine, evaluate_every=rounds))
        for _ in range(rounds):
            loop.round()
        found.append(changes(loop.state.bank.state_tensors()))
    ours, reference = found
    if any(ours[key].shape != reference[key].shape for key in reference):
        return float("inf")  # the engines' clusters differ
    return max(float((ours[key] - reference[key]).norm() / reference[key].norm().clamp(min=1e-30)) for key in reference)


def changes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what copies of slots amount to: B A, which alone is defined where a server decomposes it, and the rest."""
    rows = {key.removesuffix("|rows"): value for key, value in tensors.items() if key.endswith("|rows")}
    for name in [name for name in rows if name.endswith("/B")]:
        factor = rows.get(pair := name.removesuffix("B") + "A")
        if factor is not None and (len(factor) == len(rows[name]) or 1 in (len(factor), len(rows[name]))):
            rows[f"{name}A"] = rows.pop(name) @ rows.pop(pair)
    return rows


def waits(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Count how often the host waits for the device in a local step, and for a token that is written, and say where.

    torch warns of each wait. What is done once more often tells what it costs alone.
    """
    device = use(accelerator)
    batch, n = sizes.batches[0], sizes.clients
    even, uneven = [2 * batch] * n, [batch * (1 + k % 3) for k in range(n)]
    settings: dict[str, tuple[Any, ...]] = {
        "images": (vit, images, even, {}),
        "images, uneven": (vit, images, uneven, {}),
        "images, dropout 0.1": (vit, images, even, {"dropout": 0.1}),
        "texts, uneven": (bert, texts, uneven, {}),
    }
    for name, (model, data, each, local) in settings.items():
        head = {"head": "model.classifier"} if model is bert else {}
        loops = [
            Loop(model(sizes), data(sizes, each), {"batch_size": batch, "epochs": epochs} | local, **head)
            for epochs in (1, 3)
        ]
        yield name, f"{waits_of_steps(loops)} a step"
        release()
    model, data = llama(sizes, device), instructions(sizes)
    loops = [Loop(deepcopy(model), data, {"batch_size": BATCH, "epochs": epochs}) for epochs in (1, 3)]
    yield "a language model", f"{waits_of_steps(loops)} a step"
    tokens = (sizes.answer // 2, sizes.answer)
    counted = [waits_of(partial(writing_seconds, loops[0], n_tokens, 1)) for n_tokens in tokens]
    yield "a token of all clients", f"{listed(*counted, 2 * (tokens[1] - tokens[0]))} a token"


def waits_of_steps(loops: Sequence[Loop]) -> str:
    """Return the waits of a step, from federations that differ in their number of steps alone."""
    counted, steps = [], []
    for loop in loops:
        block = loop.dispatch()
        loop.train(block)
        counted.append(waits_of(partial(loop.train, block)))
        steps.append(max(assignment.steps for assignment in block))
    return listed(*counted, steps[1] - steps[0])


def waits_of(work: Callable[[], object]) -> Counter[str]:
    """Return how often each line of Python waited for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Counter(f"{each.filename.rpartition('/')[2]}:{each.lineno}" for each in said if WAIT in str(each.message))


def listed(few: Counter[str], many: Counter[str], times: int) -> str:
    """Return by how much the second count is larger, over so many times, and where."""
    places = ", ".join(place for place, _ in (many - few).most_common(5))
    return f"{(many.total() - few.total()) / times:.2g}" + (f" (at {places})" if places else "")


def repeats(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Run a federation twice, as torch chooses its algorithms and with --deterministic; compare the digests."""
    use(accelerator)
    for name, is_asked in (("as torch chooses", False), ("--deterministic", True)):
        (first, _), (second, seconds) = (simulated(sizes, is_asked) for _ in range(2))
        same = "the same digest twice" if first == second else f"two digests, {first[:8]} and {second[:8]}"
        yield name, f"{same}; {seconds:.1f} s"


def simulated(sizes: Sizes, is_deterministic: bool) -> tuple[str, float]:
    """Run FedIT on images for three rounds; return digest and seconds."""
    started, batch = time.perf_counter(), sizes.batches[0]
    with TemporaryDirectory() as folder:
        result = fedsim.simulate(
            method=fedsim.FedIT(lora_rank=8),
            backbone=vit(sizes),
            data=images(sizes, [2 * batch] * sizes.clients, batch),
            rounds=3,
            local=fedsim.LocalTraining(batch_size=batch, dropout=0.1),
            block_size=sizes.clients,
            deterministic=is_deterministic,
            recipe={"measured": "gpu_check"},
            on_nan="skip",
            out=f"{folder}/run",
        )
    assert result is not None
    return result.digest, time.perf_counter() - started
