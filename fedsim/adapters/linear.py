"""How adapters enter the forward pass of a frozen linear map. No optimiser, no clients' bookkeeping.

x (..., I)
 ├──────────── frozen W, b ─────────────► y (..., O)
 └─ A_t (R, I) ─ B_t (O, R) ─ · scale_t ──► + at the site's rows, for every tier t (times its weight where tiers mix)

A middle factor H_t (R, R) is taken into B_t, so that it costs a product for each pass and not for each token.
One client's factors have these shapes. A block's carry a leading client axis K: the frozen map sees the samples of all
clients as one batch, and only the products with A and B know whose sample is whose (`ClientBatch`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.adapters.layout import Mixing, Site, Slot, group_slots, left_factor
from fedsim.adapters.mixing import Mixed

Scale = float | Tensor
Grouped = Mapping[str, Mapping[str, Mapping[str, Slot]]]
"""What `group_slots` returns."""
Dropout = Callable[[Tensor], Tensor]
"""Drops inputs x of the adapters, the x (B, ..., I) of one client or the (K, B, M, I) of a block."""


class ClientBatch:
    """Whose sample is whose in a batch that holds `sizes[k]` samples of client k, one client after another.

    With a `width` the batch itself has so many rows for every client: those behind its samples are padding.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device | str = "cpu", width: int | None = None):
        self.sizes, self.device, self.n_clients = tuple(sizes), device, len(sizes)
        self.widest = max(sizes) if width is None else width
        self.is_even = min(sizes) == self.widest
        is_grid = self.is_even or width is not None
        self.n_rows = self.n_clients * self.widest if is_grid else sum(sizes)
        self.places = None if is_grid else places(self.sizes, self.widest, torch.device(device))

    @property
    def owners(self) -> list[int]:
        """The client of each row of the batch, padding included."""
        held = self.sizes if self.places is not None else [self.widest] * self.n_clients
        return [client for client, n in enumerate(held) for _ in range(n)]

    def stack(self, x: Tensor, fill: float = 0) -> Tensor:
        """Return samples (samples, ...) by client as (K, widest, ...); places without a sample hold `fill`.

        Rows of a batch that are padding stay what they are.
        """
        K, shape = self.n_clients, x.shape[1:]
        if self.places is None:
            return x.reshape(K, self.widest, *shape)
        empty = x.new_full((K * self.widest, *shape), fill)
        return empty.index_copy(0, self.places, x).view(K, self.widest, *shape)

    def unstack(self, x: Tensor) -> Tensor:
        """Undo `stack`."""
        flat = x.flatten(0, 1)
        return flat if self.places is None else flat.index_select(0, self.places)


@lru_cache
def places(sizes: tuple[int, ...], width: int, device: torch.device) -> Tensor:
    """Return where each sample goes among K · width places, copied to a device once, lest the host waits every time."""
    found = torch.cat([torch.arange(n) + k * width for k, n in enumerate(sizes)])
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)


class Share(NamedTuple):
    """What one site adds: the factors and the scale of every tier that it carries, and what weighs the tiers."""

    site: Site
    factors: list[dict[str, Tensor]]
    scales: list[Scale]
    mixed: Mixed | None


class TieredLinear(nn.Module):
    """A frozen `nn.Linear` whose sites (row slices, or the whole map) each carry a sum of tiers of adapters."""

    def __init__(self, base: nn.Linear, sites: Iterable[Site]):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.sites = tuple(sites)
        self.install({}, {})

    @property
    def weight(self) -> Tensor:
        """The frozen weight (O, I); some backbones look at its dtype."""
        return self.base.weight

    def install(
        self,
        tensors: Mapping[Slot, Tensor],
        scales: Mapping[str, Scale],
        rows: ClientBatch | None = None,
        dropout: Dropout | None = None,
        mixing: Mixing | None = None,
        grouped: Grouped | None = None,
    ) -> None:
        """Use these factors from now on; a tier without a scale has scale 1 and a slot that is absent adds nothing.

        With `rows` the factors are a block's, (K, *shape), and a scale may be (K,). `mixing` weighs the tiers wherever
        its slot is among the tensors. `grouped` is `group_slots` of these, where it is known from an earlier step.
        """
        self.rows, self.dropout = rows, dropout
        self.active: list[Share] = []
        grouped = group_slots(tensors) if grouped is None else grouped
        for site in [site for site in self.sites if site.name in grouped]:
            tiers = grouped[site.name]
            factors = [{factor: tensors[slot] for factor, slot in slots.items()} for slots in tiers.values()]
            value = tensors.get(mixing.slot(site)) if mixing and not site.is_head else None
            mixed = Mixed(mixing, value, tuple(tiers)) if mixing and value is not None else None
            self.active.append(Share(site, factors, [scales.get(tier, 1.0) for tier in tiers], mixed))

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + b plus every installed tier's share, x (..., I) to (..., O)."""
        y = self.base(x)
        if not self.active:
            return y
        by_rows = self._changes(x) if self.rows is None else self._block_changes(x, self.rows)
        if None in by_rows:
            y = y + by_rows[None]
        slices = {rows: change for rows, change in by_rows.items() if rows is not None}
        return _add_rows(y, slices) if slices else y

    def _changes(self, x: Tensor) -> dict[tuple[int, int] | None, Tensor]:
        """What each site adds for one client, at its rows."""
        seen = x if self.dropout is None or self.sites[0].is_head else self.dropout(x)
        return {share.site.rows: _change(share, seen, x) for share in self.active}

    def _block_changes(self, x: Tensor, rows: ClientBatch) -> dict[tuple[int, int] | None, Tensor]:
        """What each site adds for a block of clients, at its rows."""
        samples = x.shape[:-1]
        stacked = rows.stack(x.reshape(rows.n_rows, -1, x.shape[-1]))
        whole = stacked.flatten(1, 2)
        seen = whole if self.dropout is None or self.sites[0].is_head else self.dropout(stacked).flatten(1, 2)
        changes = {}
        for share in self.active:
            change = _block_change(share, seen, whole).view(*stacked.shape[:3], -1)
            changes[share.site.rows] = rows.unstack(change).view(*samples, -1)
        return changes


