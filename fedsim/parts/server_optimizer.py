"""Optimisers of the server: federated averaging as one step (arXiv 2003.00295, algorithm 2; FedAvgM: 1909.06335).

    Δ_t = (weighted mean of what clients sent back) − (what the server holds), a negative gradient
    FedAvgM      m ← β₁ m + Δ;                   x ← x + η m
    the others   m ← β₁ m + (1 − β₁) Δ;          x ← x + η m / (√v + τ)
    FedAdagrad   v ← v + Δ²
    FedYogi      v ← v − (1 − β₂) Δ² sign(v − Δ²)
    FedAdam      v ← β₂ v + (1 − β₂) Δ²

Each group of each shared slot has moments of its own, m from 0 and v from τ², also a group that is new: a cluster
starts from a mean, whose history is not its own. They lie in the bank, are never sent and cost no bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.adapters.bank import Bank
from fedsim.adapters.layout import RANK_AXIS, Slot, pad_rank
from fedsim.options import check_options, out_of_range, refuse

RANGES = {"be positive": ("rate", "tau"), "lie in [0, 1)": ("beta1", "beta2")}


@dataclass(frozen=True, kw_only=True)
class ServerOptimizer:
    """What the server does with the mean of its clients' results."""

    optimizer: Literal["none", "avgm", "adam", "yogi", "adagrad"] = "none"
    """Take the mean, or a step of FedAvgM, FedAdam, FedYogi or FedAdagrad towards it."""
    rate: float = 1.0
    """η: the server's learning rate; of all but FedAvgM the paper's are .001 to .1."""
    beta1: float = 0.9
    """β₁: momentum."""
    beta2: float = 0.99
    """β₂ of FedAdam and FedYogi."""
    tau: float = 1e-3
    """τ: how little the step adapts."""

    def __post_init__(self) -> None:
        check_options(self, "server")
        refuse(out_of_range(self, RANGES), "--server.*")

    def with_moments(self, initial: Mapping[Slot, Tensor]) -> dict[Slot, Tensor]:
        """Return starting values with those of the moments of all slots, where the optimiser has any."""
        fill = {"none": {}, "avgm": {"m": 0.0}}.get(self.optimizer, {"m": 0.0, "v": self.tau**2})
        return dict(initial) | {
            moment(slot, name): torch.full_like(value, start)
            for name, start in fill.items()
            for slot, value in initial.items()
        }

    def step(self, held: Tensor, mean: Tensor, m: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the next copy, m and v; all of one shape."""
        change = mean - held
        if self.optimizer == "avgm":
            m = self.beta1 * m + change
            return mean + (self.rate * m - change), m, None  # the mean, to the bit, where η = 1 and β₁ = 0
        assert v is not None
        m, square = self.beta1 * m + (1 - self.beta1) * change, change.square()
        if self.optimizer == "adagrad":
            v = v + square
        elif self.optimizer == "yogi":
            v = v - (1 - self.beta2) * square * torch.sign(v - square)
        else:
            v = self.beta2 * v + (1 - self.beta2) * square
        return held + self.rate * m / (v.sqrt() + self.tau), m, v


def moment(slot: Slot, name: str) -> Slot:
    """Return where a moment of a slot is kept."""
    return slot._replace(tier=f"server_{name}:{slot.tier}")


class ServerStep:
    """The steps of one round: called with each mean, it returns the next copy and gathers the moments."""

    def __init__(self, optimizer: ServerOptimizer, bank: Bank):
        self.optimizer, self.bank = optimizer, bank
        self.moments: dict[Slot, dict[int, Tensor]] = {}

    def __call__(self, slot: Slot, group: int, mean: Tensor) -> Tensor:
        """Return the group's next copy of a slot."""
        held = self._read(slot, group)
        if axis := RANK_AXIS.get(slot.factor):
            mean = pad_rank(mean, slot.factor, held.shape[axis])
        places = [moment(slot, name) for name in "mv" if moment(slot, name) in self.bank.initial]
        m, *rest = [self._read(place, group) for place in places]
        value, *after = self.optimizer.step(held, mean, m, rest[0] if rest else None)
        for place, tensor in zip(places, after, strict=False):
            if tensor is not None:
                self.moments.setdefault(place, {})[group] = tensor
        return value

    def _read(self, slot: Slot, group: int) -> Tensor:
        return self.bank.read(slot, torch.tensor([group]))[0]
