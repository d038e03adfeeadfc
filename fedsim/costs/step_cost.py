"""What a local step costs a client, in memory and FLOPs, from its adapters, the backbone and the batch.

A pass is cut where the adapters of each depth begin. Backward goes no lower than the lowest depth that a client trains,
so the activations of the pieces above it are kept, and those of the pieces below it are not:

    memory      backbone + adapters + their gradients and optimiser state + what is kept for backward
    forward     all pieces, and the adapters
    backward    the pieces from the lowest trained depth up, with frozen weights, and the adapters' gradients

Pieces are counted once (profiler.py); from then on it is arithmetic. Batches scale linearly.
Temporary tensors of single operations come on top, and so does what an accelerator's libraries take.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

from fedsim.adapters.layout import MIDDLE, RANK_AXIS, Layout, Site, Slot
from fedsim.options import LocalTraining

MIB = 2**20
BYTES = 4
"""Of a number: adapters, their gradients and optimiser states are fp32 whatever the precision."""


@dataclass(frozen=True)
class Piece:
    """From the first adapter of one depth to that of the next, for one sample."""

    forward: int
    """FLOPs."""
    backward: int
    """FLOPs of the gradients of activations."""
    kept: int
    """Bytes of activations that backward needs."""


@dataclass(frozen=True)
class Cost:
    """Of one local step."""

    forward: int
    """FLOPs."""
    backward: int
    """FLOPs."""
    activations: int
    """Bytes kept for backward."""
    states: int
    """Bytes of adapters, gradients and optimiser state."""
    backbone: int
    """Bytes of the frozen backbone."""

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return self.activations + self.states + self.backbone

    def describe(self) -> dict[str, float]:
        """Return it in MiB and GFLOP."""
        flops = {"forward_gflop": self.forward / 1e9, "backward_gflop": self.backward / 1e9}
        return {"memory_mib": round(self.memory / MIB, 3)} | {name: round(value, 4) for name, value in flops.items()}


class Work(NamedTuple):
    """What a client does: slots with their shapes at its LoRA rank, which of them it trains, and how.

    It takes so many local steps in a round, and passes so many samples forward and backward.
    """

    shapes: Mapping[Slot, Sequence[int]]
    trained: frozenset[Slot]
    local: LocalTraining
    steps: int = 0
    samples: int = 0


@dataclass(frozen=True)
class Profile:
    """What one sample costs on a backbone, by depth.

    `tokens` are those that each site sees, `inputs` the bytes that its map's input takes if it is kept, and `before`
    the FLOPs below all sites.
    """

    sites: tuple[Site, ...]
    pieces: Mapping[int, Piece]
    tokens: Mapping[str, int]
    inputs: Mapping[str, int]
    before: int
    backbone: int

    @cached_property
    def site(self) -> dict[str, Site]:
        """Sites by name."""
        return {site.name: site for site in self.sites}

    @property
    def forward(self) -> int:
        """FLOPs of a sample's forward pass through the bare backbone."""
        return self.before + sum(piece.forward for piece in self.pieces.values())

    def cost(self, work: Work) -> Cost:
        """Return the cost of a local step of this work, at its batch size."""
        shapes, trained, local, *_ = work
        own = {slot: shape for slot, shape in shapes.items() if slot.site in self.site}
        lowest = min((self.site[slot.site].depth for slot in trained & own.keys()), default=max(self.pieces) + 1)
        passed = [piece for depth, piece in self.pieces.items() if depth >= lowest]
        forward, backward, kept = self.forward, 0, sum(piece.kept for piece in passed)
        backward += sum(piece.backward for piece in passed) - self._unneeded(lowest)
        of_site: dict[str, dict[Slot, Sequence[int]]] = {}
        for slot, shape in own.items():
            of_site.setdefault(slot.site, {})[slot] = shape
        inputs: dict[str, int] = {}
        products = [_middle_products(slots, trained) for slots in of_site.values()]
        for name, slots in of_site.items():
            more = self._adapters(self.site[name], slots, trained, lowest)
            forward, backward, kept = forward + more.forward, backward + more.backward, kept + more.kept
            if any(slot.factor in ("A", "W") and slot in trained for slot in slots):
                site = self.site[name]
                is_dropped = local.dropout > 0 and not site.is_head and site.depth > lowest
                inputs[site.module] = self.inputs[name] * (1 + is_dropped)
        return Cost(
            forward=forward * local.batch_size + sum(of[0] for of in products),
            backward=max(backward, 0) * local.batch_size + sum(of[1] for of in products),
            activations=(kept + sum(inputs.values())) * local.batch_size,
            states=_states(shapes, trained, local),
            backbone=self.backbone,
        )

    def flops(self, work: Work) -> float:
        """Return the FLOPs of this work in a round, forward and backward."""
        cost = self.cost(work)
        return (cost.forward + cost.backward) / work.local.batch_size * work.samples

    def _adapters(
        self, site: Site, slots: Mapping[Slot, Sequence[int]], trained: frozenset[Slot], lowest: int
    ) -> Piece:
        """What a site's adapters add, but for their input, which sites of one map share."""
        T, inputs, outputs = self.tokens[site.name], site.in_features, site.out_features
        width = {"A": inputs, "B": outputs, "W": inputs * outputs}
        rank = 1 if site.is_head else sum(shape[RANK_AXIS["A"]] for slot, shape in slots.items() if slot.factor == "A")
        learns = {factor: any(slot in trained for slot in slots if slot.factor == factor) for factor in width}
        is_passed, unit = site.depth > lowest, 2 * T * rank
        if site.is_head:
            return Piece(unit * width["W"], unit * width["W"] * (learns["W"] + is_passed), 0)
        learns_left = learns["B"] or any(slot.factor == MIDDLE and slot in trained for slot in slots)
        backward = inputs * (learns["A"] + is_passed) + outputs * (learns_left + (learns["A"] or is_passed))
        return Piece(unit * (inputs + outputs), unit * backward, T * rank * BYTES * learns_left)

    def _unneeded(self, lowest: int) -> int:
        """FLOPs of gradients of inputs that nothing below needs: those of the frozen maps with the lowest adapters."""
        maps = {site.module: site for site in self.sites if site.depth == lowest}
        widths = {path: sum(self._rows(site)) for path, site in maps.items()}
        return sum(2 * self.tokens[site.name] * site.in_features * widths[path] for path, site in maps.items())

    def _rows(self, site: Site) -> list[int]:
        """Output rows of the map that a site is part of; a fused one is query, key and value of one width."""
        return [site.out_features] * (1 if site.rows is None else 3)


