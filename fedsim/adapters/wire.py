"""The one form in which tensors travel between workers and lie in checkpoints: safetensors, never pickle."""

from collections.abc import Mapping

from safetensors.numpy import save
from safetensors.torch import load
from torch import Tensor


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Return CPU tensors as bytes.

    By way of NumPy: `safetensors.torch.save` keeps about 6 kB for ever for every buffer size it has not met before.
    """
    return save({name: tensor.detach().contiguous().numpy() for name, tensor in tensors.items()})


def unpack(payload: bytes) -> dict[str, Tensor]:
    """Return what `pack` was given, in no particular order; raises SafetensorError for bytes that it did not write."""
    return load(payload)
