"""The tensors of a block of K clients, stacked, and the optimiser that steps all of them at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property

import torch
from torch import Tensor

from fedsim.adapters.layout import RANK_AXIS, Slot, fit_rank, group_slots, pad_rank
from fedsim.adapters.linear import Scale
from fedsim.data.federated import send
from fedsim.round import Assignment


class Memory:
    """Tensors of blocks at fixed places: one that has name, shape and type of an earlier one is copied there."""

    def __init__(self) -> None:
        self.places: dict[tuple[object, ...], Tensor] = {}

    def keep(self, name: object, tensor: Tensor, device: torch.device) -> Tensor:
        """Return the place on a device, with the tensor's numbers."""
        key = (name, tensor.shape, tensor.dtype)
        if key in self.places:
            return self.places[key].copy_(tensor)
        self.places[key] = tensor.to(device, copy=True)
        return self.places[key]

    def __contains__(self, name: object) -> bool:
        return any(key[0] == name for key in self.places)


class Stack:
    """K clients' tensors at the largest LoRA rank among them, on a device; where there is a `memory`, in that.

    `values` (K, P) holds, a row a client, every slot that any of them trains; `mask` (K, P) is 1 where a client trains
    an entry and 0 where it does not: stage x allocation x LoRA rank, built here and nowhere else (None: all ones).
    """

    def __init__(self, block: Sequence[Assignment], device: torch.device, memory: Memory | None = None):
        self.block, self.device, self.memory = block, device, memory
        self.source: tuple[Stack, Tensor] | None = None
        self.shapes = {slot: _widest([a.tensors[slot] for a in block]) for slot in block[0].tensors}
        self.grouped = group_slots(self.shapes)
        self.trained = [slot for slot in self.shapes if any(slot in a.trains for a in block)]
        self.sizes = [self.shapes[slot].numel() for slot in self.trained]
        self.values = self._placed("values", self._start())
        self.corrections = self._corrections()
        unequal = {tier: [a.scales[tier] for a in block] for tier in block[0].scales}
        self.unequal_scales = {
            tier: self._placed(tier, torch.tensor(own)) for tier, own in unequal.items() if len(set(own)) > 1
        }
        self.frozen = {slot: self._stacked(slot) for slot in self.shapes if slot not in self.trained}
        is_whole = all(
            slot in a.trains and a.tensors[slot].shape == s for a in block for slot, s in self._each_trained()
        )
        self.mask = None if is_whole else torch.stack([self._trained_entries(a) for a in block]).to(device)
        if memory is not None and "handed out" in memory:  # a recorded pass looks there
            _ = self._handed_out

    @cached_property
    def name(self) -> tuple[object, ...]:
        """All that is not in tensors: what clients hold, and what of it is trained or one copy for all."""
        shared = tuple(slot for slot, value in self.frozen.items() if not value.stride(0))
        return len(self.block), tuple(self.shapes.items()), tuple(self.trained), shared

    def rows(self, clients: Sequence[int]) -> "Stack":
        """Return a stack for one pass with a row for each of these clients (n,), of which one may be there many times.

        It is made on the stack's device and holds copies of what is trained.
        """
        many, at = copy(self), send(torch.tensor(clients, dtype=torch.long), self.device)
        for cached in ("name", "_handed_out"):
            vars(many).pop(cached, None)
        many.source, many.memory = (self, at), None
        many.block, many.values = [self.block[k] for k in clients], self.values[at]
        many.frozen = {
            slot: value[at] if len(value) > 1 and value.stride(0) else value[:1].expand(len(at), *value.shape[1:])
            for slot, value in self.frozen.items()
        }
        many.unequal_scales = {tier: scales[at] for tier, scales in self.unequal_scales.items()}
        return many

    def tensors(self, values: Tensor, start: int) -> dict[Slot, Tensor]:
        """Return every slot, (k, *shape), of the clients from `start` on; trained ones are views of `values` (k, P)."""
        columns = dict(zip(self.trained, values.split(self.sizes, dim=1), strict=True))
        stop = start + len(values)
        return {
            slot: columns[slot].view(len(values), *shape) if slot in columns else self.frozen[slot][start:stop]
            for slot, shape in self.shapes.items()
        }

    def received(self, start: int, stop: int) -> "Received":
        """Return every slot of these clients as `tensors` does, but as it was handed out."""
        return Received(lambda: self.tensors(self._handed_out[start:stop], start))

    def scales(self, start: int, stop: int) -> dict[str, Scale]:
        """Return each tier's scale: one number where these clients agree, else (k,)."""
        members = self.block[start:stop]
        scales: dict[str, Scale] = {}
        for tier in members[0].scales:
            of_client = [a.scales[tier] for a in members]
            alike = len(set(of_client)) == 1
            scales[tier] = of_client[0] if alike else self.unequal_scales[tier][start:stop]
        return scales

    def by_client(self, values: Tensor) -> list[dict[Slot, Tensor]]:
        """Return each client's part of `values` (K, P), those slots that it trains, at its LoRA rank, in CPU memory."""
        values = values.to("cpu", copy=self.memory is not None)  # which the next block will overwrite
        columns = dict(zip(self.trained, values.split(self.sizes, dim=1), strict=True))
        whole = {slot: columns[slot].view(len(self.block), *shape).unbind() for slot, shape in self._each_trained()}
        return [
            {slot: _cut(slot, whole[slot][k], a.tensors[slot].shape) for slot in self.trained if slot in a.trains}
            for k, a in enumerate(self.block)
        ]

    def rates(self, of_client: Tensor) -> Tensor:
        """Return the learning rates (K, 1) of clients, (K, P) where slots have rates of their own."""
        if not any(assignment.rates for assignment in self.block):
            return of_client
        rates = of_client.repeat(1, sum(self.sizes))
        columns = dict(zip(self.trained, rates.split(self.sizes, dim=1), strict=True))
        for k, assignment in enumerate(self.block):
            for slot in assignment.trains & assignment.rates.keys():
                columns[slot][k] = assignment.rates[slot]
        return rates

    def _corrections(self) -> Tensor | None:
        """What is added to the gradients, (K, P); zero in the padding. None when nothing is."""
        if not any(assignment.corrections for assignment in self.block):
            return None
        corrections = torch.zeros_like(self.values)
        columns = dict(zip(self.trained, corrections.split(self.sizes, dim=1), strict=True))
        for k, assignment in enumerate(self.block):
            for slot, value in assignment.corrections.items():
                columns[slot][k].view(self.shapes[slot])[tuple(map(slice, value.shape))] = value.to(self.device)
        return corrections

    def _start(self) -> Tensor:
        rows = [torch.cat([self._padded(a, s).flatten() for s in self.trained]) for a in self.block if self.trained]
        return torch.stack(rows) if rows else torch.zeros(len(self.block), 0)

    @cached_property
    def _handed_out(self) -> Tensor:
        if self.source is not None:
            stack, at = self.source
            return stack._handed_out[at]
        return self._placed("handed out", self._start())

    def _placed(self, name: object, tensor: Tensor) -> Tensor:
        """The tensor on the device, where there is a memory at its place there."""
        return tensor.to(self.device) if self.memory is None else self.memory.keep(name, tensor, self.device)

    def _each_trained(self) -> list[tuple[Slot, torch.Size]]:
        return [(slot, self.shapes[slot]) for slot in self.trained]

    def _padded(self, assignment: Assignment, slot: Slot) -> Tensor:
        tensor, shape = assignment.tensors[slot], self.shapes[slot]
        return tensor if tensor.shape == shape else pad_rank(tensor, slot.factor, shape[RANK_AXIS[slot.factor]])

    def _stacked(self, slot: Slot) -> Tensor:
        """A frozen slot (K, *shape); clients that hold the same copy share its memory."""
        copies = [assignment.tensors[slot] for assignment in self.block]
        if len({(copy.data_ptr(), copy.shape) for copy in copies}) == 1:  # slices of one copy share its address
            return self._placed(slot, copies[0]).expand(len(copies), *copies[0].shape)
        return self._placed(slot, torch.stack([self._padded(a, slot) for a in self.block]))

    def _trained_entries(self, assignment: Assignment) -> Tensor:
        """One row of the mask, (P,)."""
        entries = []
        for slot, shape in self._each_trained():
            one = torch.zeros(shape)
            if slot in assignment.trains:
                one[tuple(map(slice, assignment.tensors[slot].shape))] = 1
            entries.append(one.flatten())
        return torch.cat(entries)


