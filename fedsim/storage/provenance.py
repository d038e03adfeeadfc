"""With what a run was made: package versions, git revision, script and arguments; data and weights by fingerprint."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path, PurePath
from types import CodeType, FunctionType, MethodType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

PACKAGES = (
    "fedsim-lora",
    "torch",
    "lightning",
    "timm",
    "transformers",
    "peft",
    "datasets",
    "scikit-learn",
    "scipy",
    "numpy",
)
PLAIN = (str, bytes, int, float, complex, bool, type(None), Enum, PurePath, torch.dtype, torch.device)
VALUES = (*PLAIN, Tensor, np.ndarray, tuple, list)
PIECE = 2**24
"""Bytes that are hashed at once. Another number makes other fingerprints."""
REMEMBERED = 2**20
"""Bytes from which on a tensor's hash is kept while the tensor lives: many runs of a process use the same one."""

_hashes: Any = WeakTensorKeyDictionary()


@runtime_checkable
class Hashed(Protocol):
    """What knows by itself, and sooner, what it is told from others by."""

    def hashed(self) -> bytes:
        """Return what stands for it in a fingerprint."""


def environment() -> dict[str, Any]:
    """Return package versions, the git revision of the code (with a mark when files differ) and what was started."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    started = {"script": str(Path(script).absolute()) if script else "", "arguments": sys.argv[1:]}
    return {"versions": {package: _version(package) for package in PACKAGES}, "git": _revision(), **started}


@functools.cache  # what is imported stays; to read the versions took a fifth of a small run
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def _revision() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def fingerprint(content: Any) -> str:
    """Return the SHA-256, in hexadecimal, of all that this holds: every byte of every tensor, and what describes it.

    `content` may be nested: tensors, numbers, texts, sequences, mappings, dataclasses, modules and functions, of which
    count what they close over and, but for fedsim's own, their bytecode and the constants that it names. Of any other
    object the class counts. A tensor that NumPy wrote to since its last fingerprint may keep that one.
    """
    parts = list(_parts(content, set()))
    hashes = iter(_tensor_hashes([part for part in parts if isinstance(part, Tensor)]))
    digest = hashlib.sha256()
    for part in parts:
        digest.update(next(hashes) if isinstance(part, Tensor) else part)
    return digest.hexdigest()


def _tensor_hashes(tensors: Sequence[Tensor]) -> list[bytes]:
    """Return the SHA-256 over type, shape and pieces of each tensor, with this worker's share of the machine's cores.

    Pieces are cut along the first dimension, so that nothing is copied whole.
    """
    share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    with ThreadPoolExecutor(max(1, share)) as pool:  # hashlib lets other threads work meanwhile
        begun = [_known(tensor) or [pool.submit(_piece_hash, piece) for piece in _pieces(tensor)] for tensor in tensors]
        found = []
        for tensor, pieces in zip(tensors, begun, strict=True):
            if not isinstance(pieces, bytes):
                header = f"{tensor.dtype}|{tuple(tensor.shape)}|".encode()
                pieces = hashlib.sha256(header + b"".join(piece.result() for piece in pieces)).digest()
            if tensor.nbytes >= REMEMBERED and not tensor.is_inference():
                _hashes[tensor] = tensor._version, pieces
            found.append(pieces)
    return found


def _known(tensor: Tensor) -> bytes | None:
    version, found = _hashes.get(tensor, (None, None))
    return found if found and version == tensor._version else None


def _pieces(tensor: Tensor) -> Sequence[Tensor]:
    if tensor.is_meta or not tensor.numel():
        return ()
    plain = tensor.detach().as_subclass(Tensor)  # a quantised weight has a way of its own to be cut
    rows = plain if plain.ndim else plain.reshape(1)
    return rows.split(max(1, PIECE // max(1, rows[0].nbytes)))


def _piece_hash(piece: Tensor) -> bytes:
    return hashlib.sha256(piece.cpu().contiguous().flatten().view(torch.uint8).numpy()).digest()


def _parts(content: Any, seen: set[int]) -> Iterator[bytes | Tensor]:
    """Yield what tells one content from another, in order: bytes, and tensors as they are."""
    if isinstance(content, Tensor):
        yield b"tensor "
        yield content
    elif isinstance(content, PLAIN):
        yield f"{type(content).__name__} {content!r}\n".encode()
    elif isinstance(content, np.ndarray | np.generic) and content.dtype.kind in "biufc":
        yield f"array {content.dtype.str} {content.shape} ".encode() + content.tobytes()
    elif isinstance(content, Hashed):
        yield content.hashed()
    elif isinstance(content, frozenset | set):
        yield from _parts(sorted(map(repr, content)), seen)
    elif id(content) not in seen:  # and a circle ends
        kind, inner = _inside(content)
        yield f"{kind} {len(inner)}\n".encode()
        for part in inner:
            yield from _parts(part, seen | {id(content)})


def _inside(content: Any) -> tuple[str, Sequence[Any]]:
    """Return what an object is called and what it is made of."""
    named = content if hasattr(content, "__qualname__") else type(content)
    kind = f"{named.__module__}.{named.__qualname__}"
    if isinstance(content, Mapping):
        return "mapping", [part for item in content.items() for part in item]
    if isinstance(content, Sequence):
        return "sequence", content
    if isinstance(content, MethodType):
        return kind, [content.__self__]
    if isinstance(content, functools.partial):
        return kind, [content.func, content.args, content.keywords]
    if isinstance(content, CodeType):
        return "code", [content.co_code, content.co_names, content.co_consts]
    if isinstance(content, FunctionType):
        return kind, [content.__defaults__, content.__kwdefaults__, *_closed_over(content), *_code_of(content)]
    if isinstance(content, nn.Module):
        own = {name: value for name, value in vars(content).items() if not name.startswith("_")}
        return kind, [own, content._parameters, content._buffers, content._modules]
    is_made = not isinstance(content, type) and (dataclasses.is_dataclass(content) or callable(content))
    return kind, [getattr(content, "__dict__", {})] if is_made else []


def _closed_over(function: FunctionType) -> list[Any]:
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # it is not filled yet
            cells.append(None)
    return cells


def _code_of(function: FunctionType) -> list[Any]:
    """The bytecode of a user's function and the constants of its module that it names; nothing of fedsim's own."""
    if function.__module__.partition(".")[0] == "fedsim":  # its revision is recorded, and may differ
        return []
    named = [function.__globals__.get(name) for name in function.__code__.co_names]
    return [function.__code__, [value for value in named if isinstance(value, VALUES)]]
