"""The processes of a run, and how bytes move between them. All collectives live here."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fedsim.adapters.wire import pack, unpack


@dataclass(frozen=True)
class Workers:
    """The processes of this run: `index` is this one's `fabric.global_rank`."""

    index: int = 0
    count: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is worker 0, the server."""
        return self.index == 0

    @staticmethod
    def is_first_or_alone() -> bool:
        """Whether this process may look at the run folder: worker 0, or any before there is a process group."""
        return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0

    @classmethod
    def from_environment(cls) -> "Workers":
        """Return all processes of the running process group, or one worker when there is none."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"))

    def broadcast(self, payload: bytes | None) -> bytes:
        """Give worker 0's bytes to everyone."""
        if self.count == 1:
            assert payload is not None
            return payload
        length = torch.tensor([len(payload) if payload is not None else 0])
        dist.broadcast(length, 0, group=self.group)
        buffer = as_tensor(payload) if payload is not None else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(buffer, 0, group=self.group)
        return buffer.numpy().tobytes()

    def share(self, tensors: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        """Give worker 0's tensors to everyone."""
        if self.count == 1:
            assert tensors is not None
            return tensors
        return unpack(self.broadcast(None if tensors is None else pack(tensors)))

    def gather(self, payload: bytes) -> list[bytes]:
        """Return every worker's bytes on worker 0, in worker order, and nothing elsewhere."""
        if self.count == 1:
            return [payload]
        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.count)]
        dist.all_gather(lengths, torch.tensor([len(payload)]), group=self.group)
        widest = int(max(lengths))
        buffer = torch.zeros(widest, dtype=torch.uint8)
        buffer[: len(payload)] = as_tensor(payload)
        buffers = [torch.empty(widest, dtype=torch.uint8) for _ in range(self.count)] if self.index == 0 else None
        dist.gather(buffer, buffers, 0, group=self.group)
        return [b[: int(n)].numpy().tobytes() for b, n in zip(buffers or [], lengths, strict=False)]

    def all_numbers(self, number: int) -> list[int]:
        """Return every worker's number, on every worker."""
        gathered = self.gather(str(number).encode())
        payload = b" ".join(gathered) if self.is_first else None
        return [int(text) for text in self.broadcast(payload).split()]


def as_tensor(payload: bytes) -> Tensor:
    """Return bytes as a tensor (len(payload),) of uint8."""
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8)
