"""A backbone whose own weights take adapters in: to start a federation from one, and to leave the program merged."""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fedsim.adapters.layout import Site, widened
from fedsim.adapters.linear import TieredLinear
from fedsim.adapters.peft_folder import read_adapter
from fedsim.adapters.single import HeadChange, LowRankChange

STARTED_FROM = "started_from"
"""Attribute of a backbone that holds the adapter that was merged into it, so that an export can hold it too."""


def start_from_adapter(backbone: nn.Module, folder: Path | None) -> nn.Module:
    """Merge a PEFT adapter into a backbone, in place, and return it; None leaves it as it is.

    The sum W + (α/R) B A is formed in double precision; the classifier is replaced where the folder holds one. Raises
    ValueError when the folder is not a plain LoRA in safetensors that fits the backbone, which then stays as it was.
    """
    if folder is None:
        return backbone
    if getattr(backbone, STARTED_FROM, None):
        raise ValueError(f"The backbone has an adapter merged into it already; '{folder}' would be a second one.")
    state = _own_state(backbone)
    adapter = read_adapter(folder, {name: tensor.shape for name, tensor in state.items()})
    if whole := [name for name in adapter.changes if not state[f"{name}.weight"].is_floating_point()]:
        raise ValueError(f"The weight of '{whole[0]}' is kept in few bits, so no adapter can be merged into it.")
    for name in (*adapter.whole, *(f"{module}.weight" for module in adapter.changes)):
        state[name].data = widened(state[name].data)  # no half precision could hold the sum
    for name, tensor in adapter.whole.items():
        state[name].data.copy_(tensor)
    for module, change in adapter.changes.items():
        _add(state[f"{module}.weight"], change.product())
    setattr(backbone, STARTED_FROM, adapter.changes)
    return backbone


def started_from(backbone: nn.Module) -> Mapping[str, LowRankChange]:
    """Return the changes of the adapter that was merged into a backbone at its start."""
    changes: Mapping[str, LowRankChange] = getattr(backbone, STARTED_FROM, {})
    return changes


def linear_at(backbone: nn.Module, path: str) -> nn.Linear:
    """Return the frozen linear map at a path, also where adapters wrap it."""
    module = backbone.get_submodule(path)
    linear = module.base if isinstance(module, TieredLinear) else module
    assert isinstance(linear, nn.Linear)
    return linear


def heads_of(backbone: nn.Module, sites: tuple[Site, ...]) -> dict[str, Tensor]:
    """Return the frozen classifier, `<module>.weight` and `.bias`.

    PEFT takes every module for the classifier whose path ends in its path, so those come along as they are.
    """
    tensors: dict[str, Tensor] = {}
    heads = tuple(site.module for site in sites if site.is_head)
    alike = [path for path, _ in backbone.named_modules() if path.endswith(heads) and not path.endswith(".base")]
    for path in alike if heads else ():
        inside = backbone.get_submodule(path).state_dict()
        tensors |= {f"{path}.{name.removeprefix('base.')}": tensor.clone() for name, tensor in inside.items()}
    return tensors


def changed_heads(heads: Mapping[str, Tensor], changes: Mapping[str, HeadChange]) -> dict[str, Tensor]:
    """Return a classifier with a client's changes, also where nothing changed."""
    tensors = {name: widened(tensor.clone()) for name, tensor in heads.items()}
    for path, change in changes.items():
        _add(tensors[f"{path}.weight"], change.weight)
        if change.bias is not None:
            _add(tensors[f"{path}.bias"], change.bias)
    return tensors


def library_state(backbone: nn.Module) -> dict[str, Tensor]:
    """Return the backbone's state dict as its library names and stores it; views, not copies."""
    state = {name: tensor.detach() for name, tensor in _own_state(backbone).items()}
    return state | {f"{path}.weight": state[f"{path}.weight"].T for path in transposed(backbone)}


def transposed(backbone: nn.Module) -> list[str]:
    """Return the maps that transformers keeps the other way round, GPT-2's."""
    named = backbone.named_modules()
    return [path.removesuffix(".base") for path, module in named if getattr(module, "was_convolution", False)]


def with_changes(
    state: Mapping[str, Tensor], changes: Mapping[str, LowRankChange], turned: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return a copy of a library's state dict with changes added; `turned` are the maps kept the other way round.

    Tensors that share memory are copied; those in half precision that change become fp32. Raises ValueError for weights
    in few bits.
    """
    state = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
    for module, change in changes.items():
        weight = state[f"{module}.weight"] = widened(state[f"{module}.weight"])
        if not weight.is_floating_point():
            raise ValueError(
                f"The weight of '{module}' is kept in few bits, so nothing can be merged into it (--merged)."
            )
        _add(weight.T if module in turned else weight, change.product())
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _own_state(backbone: nn.Module) -> dict[str, Tensor]:
    """The backbone's own parameters and buffers under its own names, also where adapters wrap a map."""
    wrapped = {path for path, module in backbone.named_modules() if isinstance(module, TieredLinear)}
    state = {}
    for name, tensor in backbone.state_dict(keep_vars=True).items():
        path, _, leaf = name.rpartition(".base.")
        state[f"{path}.{leaf}" if path in wrapped else name] = tensor
    return state


def _add(weight: Tensor, change: Tensor) -> None:
    with torch.no_grad():
        weight.copy_(weight.double() + change.double().to(weight.device))
