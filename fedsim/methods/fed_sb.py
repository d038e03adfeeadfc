"""Fed-SB: A and B are fixed and orthonormal, and clients train the square factor between them (arXiv 2502.15436).

    ΔW = B H A,   H ← Σ p_k H_k                   exact for the mean of the ΔW_k; R² numbers up and down
    ΔW_1 = −η √(OI) G / ‖G‖_F ≈ U S Vᵀ            a first step of full fine-tuning, from the mean gradient G of W (O, I)
    B = U_R,  A = V_Rᵀ,  H = S_R                  at the start

`start="random"` lets A and B be random and orthonormal and H = 0; the first two rounds then train as all others do.

Done otherwise: the released code has the server take ΔW_1 = −η sign(G), Adam's first step, from samples of all
clients. Here G never leaves the clients whole: in a first round, with A = Ω random and B = 0, they measure the gradient
G Aᵀ of B; in a second one, with A = 0 and B = Q from its QR, the gradient Qᵀ G of A, whose SVD gives all three factors.
That is the randomised SVD of G without its signs (arXiv 0909.4061, algorithm 5.1), exact where G has rank R; ΔW_1 has
the norm that the sign gives. More `passes` are subspace iterations. H is averaged by samples (there all clients weigh
alike). LoRA ranks may be unequal: a client of rank r_k has the leading r_k × r_k block of H, and the mean is of padded
blocks, so of the products; α/r_k is folded into H. The classifier is trained as the head policy says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fedsim.adapters.layout import MIDDLE, Layout, Slot
from fedsim.parts.aggregation import fixed_signs, normalised_weights, weighted_mean
from fedsim.parts.initialisation import orthonormal_initial
from fedsim.parts.ranks import LoraRanks, UnequalRanks
from fedsim.plan import Measure, Plan
from fedsim.round import ClientUpdate, Outcome, Population, ServerState


@dataclass(frozen=True, kw_only=True)
class FedSB(UnequalRanks):
    """One adapter of which H alone is trained."""

    ranks: LoraRanks = field(default_factory=lambda: LoraRanks(values=(32,)))
    """Who has which LoRA rank."""
    lora_alpha: float | None = None
    """α of the scale α/r_k; None means α = r_k."""
    start: Literal["update", "random"] = "update"
    """Whether A, B and H are those of a first step of full fine-tuning, which takes rounds to find, or random."""
    passes: int = 1
    """Times that gradients of both factors are measured before training, two rounds each."""
    first_rate: float = 1e-4
    """η, the root mean square of the entries of the first step."""

    middle_tiers, scaled_factor = ("adapter",), "H"

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ValueError(f"passes is {self.passes}; it must be 1 or more (--method.passes).")
        if not self.first_rate >= 0:
            raise ValueError(f"first_rate is {self.first_rate}; it must not be negative (--method.first-rate).")

    def initial(self, layout: Layout, generator: torch.Generator, weights: Mapping[str, Tensor]) -> dict[Slot, Tensor]:
        """Orthonormal factors around H = 0; before a sketch B = 0 and H = I."""
        initial = orthonormal_initial(layout, generator)
        if self.start == "random":
            return initial
        before = {"B": torch.zeros_like, MIDDLE: lambda value: torch.eye(len(value))}
        return {slot: before.get(slot.factor, torch.clone)(value) for slot, value in initial.items()}

    def plan(self, state: ServerState, population: Population) -> Plan:
        """Train H, once A and B are there; till then measure the gradients of B and A in turn."""
        if self.start == "random" or state.round_index >= 2 * self.passes:
            return Plan(**self.own_ranks(population), trains=lambda slot: slot.factor not in ("A", "B"))
        factor = "BA"[state.round_index % 2]
        return Plan(
            population=population,
            stage=f"sketch {factor}",
            sharing=self.sharing,
            trains=lambda slot: slot.factor == factor,
            steps=0,
            measure=Measure("gradient"),
            server_update=partial(self._sketch, factor),
        )

    def _sketch(self, factor: str, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        copies: dict[Slot, dict[int, Tensor]] = {}
        measured = [update for update in updates if update.measured]
        weights = normalised_weights([update.n_samples for update in measured])
        for slot in measured[0].measured if measured else ():
            gradient = weighted_mean(torch.stack([update.measured[slot] for update in measured]).double(), weights)
            B, A = slot._replace(factor="B"), slot._replace(factor="A")
            if factor == "B":  # G Aᵀ
                found = {B: torch.linalg.qr(gradient).Q, A: torch.zeros_like(state.bank.initial[A])}
            else:  # Bᵀ G
                U, S, Vh = torch.linalg.svd(gradient, full_matrices=False)
                found = {A: Vh, B: torch.zeros_like(state.bank.initial[B])}
                if state.round_index + 1 == 2 * self.passes:
                    left = state.bank.read(B, torch.tensor([0]))[0].double() @ U
                    signs, size = fixed_signs(left), (len(left) * Vh.shape[1]) ** 0.5
                    H = -self.first_rate * size * S / S.norm().clamp(min=1e-30)
                    found = {A: signs[:, None] * Vh, B: left * signs, slot._replace(factor=MIDDLE): H.diag()}
            copies |= {place: {0: value.float()} for place, value in found.items()}
        return Outcome(copies)