def _cut(slot: Slot, tensor: Tensor, shape: torch.Size) -> Tensor:
    return tensor if tensor.shape == shape else fit_rank(tensor, slot.factor, shape[RANK_AXIS[slot.factor]])


def _widest(tensors: Sequence[Tensor]) -> torch.Size:
    return max((tensor.shape for tensor in tensors), key=lambda shape: shape.numel())


class Received(Mapping[Slot, Tensor]):
    """What clients received, put on the device when an objective looks at it first: most never do."""

    def __init__(self, make: Callable[[], Mapping[Slot, Tensor]]):
        self._make = make

    @cached_property
    def _tensors(self) -> Mapping[Slot, Tensor]:
        return self._make()

    def __getitem__(self, slot: Slot) -> Tensor:
        return self._tensors[slot]

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class StackedOptimizer:
    """Steps all clients of a stack, each with its own rate, decay, clipping and mask.

    torch's optimiser sees a tensor of zeros, takes a step of size 1 without decay, and so leaves there minus the
    direction in which AdamW or SGD would go. We take it at each client's own rate. It is the *update* that is masked:
    a masked gradient would not do, for AdamW decays and keeps moving entries whose gradient is zero.
    """

    def __init__(self, stack: Stack):
        self.stack, self.locals = stack, [assignment.local for assignment in stack.block]
        if len({(local.optimizer, local.momentum) for local in self.locals}) != 1:
            raise ValueError("Clients of a block may differ in anything but optimizer and momentum.")
        self.is_sgd = self.locals[0].optimizer == "sgd"
        self.direction = torch.zeros_like(stack.values)
        self.direction.grad = torch.zeros_like(stack.values)
        if self.is_sgd:
            self.unit: torch.optim.Optimizer = torch.optim.SGD(
                [self.direction], lr=1.0, momentum=self.locals[0].momentum
            )
        else:
            self.unit = torch.optim.AdamW([self.direction], lr=1.0, weight_decay=0.0, fused=True)
        rate = stack.rates(self._column([local.learning_rate for local in self.locals]))
        self.rate = rate if stack.mask is None else rate * stack.mask
        self.decay = self._column([local.weight_decay for local in self.locals])
        limits = [local.clip_norm or torch.inf for local in self.locals]
        self.clip_norm = self._column(limits) if min(limits) < torch.inf else None

    @property
    def gradients(self) -> Tensor:
        """Where gradients (K, P) are put before a step."""
        assert self.direction.grad is not None
        return self.direction.grad

    @torch.no_grad()
    def step(self, active: int) -> None:
        """Move the first `active` clients by their gradients; the others have finished and stay."""
        values, gradients = self.stack.values[:active], self.gradients[:active]
        if self.stack.corrections is not None:
            gradients.add_(self.stack.corrections[:active])
        if self.clip_norm is not None:
            trained = gradients if self.stack.mask is None else gradients * self.stack.mask[:active]
            norms = torch.linalg.vector_norm(trained, dim=1, keepdim=True)
            gradients.mul_((self.clip_norm[:active] / (norms + 1e-6)).clamp(max=1))
        if self.is_sgd:
            gradients.addcmul_(self.decay[:active], values)
        self.direction.zero_()
        self.unit.step()
        if not self.is_sgd:
            values.mul_(1 - self.rate[:active] * self.decay[:active])
        values.addcmul_(self.direction[:active], self.rate[:active])

    def _column(self, numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, device=self.stack.device, dtype=torch.float32).unsqueeze(1)
