"""The one form in which tensors travel between workers and lie in checkpoints: safetensors, never pickle."""

import hashlib
from collections.abc import Callable, Mapping

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


def digest_of(tensors: Mapping[str, Tensor | Callable[[], Tensor]]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of tensors, in the order of their names.

    Functions are called one after another, so that what they return need not fit into memory together.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        found = tensors[name]
        tensor = (found if isinstance(found, Tensor) else found()).detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def structure_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types and shapes of tensors: equal where nothing is missing, added or reshaped."""
    lines = [f"{name}|{tensor.dtype}|{tuple(tensor.shape)}" for name, tensor in sorted(tensors.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
