"""Counts what a sample costs on a backbone, from one forward pass: FLOPs and what backward needs, depth by depth."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.adapters.layout import HALVES, Site, byte_count, widened
from fedsim.adapters.linear import TieredLinear
from fedsim.costs.step_cost import Piece, Profile

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

BACKWARD = {"bmm": 2.0, "baddbmm": 2.0, "scaled_dot_product": 2.5}
"""FLOPs of the backward pass over those of the forward pass, for products of two activations. Fused attention computes
its scores again. A product with a frozen weight costs as much again, 1."""
LARGE = 2**31
"""Bytes in fp32 of a backbone in CPU memory, or of one in half precision, which would be copied, from which on a pass
knows shapes only, and computes nothing: a LLaMA of 7 B would take minutes on one thread."""
_DONE: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Profile]] = WeakKeyDictionary()
"""Profiles of the backbones that there are, by all that they depend on: sites, inputs' shape and type, and weights."""


def profile(backbone: nn.Module, sites: Sequence[Site], inputs: Tensor) -> Profile:
    """Return what a sample costs, from one forward pass of `inputs` (B, ...), as the backbone takes them.

    The backbone is frozen first, as it is for training. The many runs of a comparison share one pass.
    """
    backbone.requires_grad_(False).eval()
    for module in backbone.modules():
        if isinstance(module, TieredLinear):  # of a run before
            module.install({}, {})
    done = _DONE.setdefault(backbone, {})
    key = (*sites, inputs.shape, inputs.dtype, byte_count(backbone.parameters()))
    if key not in done:
        done[key] = _measured(backbone, sites, inputs)
    return done[key]


def _measured(backbone: nn.Module, sites: Sequence[Site], inputs: Tensor) -> Profile:
    from torch._subclasses.fake_tensor import FakeTensorMode

    named = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    halves = byte_count(parameter for parameter in backbone.parameters() if parameter.dtype in HALVES)
    if (halves or inputs.device.type == "cpu") and byte_count(backbone.parameters()) + halves >= LARGE:
        # A backbone that goes by values has none to go by, or one without a rule for shapes alone: it is run after all.
        with suppress(Exception), FakeTensorMode(allow_non_fake_inputs=True) as fake:
            shapes = {name: widened(fake.from_tensor(tensor)) for name, tensor in named.items()}
            return _run(backbone, sites, fake.from_tensor(inputs), shapes)
    return _run(backbone, sites, inputs, {name: widened(tensor) for name, tensor in named.items()})


def _run(backbone: nn.Module, sites: Sequence[Site], inputs: Tensor, weights: Mapping[str, Tensor]) -> Profile:
    from torch.utils.flop_counter import FlopCounterMode  # triton with it

    pass_ = _Pass(weights)
    hooks = []
    for path, site in {site.module: site for site in sites}.items():
        hooks.append(backbone.get_submodule(path).register_forward_pre_hook(pass_.enters(site)))
        if site.depth == min(site.depth for site in sites):
            hooks.append(backbone.get_submodule(path).register_forward_hook(_begin_backward))
    try:
        with torch.enable_grad(), FlopCounterMode(display=False) as pass_.counter:
            with torch.autograd.graph.saved_tensors_hooks(pass_.keep, lambda nothing: nothing):  # there is no backward
                functional_call(backbone, dict(weights), (inputs,))
            pass_.leave()
    finally:
        for hook in hooks:
            hook.remove()
    n = len(inputs)
    tokens = {site.name: pass_.inputs[site.module][0] // n // site.in_features for site in sites}
    kept = {site.name: pass_.inputs[site.module][1] // n for site in sites}
    pieces = {depth: Piece(*(number // n for number in pass_.sums[depth])) for depth in pass_.sums if depth is not None}
    before = pass_.sums.get(None, [0])[0] // n
    own = byte_count(weights[name] for name, _ in backbone.named_parameters())
    return Profile(tuple(sites), pieces, tokens, kept, before, own)


class _Pass:
    """Counts during one forward pass, piece by piece: [FLOPs forward, FLOPs backward, bytes kept].

    The graph of the pass holds `keep`, and so this object, which therefore must hold no tensor of the graph, nor may
    `keep` return one: a node that keeps its own output, as attention on a GPU does, is a circle through autograd, which
    is never collected. It holds storages, which know no graph.
    """

    def __init__(self, weights: Mapping[str, Tensor]):
        self.depth: int | None = None
        self.sums: dict[int | None, list[int]] = {}
        self.inputs: dict[str, tuple[int, int]] = {}
        self.counted: dict[Any, int] = {}
        own = [weight.untyped_storage() for weight in weights.values()]
        self.kept: dict[int, torch.UntypedStorage] = {storage._cdata: storage for storage in own}
        self.counter: FlopCounterMode

    def enters(self, site: Site) -> Any:
        """A hook before a site's map: the piece of its depth begins with the first of them."""

        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            self.inputs[site.module] = arguments[0].numel(), arguments[0].untyped_storage().nbytes()
            if site.depth != self.depth:
                self.leave()
                self.depth = site.depth

        return hook

    def leave(self) -> None:
        """Add what was counted since the last piece ended."""
        counts = dict(self.counter.flop_counts.get("Global", {}))
        sums = self.sums.setdefault(self.depth, [0, 0, 0])
        for operation, total in counts.items():
            flops = total - self.counted.get(operation, 0)
            factors = [times for name, times in BACKWARD.items() if name in str(operation)]
            sums[0] += flops
            sums[1] += int(flops * (factors[0] if factors else 1))
        self.counted = counts

    def keep(self, tensor: Tensor) -> None:
        """Count a tensor that backward needs, once, unless it is part of the backbone; let the graph keep nothing."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.kept:  # where there is no memory there are no addresses
            self.kept[storage._cdata] = storage  # alive, so that its address is not given away again
            self.sums.setdefault(self.depth, [0, 0, 0])[2] += storage.nbytes()


def _begin_backward(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """From the lowest adapters on everything needs gradients, as it does where they are trained."""
    return output if output.requires_grad else output.detach().requires_grad_()
