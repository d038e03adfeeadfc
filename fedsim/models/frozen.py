"""The copy of a backbone that workers use: on their device, its weights in the types in which they are used."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from fedsim.adapters.layout import HALVES, widened


def check_apart(backbone: nn.Module) -> None:
    """Raise ValueError where a norm takes the statistics of its batch, so that no sample has a gradient of its own."""
    for path, module in backbone.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"'{path}' normalises by the statistics of a batch, and DP-SGD needs each sample's own gradient; use "
                "one that keeps running statistics, or a layer norm (--local.sample-clip None)."
            )


def cast_weights(backbone: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of a backbone on a device: linear maps in autocast's type, and nothing in half precision otherwise.

    Autocast casts frozen weights anew whenever they are used, and here that is done once: the same bits in half the
    memory and fewer kernels. Embeddings, norms and weights that such a module shares with a linear map keep their type,
    but that of a file which stores them in half precision: they are used in fp32, as all are without autocast.
    Tensor by tensor is moved as it is stored and cast on the device, so a GPU needs no second copy in host memory.
    Where what stays as it is lies on the device already, the copy shares it. The backbone itself is returned where
    nothing changes its type, and where some of its weights are kept in few bits.
    """
    parameters = {id(parameter): parameter for parameter in backbone.parameters()}
    is_autocast = torch.is_autocast_enabled(device.type)
    has_halves = any(parameter.dtype in HALVES for parameter in parameters.values())
    has_few_bits = not all(parameter.is_floating_point() for parameter in parameters.values())
    if has_few_bits or not (is_autocast or has_halves):
        return backbone
    owned = [(id(p), type(m) is nn.Linear) for m in backbone.modules() for p in m.parameters(recurse=False)]
    others = {key for key, is_linear in owned if not is_linear or not is_autocast}
    dtype = torch.get_autocast_dtype(device.type)
    memo: dict[int, Tensor] = {id(buffer): widened(buffer.to(device)) for buffer in backbone.buffers()}
    for key, parameter in parameters.items():
        moved = parameter.detach().to(device)
        memo[key] = nn.Parameter(widened(moved) if key in others else moved.to(dtype), requires_grad=False)
    return deepcopy(backbone, memo)
