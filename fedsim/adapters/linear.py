"""How adapters enter the forward pass of a frozen linear map. No optimiser, no clients' bookkeeping.

x (..., I)
 ├──────────── frozen W, b ─────────────► y (..., O)
 └─ A_t (R, I) ─ B_t (O, R) ─ · scale_t ──► + at the site's rows, for every tier t
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.adapters.layout import Site, Slot


class TieredLinear(nn.Module):
    """A frozen `nn.Linear` whose sites (row slices, or the whole map) each carry a sum of tiers of adapters."""

    def __init__(self, base: nn.Linear, sites: Iterable[Site]):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.sites = tuple(sites)
        self.active: list[tuple[Site, list[dict[str, Tensor]], list[float]]] = []

    @property
    def weight(self) -> Tensor:
        """The frozen weight (O, I); some backbones look at its dtype."""
        return self.base.weight

    def install(self, tensors: Mapping[Slot, Tensor], scales: Mapping[str, float]) -> None:
        """Use these factors from now on; a tier without a scale has scale 1 and a slot that is absent adds nothing."""
        self.active = []
        for site in self.sites:
            tiers = dict.fromkeys(slot.tier for slot in tensors if slot.site == site.name)
            factors = [
                {slot.factor: t for slot, t in tensors.items() if slot[:2] == (tier, site.name)} for tier in tiers
            ]
            if factors:
                self.active.append((site, factors, [scales.get(tier, 1.0) for tier in tiers]))

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + b plus every installed tier's share, x (..., I) to (..., O)."""
        y = self.base(x)
        by_rows = {site.rows: _change(site, x, factors, scales) for site, factors, scales in self.active}
        if None in by_rows:
            y = y + by_rows[None]
        slices = {rows: change for rows, change in by_rows.items() if rows is not None}
        return _add_rows(y, slices) if slices else y


def _change(site: Site, x: Tensor, factors: Sequence[Mapping[str, Tensor]], scales: Sequence[float]) -> Tensor:
    """Σ_t scale_t · B_t A_t x as one product of the tiers' stacked factors; for a head Σ_t (W_t x + b_t)."""
    if site.is_head:
        weight = reduce(torch.add, [tier["W"] for tier in factors])
        bias = reduce(torch.add, [tier["b"] for tier in factors]) if site.has_bias else None
        return F.linear(x, weight, bias)
    A = torch.cat([tier["A"] for tier in factors])
    B = torch.cat([scale * tier["B"] for tier, scale in zip(factors, scales, strict=True)], dim=-1)
    return F.linear(F.linear(x, A), B)


def _add_rows(y: Tensor, by_rows: Mapping[tuple[int, int], Tensor]) -> Tensor:
    """Return y with each change added at its rows (start, stop) of the last axis.

    Split and cat, not slices: the gradient of a slice is a zero-filled copy of the whole.
    """
    edges = sorted({0, y.shape[-1], *(edge for rows in by_rows for edge in rows)})
    pieces = list(torch.split(y, [stop - start for start, stop in pairwise(edges)], dim=-1))
    for (start, _), change in by_rows.items():
        pieces[edges.index(start)] = pieces[edges.index(start)] + change
    return torch.cat(pieces, dim=-1)


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
