"""Where a backbone comes from: the loader and arguments that build it again, and a hash of its weights.

Only the loaders of fedsim/models that are marked by `known` are ever called again, with plain words and numbers.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

ORIGIN = "origin"
"""Attribute of a backbone that holds its `Origin`."""
LOADERS: dict[str, Callable[..., nn.Module]] = {}
"""The loaders that may be called again, by name."""
PLAIN = str | int | bool | None

Loader = TypeVar("Loader", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class Origin:
    """The loader of a backbone, its arguments, and what others call the model: a name on the hub or a path.

    Raises ValueError for a loader that is not marked as `known`, or arguments that it does not take.
    """

    loader: str = ""
    arguments: Mapping[str, PLAIN] = field(default_factory=dict)
    base: str | None = None

    def __post_init__(self) -> None:
        if self.loader and self.loader not in LOADERS:
            raise ValueError(f"no loader of fedsim is called {self.loader!r}")
        wanted = signature(LOADERS[self.loader]).parameters if self.loader else {}
        if set(self.arguments) - set(wanted) or not all(isinstance(v, PLAIN) for v in self.arguments.values()):
            raise ValueError(f"the loader {self.loader!r} cannot be called with {str(self.arguments)[:200]}")

    def lines(self) -> str:
        """Return the lines of Python that build the backbone as `backbone`; none where nobody knows how."""
        if not self.loader:
            return ""
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        used = "" if self.arguments.get("bits") else ".float()"  # a file may store weights in half precision
        return f"from {LOADERS[self.loader].__module__} import {self.loader}\n\nbackbone = {self.loader}({given}){used}"


def known(base: Callable[..., str | None]) -> Callable[[Loader], Loader]:
    """Mark a loader whose backbones remember how they were built.

    `base` tells from the loader's arguments what others call the model, None where nobody else has these weights.
    """

    def mark(loader: Loader) -> Loader:
        @wraps(loader)
        def load(*args: Any, **options: Any) -> nn.Module:
            model = loader(*args, **options)
            bound = signature(loader).bind(*args, **options)
            bound.apply_defaults()
            plain = {n: v if v is None or isinstance(v, str | int) else str(v) for n, v in bound.arguments.items()}
            setattr(model, ORIGIN, Origin(loader.__name__, plain, base(**bound.arguments)))
            return model

        LOADERS[loader.__name__] = load
        return load  # type: ignore[return-value]

    return mark


def origin_of(backbone: nn.Module) -> Origin:
    """Return what a backbone's loader noted, an empty origin for one that no loader of fedsim built."""
    found = getattr(backbone, ORIGIN, None)
    return found if isinstance(found, Origin) else Origin()


def rebuilt(origin: Origin) -> nn.Module:
    """Return the backbone that the loader builds; raises ValueError where none is known."""
    if not origin.loader:
        raise ValueError("The backbone was built by no loader of fedsim; give its weights by --backbone FILE.")
    return LOADERS[origin.loader](**origin.arguments)


def weights_digest(state: Mapping[str, Tensor], leave_out: Collection[str] = ()) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of a state dict, in the order of names.

    Tensors of the names to `leave_out`, a classifier's, do not count.
    """
    digest = hashlib.sha256()
    for name in sorted(set(state) - set(leave_out)):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()
