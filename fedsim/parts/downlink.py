"""What a client receives is sparse: the largest entries of all shared copies together (FLASC, arXiv 2406.05233).

    received = top-k(P);   the client trains all entries, to P';   the server goes on from  P + (P' − received)

P is what the server holds, and it loses nothing: entries that were not sent are 0 for the client alone. With top-k of
what goes up (`parts/uplink.py`) FedIT is FLASC.

Done otherwise: the released code sends the classifier whole, and rounds the number of entries down; here the classifier
is shared like the rest, and rounding is up. Evaluated is P; that code evaluates what it would send.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.adapters.layout import Slot
from fedsim.options import check_options, out_of_range, refuse
from fedsim.parts.uplink import Uplink
from fedsim.round import Assignment, ClientUpdate


@dataclass(frozen=True, kw_only=True)
class Downlink:
    """How what clients receive is encoded."""

    top_k: float = 1.0
    """Share of the entries of shared copies that a client receives, those of largest magnitude; the others are 0."""

    def __post_init__(self) -> None:
        check_options(self, "downlink")
        refuse(out_of_range(self, {"lie in (0, 1]": ("top_k",)}), "--downlink.*")

    @property
    def is_off(self) -> bool:
        """Whether everything is sent as it is."""
        return self.top_k == 1

    def bytes(self, sizes: Sequence[int]) -> int:
        """Return what tensors of so many entries take together: entries and their places, as upwards."""
        return Uplink(top_k=self.top_k).bytes(sizes) if sizes else 0

    def received(self, copies: Mapping[Slot, Tensor]) -> dict[Slot, Tensor]:
        """Return copies as they arrive, of the same shapes."""
        return Uplink(top_k=self.top_k).encoded(copies, torch.Generator()) if copies else {}


def from_dense(update: ClientUpdate, assignment: Assignment) -> ClientUpdate:
    """Return an update as if its client had received all entries: the same change of what the server holds."""
    if not assignment.withheld:
        return update
    tensors = {slot: t + assignment.withheld.get(slot, 0) for slot, t in update.tensors.items()}
    return replace(update, tensors=tensors)
