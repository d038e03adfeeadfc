"""The copy of a backbone that workers use under autocast: linear weights in the type in which they are multiplied."""

from copy import deepcopy

import torch
from torch import Tensor, nn


def check_apart(backbone: nn.Module) -> None:
    """Raise ValueError where a norm takes the statistics of its batch, so that no sample has a gradient of its own."""
    for path, module in backbone.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"'{path}' normalises by the statistics of a batch, and DP-SGD needs each sample's own gradient; use "
                "one that keeps running statistics, or a layer norm (--local.sample-clip None)."
            )


def cast_linears(backbone: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of a backbone on a device, with the weights and biases of its linear maps in autocast's type.

    Autocast casts frozen weights anew whenever they are used, and here that is done once: the same bits in half the
    memory and fewer kernels. Embeddings, norms and weights that such a module shares with a linear map keep their type.
    Where what stays as it is lies on the device already, the copy shares it. The backbone itself is returned without
    autocast, and where some of its weights are kept in few bits.
    """
    parameters = {id(parameter): parameter for parameter in backbone.parameters()}
    if not torch.is_autocast_enabled(device.type) or not all(p.is_floating_point() for p in parameters.values()):
        return backbone
    owned = [(id(p), type(m) is nn.Linear) for m in backbone.modules() for p in m.parameters(recurse=False)]
    others = {key for key, is_linear in owned if not is_linear}
    dtype = torch.get_autocast_dtype(device.type)
    memo: dict[int, Tensor] = {id(buffer): buffer.to(device) for buffer in backbone.buffers()}
    for key, parameter in parameters.items():
        moved = parameter.detach().to(device, parameter.dtype if key in others else dtype)
        memo[key] = nn.Parameter(moved, requires_grad=False)
    return deepcopy(backbone, memo)
