"""Updates as bytes and back, and in the units in which the server merges them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fedsim.adapters.layout import Slot, parse_slot
from fedsim.distributed.workers import bytes_as_tensor
from fedsim.round import ClientUpdate
from fedsim.storage.wire import pack, unpack


def scaled_update(update: ClientUpdate, factor: str | None, scale: float, power: int = 1) -> ClientUpdate:
    """Return the update in units of what adapters do: one factor times the scale α/R, its gradient divided by it.

    `power` is 2 where squares of gradients were measured.
    """
    if scale == 1:
        return update
    tensors = {slot: t * scale if slot.factor == factor else t for slot, t in update.tensors.items()}
    measured = {slot: t / scale**power if slot.factor == factor else t for slot, t in update.measured.items()}
    return replace(update, tensors=tensors, measured=measured)


def pack_updates(updates: Sequence[ClientUpdate]) -> bytes:
    """Return what `unpack_updates` reads."""
    tensors = {f"{u.client}|{slot}|": t.contiguous() for u in updates for slot, t in u.tensors.items()}
    tensors |= {f"{u.client}|{slot}|measured": t.contiguous() for u in updates for slot, t in u.measured.items()}
    tensors |= {f"{u.client}|{slot}|kept": t.contiguous() for u in updates for slot, t in u.kept.items()}
    logs = {str(update.client): [update.n_samples, update.logs] for update in updates}
    return pack(tensors | {"logs": bytes_as_tensor(json.dumps(logs).encode())})


def unpack_updates(payload: bytes) -> list[ClientUpdate]:
    """Return the updates that `pack_updates` wrote."""
    tensors: Mapping[str, Tensor] = unpack(payload)
    parts: dict[tuple[str, str], dict[Slot, Tensor]] = {}
    for key in sorted(tensors.keys() - {"logs"}):  # safetensors returns them in no particular order
        client, slot, part = key.split("|")
        parts.setdefault((client, part), {})[parse_slot(slot)] = tensors[key]
    logs = json.loads(tensors["logs"].numpy().tobytes())

    def of(part: str, client: str) -> dict[Slot, Tensor]:
        return parts.get((client, part), {})

    return [
        ClientUpdate(int(client), n, of("", client), entries, of("measured", client), of("kept", client))
        for client, (n, entries) in logs.items()
    ]