def _change(share: Share, x: Tensor, whole: Tensor) -> Tensor:
    """Σ_t w_t scale_t B_t A_t x as one product of the tiers' stacked factors; for a head Σ_t (W_t x + b_t).

    `whole` is x before dropout, which is what a router sees.
    """
    site, factors, scales, mixed = share
    if site.is_head:
        weight = reduce(torch.add, [tier["W"] for tier in factors])
        bias = reduce(torch.add, [tier["b"] for tier in factors]) if site.has_bias else None
        return F.linear(x, weight, bias)
    A = torch.cat([tier["A"] for tier in factors])
    B = torch.cat([scale * left_factor(tier) for tier, scale in zip(factors, scales, strict=True)], dim=-1)
    if mixed is None:
        return F.linear(F.linear(x, A), B)
    columns = mixed.columns(whole, [tier["A"].shape[-2] for tier in factors])
    if mixed.mixing.is_tokenwise:
        return F.linear(F.linear(x, A) * columns, B)
    return F.linear(F.linear(x, A), B * columns)


def _block_change(share: Share, x: Tensor, whole: Tensor) -> Tensor:
    """The same for K clients at once: x (K, M, I), factors (K, *shape), scales (K,) or one number; (K, M, O)."""
    site, factors, scales, mixed = share
    if site.is_head:
        weight = reduce(torch.add, [tier["W"] for tier in factors])
        if not site.has_bias:
            return torch.bmm(x, weight.mT)
        return torch.baddbmm(reduce(torch.add, [tier["b"] for tier in factors]).unsqueeze(1), x, weight.mT)
    A = [tier["A"] for tier in factors]
    B = [_scaled(left_factor(tier), scale) for tier, scale in zip(factors, scales, strict=True)]
    A_all, B_all = (A[0], B[0]) if len(A) == 1 else (torch.cat(A, dim=1), torch.cat(B, dim=2))
    if mixed is not None:
        columns = mixed.columns(whole, [factor.shape[1] for factor in A])
        if mixed.mixing.is_tokenwise:
            return torch.bmm(torch.bmm(x, A_all.mT) * columns, B_all.mT)
        B_all = B_all * columns
    if torch.is_autocast_enabled(x.device.type):  # which ends before the backward pass of a function of one's own
        dtype = torch.get_autocast_dtype(x.device.type)
        x, A_all, B_all = x.to(dtype), A_all.to(dtype), B_all.to(dtype)
    change: Tensor = LowRank.apply(x, A_all, B_all)
    return change


class LowRank(torch.autograd.Function):
    """B A x for K clients: x (K, M, I), A (K, R, I), B (K, O, R) to (K, M, O).

    The same as two batched products and their gradients, but with the thin factor always on the left: on a CPU
    (8 clients, M = 136, 192 wide, R = 8) that takes 0.44 ms where autograd's own order takes 0.98.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """Return B A x."""
        h = torch.bmm(A, x.mT)
        _, learns_A, learns_B = ctx.needs_input_grad
        ctx.save_for_backward(x if learns_A else None, A, B, h if learns_B else None)  # x is as large as activations
        return torch.bmm(h.mT, B.mT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, A and B, those that are needed."""
        (dy,), (x, A, B, h), needs = gradients, ctx.saved_tensors, ctx.needs_input_grad
        dh = torch.bmm(B.mT, dy.mT) if needs[0] or needs[1] else None
        dx = torch.bmm(dh.mT, A) if dh is not None and needs[0] else None
        dA = torch.bmm(dh, x) if dh is not None and needs[1] else None
        return dx, dA, torch.bmm(h, dy).mT if needs[2] else None


def _scaled(B: Tensor, scale: Scale) -> Tensor:
    """B (K, O, R) times each client's scale (K,), or one for all."""
    if isinstance(scale, Tensor):
        return B * scale.view(-1, 1, 1)
    return B if scale == 1 else B * scale


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
