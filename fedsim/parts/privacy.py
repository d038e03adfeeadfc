"""Differential privacy of clients: the change of each is clipped to one norm, and their sum is noised.

    Δ_i ← Δ_i min(1, C / ‖Δ_i‖),   x ← x + (Σ_i Δ_i + N(0, (z C)² I)) / m     C the clip norm, z the noise multiplier

DP-FedAvg (arXiv 1710.06963, algorithm 1) with clients of equal weight. Δ_i are all shared slots of a client together,
in the units of what the server holds. m is the number of clients that train a slot in a round, on average over rounds:
it depends on nobody's data, so that one client moves the sum by C at most. Worker 0 draws the noise; with `local` each
client adds N(0, (z C)² I) to its own clipped change before it is encoded, and the server adds nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsim.adapters.bank import Bank
from fedsim.adapters.layout import Slot
from fedsim.options import Unlimited, check_options, out_of_range, refuse
from fedsim.parts.server_optimizer import ServerStep
from fedsim.round import ClientUpdate

RANGES = {
    "be positive": ("clip", "epsilon"),
    "be 0 or more": ("noise_multiplier",),
    "lie between 0 and 1": ("delta",),
}


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """Differential privacy of clients: clipping and noise."""

    clip: Unlimited | None = None
    """C: the largest norm of what a client changes in all shared slots together; None for no privacy at all."""
    noise_multiplier: float | None = None
    """z: the noise's standard deviation over C; of the sum of changes, or with `local` of each change."""
    epsilon: float | None = None
    """Find the noise multiplier with which ε is no more than this after the last round."""
    delta: float = 1e-5
    """δ of (ε, δ)-differential privacy; choose it well below 1 / clients."""
    local: bool = False
    """Whether each client adds the noise itself, so that the server need not be trusted."""

    def __post_init__(self) -> None:
        check_options(self, "privacy")
        problems, noise = out_of_range(self, RANGES), self.noise_multiplier
        if noise is not None and self.epsilon is not None:
            problems.append(f"noise_multiplier {noise} and epsilon {self.epsilon} are both given; choose one of them")
        if self.clip is None and (noise is not None or self.epsilon is not None or self.local):
            problems.append("clip is None and noise is in proportion to it; say how long a client's change may be")
        if self.clip is not None and noise is None and self.epsilon is None:
            problems.append(f"clip is {self.clip} without any noise; say noise_multiplier (0 for none) or epsilon")
        if self.clip == math.inf and noise != 0:
            problems.append("clip is inf and noise is in proportion to it; choose a finite one, or noise_multiplier 0")
        refuse(problems, "--privacy.*")

    @property
    def is_off(self) -> bool:
        """Whether nothing is clipped."""
        return self.clip is None

    @property
    def is_central(self) -> bool:
        """Whether worker 0 adds the noise."""
        return self.clip is not None and not self.local


@dataclass(frozen=True)
class Guard:
    """What a client does to its change before it is sent.

    `clip` is the largest norm, `noise` the standard deviation of what the client adds to each entry, and `units` say of
    slots (all others: 1) by what the server multiplies what arrives; norm and noise are in the server's units.
    """

    clip: float = math.inf
    noise: float = 0.0
    units: Mapping[Slot, float] = field(default_factory=dict)

    def released(self, change: Mapping[Slot, Tensor], random: torch.Generator) -> Mapping[Slot, Tensor]:
        """Return the change clipped and noised; itself where it is short enough and there is no noise."""
        change = self.clipped(change)
        if not self.noise:
            return change
        draws = {slot: torch.randn(moved.shape, generator=random) for slot, moved in change.items()}
        return {slot: moved + draws[slot] * (self.noise / self.units.get(slot, 1)) for slot, moved in change.items()}

    def clipped(self, change: Mapping[Slot, Tensor]) -> Mapping[Slot, Tensor]:
        """Return the change at a norm of `clip` at most; itself where it is short enough, or no number at all."""
        norm = math.hypot(*(self.units.get(slot, 1) * float(moved.double().norm()) for slot, moved in change.items()))
        return {slot: moved * (self.clip / norm) for slot, moved in change.items()} if norm > self.clip else change

    def bounded(self, arrived: Mapping[Slot, Tensor]) -> Mapping[Slot, Tensor]:
        """Return what arrives as the server sums it: what an encoding made longer is clipped again."""
        return arrived if self.noise else self.clipped(arrived)


class PrivateMean:
    """The mean of clipped changes with noise, in one round: `weights` of members, then a call with each mean.

    In `updates` a client that has samples has one. `expected` are the clients that train each slot in a round, on
    average; `deviation` is the noise's on their sum. Then `step` moves to the result, where the server has an
    optimiser.
    """

    def __init__(
        self,
        bank: Bank,
        updates: Sequence[ClientUpdate],
        expected: Mapping[Slot, float],
        deviation: float,
        random: torch.Generator,
        step: ServerStep | None = None,
    ):
        self.bank, self.expected, self.step = bank, expected, step
        self.counts = {slot: sum(u.n_samples for u in updates if slot in u.tensors) for slot in expected}
        draws = {slot: torch.randn(bank.initial[slot].shape, generator=random) for slot in expected if deviation}
        self.noise = {slot: draw * (deviation / expected[slot]) for slot, draw in draws.items()}
        self.done: set[Slot] = set()

    def weights(self, members: Sequence[ClientUpdate], slot: Slot) -> Tensor:
        """Return 1/m for each member that has samples, (n,) in float64."""
        m = self.expected.get(slot, 1.0)  # a slot without any is private
        return torch.tensor([update.n_samples / m for update in members], dtype=torch.float64)

    def __call__(self, slot: Slot, group: int, mean: Tensor) -> Tensor:
        """Return the group's next copy of a slot from Σ x_i / m; who was not there leaves it where it is."""
        self.done.add(slot)
        n, m = self.counts[slot], self.expected[slot]
        if n != m:
            mean = mean + (1 - n / m) * self.bank.read(slot, torch.tensor([group]))[0]
        if slot in self.noise:
            mean = mean + self.noise[slot]
        return self.step(slot, group, mean) if self.step else mean

    def rest(self) -> dict[Slot, dict[int, Tensor]]:
        """Return copies of the slots that nobody sent: noise goes there too."""
        left = [slot for slot in self.noise if slot not in self.done]
        return {slot: {0: self(slot, 0, torch.zeros_like(self.noise[slot]))} for slot in left}
