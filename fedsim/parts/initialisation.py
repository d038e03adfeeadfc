"""How a fresh adapter starts."""

import math

import torch
from torch import Tensor

from fedsim.adapters.layout import Layout, Slot


def lora_initial(layout: Layout, generator: torch.Generator) -> dict[Slot, Tensor]:
    """Return the shared start of every slot: A uniform in ±1/√I, as in LoRA (arXiv 2106.09685); B, W and b zero.

    So every tier starts as the identity, and all clients of a tier start alike.
    """
    initial = {}
    for slot, shape in layout.shapes.items():
        if slot.factor == "A":
            bound = 1 / math.sqrt(shape[-1])
            initial[slot] = torch.rand(shape, generator=generator).mul_(2 * bound).sub_(bound)
        else:
            initial[slot] = torch.zeros(shape)
    return initial
