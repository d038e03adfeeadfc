"""How adapters enter the forward pass of a frozen linear map. No optimiser, no clients' bookkeeping.

x (..., I)
 ├──────────── frozen W, b ─────────────► y (..., O)
 └─ A_t (R, I) ─ B_t (O, R) ─ · scale_t ──► + at the site's rows, for every tier t
"""

from collections.abc import Iterable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.adapters.layout import Site, Slot


class TieredLinear(nn.Module):
    """A frozen `nn.Linear` whose sites (row slices, or the whole map) each carry a sum of tiers of adapters."""

    def __init__(self, base: nn.Linear, sites: Iterable[Site]):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.sites = tuple(sites)
        self.active: list[tuple[Site, dict[str, Tensor], float]] = []

    @property
    def weight(self) -> Tensor:
        """The frozen weight (O, I); some backbones look at its dtype."""
        return self.base.weight

    def install(self, tensors: Mapping[Slot, Tensor], scales: Mapping[str, float]) -> None:
        """Use these factors from now on; a tier without a scale has scale 1 and a slot that is absent adds nothing."""
        self.active = []
        for site in self.sites:
            for tier in dict.fromkeys(slot.tier for slot in tensors if slot.site == site.name):
                factors = {slot.factor: t for slot, t in tensors.items() if slot[:2] == (tier, site.name)}
                self.active.append((site, factors, scales.get(tier, 1.0)))

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + b plus every installed tier's share, x (..., I) to (..., O)."""
        y = self.base(x)
        for site, factors, scale in self.active:
            if site.is_head:
                y = y + F.linear(x, factors["W"], factors.get("b"))
                continue
            change = F.linear(F.linear(x, factors["A"]), factors["B"]) * scale
            if site.rows is None:
                y = y + change
            else:
                start, stop = site.rows
                y = y + F.pad(change, (start, y.shape[-1] - stop))
        return y


def insert_tiered_linears(backbone: nn.Module, sites: Iterable[Site]) -> dict[str, TieredLinear]:
    """Replace, in place, every linear map that has sites by a `TieredLinear`; return them by module path."""
    by_module: dict[str, list[Site]] = {}
    for site in sites:
        by_module.setdefault(site.module, []).append(site)
    inserted = {}
    for path, module_sites in by_module.items():
        parent_path, _, name = path.rpartition(".")
        parent = backbone.get_submodule(parent_path)
        base = getattr(parent, name)
        if isinstance(base, TieredLinear):
            base = base.base
        inserted[path] = TieredLinear(base, module_sites)
        setattr(parent, name, inserted[path])
    return inserted