def _middle_products(slots: Mapping[Slot, Sequence[int]], trained: frozenset[Slot]) -> tuple[int, int]:
    """FLOPs of the products B H of a site in a step, forward and backward, whatever the batch."""
    forward, backward = 0, 0
    for middle, (rank, _) in ((slot, shape) for slot, shape in slots.items() if slot.factor == MIDDLE):
        left = middle._replace(factor="B")
        product = 2 * slots[left][0] * rank**2
        forward += product
        backward += product * ((middle in trained) + (left in trained))
    return forward, backward


def byte_size(shape: Sequence[int]) -> int:
    """Return the bytes of a slot of this shape."""
    return BYTES * prod(shape)


def by_layers(profile: Profile, layout: Layout, local: LocalTraining) -> list[Cost]:
    """Return the cost of a local step that trains the last k depths and the heads, for k = 0 … D."""
    depths = [-1, *sorted({site.depth for site in layout.sites if not site.is_head}, reverse=True)]
    heads = {site.name for site in layout.sites if site.is_head}
    costs = []
    for k in range(len(depths)):
        top = frozenset(s for s in layout.shapes if s.site in heads or layout.depths[s.site] in depths[1 : k + 1])
        costs.append(profile.cost(Work(layout.shapes, top, local)))
    return costs


def table(costs: Sequence[Cost]) -> dict[str, list[float]]:
    """Return costs as columns, for events.jsonl."""
    rows = [cost.describe() for cost in costs]
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def allocation_log(
    profile: Profile,
    allocations: Sequence[frozenset[int]] | None,
    clients: Sequence[int],
    work_of: Callable[[int], Work],
) -> dict[str, object]:
    """Return who trains which depths and what a local step of it costs; nothing where everybody trains all depths."""
    if allocations is None:
        return {}
    costs = table([profile.cost(work_of(client)) for client in clients])
    return {"cohort": list(clients), "allocations": [sorted(allocations[client]) for client in clients], **costs}


def _states(shapes: Mapping[Slot, Sequence[int]], trained: frozenset[Slot], local: LocalTraining) -> int:
    """Bytes of all adapters, and of the gradients and optimiser states of the trained ones."""
    sizes = {slot: byte_size(shape) for slot, shape in shapes.items()}
    moments = 2 if local.optimizer == "adamw" else int(local.momentum > 0)
    return sum(sizes.values()) + (1 + moments) * sum(size for slot, size in sizes.items() if slot in trained)
