"""What a client's allocation costs: the last 12, 9, 6 and 3 of 12 layers of ViT-Tiny, with both engines.

python benchmarks/allocations.py
"""

import argparse
import time
from collections.abc import Sequence
from statistics import median

import timm
import torch
from lightning.fabric import Fabric
from results import markdown as as_markdown
from results import provenance, show, write
from torch import Tensor

import fedsim
from fedsim.adapters.layout import Layout
from fedsim.costs.profiler import profile
from fedsim.costs.step_cost import MIB, Work
from fedsim.data.federated import as_float
from fedsim.engines import Engine
from fedsim.engines.batched import BatchedEngine
from fedsim.engines.sequential import SequentialEngine
from fedsim.models.client_module import ClientModule
from fedsim.models.sites import find_sites
from fedsim.parts.initialisation import lora_initial
from fedsim.plan import Plan
from fedsim.randomness import generator
from fedsim.round import Assignment, Population

LAYERS, CLIENTS, BATCH, RANK = (12, 9, 6, 3), 4, 2, 16
LOCAL = fedsim.LocalTraining(batch_size=BATCH, learning_rate=1e-4)
COLUMNS = ("layers", "engine", "s a step", "÷ all layers", "kept, MiB", "estimated", "FLOPs, estimated, ÷ all layers")


class Bench:
    """A backbone, random images of four clients with one batch each, and both engines."""

    def __init__(self) -> None:
        self.net = timm.create_model("vit_tiny_patch16_224", num_classes=2)
        self.layout = Layout(find_sites(self.net), ("adapter",), RANK, "global")
        images = torch.randint(0, 256, (CLIENTS * BATCH, 3, 224, 224), dtype=torch.uint8)
        tables = list(torch.arange(CLIENTS * BATCH).split(BATCH))
        targets, nothing = torch.zeros(len(images), dtype=torch.long), [torch.empty(0, dtype=torch.long)] * CLIENTS
        data = fedsim.FederatedData(images, targets, tables, nothing, ["0", "1"])
        self.profile = profile(self.net, self.layout.sites, as_float(images[:1]))
        module, fabric = ClientModule(self.net, self.layout.sites), Fabric(accelerator="cpu", devices=1)
        self.engines: dict[str, Engine] = {
            "sequential": SequentialEngine(fabric, module, data, 0),
            "batched": BatchedEngine(fabric, module, data, 0, CLIENTS),
        }
        self.plan = Plan(population=Population(CLIENTS, tuple(range(CLIENTS)), (), (BATCH,) * CLIENTS))
        self.initial = lora_initial(self.layout, generator(0, "initial"))

    def block(self, layers: int) -> list[Assignment]:
        """One step of every client that trains the last layers and the head."""
        trains = frozenset(slot for slot in self.initial if self.layout.depths[slot.site] >= 12 - layers)
        return [Assignment(client, 0, self.initial, trains, {}, 1, LOCAL) for client in range(CLIENTS)]

    def seconds(self, engine: str, layers: int) -> float:
        """Seconds of one step of all clients."""
        start = time.perf_counter()
        self.engines[engine].local_update(self.plan, [self.block(layers)])
        return time.perf_counter() - start

    def kept(self, engine: str, layers: int) -> float:
        """MiB that are saved for backward, by client; what is kept in a step, without adapters and backbone."""
        block = self.block(layers)
        known = {t.untyped_storage().data_ptr() for t in self.net.parameters()}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            is_copy = {*tensor.shape[-2:]} == {192, RANK}
            if tensor.untyped_storage().data_ptr() not in known and not is_copy:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.engines[engine].local_update(self.plan, [block])
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / CLIENTS / MIB

    def estimate(self, layers: int) -> tuple[float, float]:
        """MiB kept for backward and FLOPs of a client's step."""
        shapes, trains = self.layout.shapes, self.block(layers)[0].trains
        cost = self.profile.cost(Work(shapes, trains, LOCAL))
        return cost.activations / MIB, float(cost.forward + cost.backward)


def measure(bench: Bench, repeats: int) -> list[list[str]]:
    """Return the table's rows; all settings take turns, so that a busy moment hits them alike."""
    cells = [(engine, layers) for engine in bench.engines for layers in LAYERS]
    seconds: dict[tuple[str, int], list[float]] = {cell: [] for cell in cells}
    for repeat in range(repeats + 1):
        for cell in cells:
            taken = bench.seconds(*cell)
            if repeat:
                seconds[cell].append(taken)
    rows = []
    for engine, layers in cells:
        times, whole = seconds[engine, layers], median(seconds[engine, LAYERS[0]])
        estimate, flops = bench.estimate(layers)
        rows.append([
            str(layers), engine, f"{median(times):.2f} ({min(times):.2f}–{max(times):.2f})",
            f"{median(times) / whole:.2f}", f"{bench.kept(engine, layers):.1f}", f"{estimate:.1f}",
            f"{flops / bench.estimate(LAYERS[0])[1]:.2f}",
        ])  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, show and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="steps that are timed, after one that is not")
    repeats = parser.parse_args(arguments).repeats
    torch.set_num_threads(1)
    rows = measure(Bench(), repeats)
    show("What an allocation costs", COLUMNS, rows)
    note = (
        f"ViT-Tiny at 224 pixels, LoRA rank {RANK}, {CLIENTS} clients with one step on {BATCH} images each; "
        "seconds of all, median (min–max); kept: activations saved for backward, by client, as autograd has them."
    )
    write("allocations", f"{provenance(1)}\n\n{note}\n\n{as_markdown(COLUMNS, rows)}", "What an allocation costs")


if __name__ == "__main__":
    main()
