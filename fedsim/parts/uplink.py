"""What a client sends is encoded: few entries of its change (top-k), few bits of each; for any method.

    Δ = (what was trained) − (what was received), of all shared slots together;  the server gets  received + decode(Δ)

Top-k keeps the entries of largest magnitude (arXiv 1712.01887; of LoRA: FLASC, 2406.05233). Quantisation rounds each
tensor's entries to 2^(bits−1) − 1 levels on either side of 0, up or down at random so that the mean is right (QSGD,
arXiv 1610.02132, with the largest magnitude as scale). With error feedback (arXiv 1809.07599) a client adds what it did
not send to its next change.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.adapters.layout import Slot
from fedsim.options import check_options, out_of_range, refuse
from fedsim.parts.privacy import Guard
from fedsim.randomness import generator
from fedsim.round import Assignment, ClientUpdate

WHOLE = 32
"""Bits of a number that is sent as it is."""
BITS = 8
"""Of a byte."""


@dataclass(frozen=True, kw_only=True)
class Uplink:
    """How what a client sends is encoded."""

    top_k: float = 1.0
    """Share of the entries of a client's change that are sent, those of largest magnitude."""
    bits: int = WHOLE
    """Bits of an entry: 2 to 16, rounded at random without bias, or 32 for numbers as they are."""
    feedback: bool = False
    """Whether a client adds what it did not send to its next change (error feedback)."""

    def __post_init__(self) -> None:
        check_options(self, "uplink")
        problems = out_of_range(self, {"lie in (0, 1]": ("top_k",)})
        if self.bits not in (*range(2, 17), WHOLE):
            problems.append(f"bits is {self.bits}; it must lie in 2 … 16, or be {WHOLE}")
        if self.feedback and self.is_off:
            problems.append("feedback is on and everything is sent as it is; choose top_k or bits too")
        refuse(problems, "--uplink.*")

    @property
    def is_off(self) -> bool:
        """Whether everything is sent as it is."""
        return self.top_k == 1 and self.bits == WHOLE

    def bytes(self, sizes: Sequence[int]) -> int:
        """Return what tensors of so many entries take together, on the wire.

        The entries that are sent, their places (numbers of their bits or one bit an entry, whichever is shorter), and
        a scale for each tensor.
        """
        n = sum(sizes)
        k = self._kept(n)
        places = 0 if k == n else min(k * max(1, (n - 1).bit_length()), n)
        return math.ceil(k * self.bits / BITS) + math.ceil(places / BITS) + (4 * len(sizes) if self.bits < WHOLE else 0)

    def encoded(self, change: Mapping[Slot, Tensor], random: torch.Generator) -> dict[Slot, Tensor]:
        """Return a change as it arrives, of the same shapes."""
        sizes, shapes = [tensor.numel() for tensor in change.values()], [tensor.shape for tensor in change.values()]
        flat = torch.cat([tensor.flatten() for tensor in change.values()])
        if (k := self._kept(len(flat))) < len(flat):
            kept = flat.abs().topk(k).indices
            flat = torch.zeros_like(flat).index_copy(0, kept, flat[kept])
        parts = [self._rounded(part, random) if self.bits < WHOLE else part for part in torch.split(flat, sizes)]
        return {slot: part.view(shape) for slot, part, shape in zip(change, parts, shapes, strict=True)}

    def _kept(self, n: int) -> int:
        return n if self.top_k == 1 else min(n, math.ceil(self.top_k * n))

    def _rounded(self, values: Tensor, random: torch.Generator) -> Tensor:
        levels, scale = 2 ** (self.bits - 1) - 1, values.abs().max()
        if not bool(scale > 0):  # zero, or no number at all, which whoever looks for such finds
            return values
        noise = torch.rand(values.shape, generator=random)
        return (values / scale * levels + noise).floor().clamp(-levels, levels) * (scale / levels)


def kept_back(slot: Slot) -> Slot:
    """Return where a client keeps what it did not send of a slot."""
    return slot._replace(tier=f"kept:{slot.tier}")


def sent_by(
    uplink: Uplink,
    guard: Guard,
    update: ClientUpdate,
    assignment: Assignment,
    shared: Sequence[Slot],
    seed: int,
    stage: str,
) -> ClientUpdate:
    """Return a client's update as it arrives, and what it keeps back: clipped and noised, then encoded.

    `shared` are the slots that leave it; the others are as they were.
    """
    trained = {slot: update.tensors[slot] - assignment.tensors[slot] for slot in shared if slot in update.tensors}
    if not trained:
        return update
    whole = {slot: moved + assignment.kept.get(slot, 0) for slot, moved in trained.items()}
    of = seed, assignment.round_index, update.client
    change = guard.released(whole, _random("privacy", stage, *of))
    if uplink.is_off and change is whole:
        return update
    encoded = change if uplink.is_off else uplink.encoded(change, _random("uplink", stage, *of))
    arrived = guard.bounded(encoded)
    tensors = {slot: assignment.tensors[slot] + moved for slot, moved in arrived.items()}
    kept = {slot: change[slot] - moved for slot, moved in encoded.items()} if uplink.feedback else {}
    return replace(update, tensors={**update.tensors, **tensors}, kept=kept)


def _random(purpose: str, stage: str, seed: int, round_index: int, client: int) -> torch.Generator:
    return generator(seed, f"{purpose}/{stage}", round_index, client)
