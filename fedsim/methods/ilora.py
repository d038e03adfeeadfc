"""ILoRA: QR-orthonormal start, concatenated-QR aggregation, control variates (arXiv 2511.16069).

    start       B_k, A_k = Q[:, :r_k], R[:r_k] of W0 = Q R, scaled;  W = W0 − s_k B⁰A⁰ + s_k B A,  s_k = α/r_k
    aggregate   Q R = QR(Σ p_k s_k B_k A_k);  client j gets Q[:, :r_j], R[:r_j] / s_j
    local step  g + c − c_k before AdamW's moments (Algorithms 1 and 2; SCAFFOLD option I)

The offset B⁰A⁰ is a frozen tier with a negative scale, so one backbone serves every LoRA rank. The residual of the cut
is dropped, as in the released code.

Deliberate differences. Start: the released scale makes B⁰A⁰ of root mean square 1e-4, of each rank's own product; here
of the largest rank's, so that factors of all ranks are nested. `init_scale=None` is the printed start; then *changes*
are aggregated, for sums of unscaled factors of unequal ranks would shrink pretrained directions. α/r_k is folded
(the release mixes bare factors: `fold_scaling=False`). c is averaged over the clients that own a rank direction, so
that corrections cancel (the release divides by all: `average_over="all"`). `correction_scale=1` is SCAFFOLD's; the
release divides gradients by the batch size too, `1/batch_size`, 1/64 in its runs.

With unequal LoRA ranks the model moves by being aggregated alone, at the default start and cut: an unpivoted QR of the
sum does not give back the factors that clients received. The first round logs by how much (`untrained_change`,
‖ΔW' − ΔW‖ / ‖ΔW‖ of the adapter, as if nobody had trained); with equal ranks it is 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fedsim.adapters.bank import Bank
from fedsim.adapters.layout import Layout, Slot
from fedsim.parts.aggregation import mean_factors, relative_change
from fedsim.parts.concatenation import Core, as_change, concatenated, untrained
from fedsim.parts.initialisation import lora_initial, qr_factors
from fedsim.parts.ranks import UnequalRanks
from fedsim.parts.sharing import alone
from fedsim.parts.variates import CLIENT, correction, is_corrected, updated_variates, with_variates
from fedsim.plan import Measure, Plan, merge_groups, train_tier
from fedsim.round import ClientUpdate, Outcome, Population, ServerState

ADAPTER, OFFSET = "adapter", "offset"


@dataclass(frozen=True, kw_only=True)
class ILoRA(UnequalRanks):
    """One adapter for all, of each client's own LoRA rank."""

    init: Literal["qr", "random"] = "qr"
    """Start from the pretrained weight, or as LoRA does."""
    init_scale: float | None = 1e-4
    """Root mean square of the entries of B⁰A⁰ at the largest rank; None for unscaled factors (needs α = None)."""
    aggregation: Literal["concatenated", "mean"] = "concatenated"
    """Concatenated QR, or the mean of zero-padded factors (FedIT's)."""
    core: Core = "qr"
    """How the sum is cut: unpivoted QR (the paper's), column-pivoted QR, or SVD (the best there is)."""
    fold_scaling: bool = True
    """Merge α/r_k · B A rather than bare factors."""
    control: bool = True
    """Use control variates."""
    correction_scale: float = 1.0
    """Factor of the correction c − c_k."""
    average_over: Literal["owners", "all"] = "owners"
    """Whom the mean variate c is taken over, for each rank direction."""

    tiers = (ADAPTER, OFFSET)

    def __post_init__(self) -> None:
        if self.init == "qr" and self.init_scale is None and self.lora_alpha is not None:
            raise ValueError("init_scale is None, the unscaled start, which needs lora_alpha None (--method.*).")

    @property
    def scaled_factor(self) -> Literal["A"] | None:
        """A travels times α/R, or both factors bare."""
        return "A" if self.fold_scaling else None

    def initial(self, layout: Layout, generator: torch.Generator, weights: Mapping[str, Tensor]) -> dict[Slot, Tensor]:
        """QR factors of the pretrained weights in adapter and offset alike, so that the function is unchanged."""
        initial = lora_initial(layout, generator)
        for site, weight in weights.items() if self.init == "qr" else ():
            B, A = qr_factors(weight, layout.lora_rank, self.init_scale)
            initial |= {Slot(tier, site, name): t for tier in self.tiers for name, t in (("B", B), ("A", A))}
        trained = [slot for slot in initial if train_tier(ADAPTER, slot) and is_corrected(slot, self.head_policy)]
        return with_variates(initial, trained) if self.control else initial

    def plan(self, state: ServerState, population: Population) -> Plan:
        """Every client at its own rank; the server is evaluated at the largest."""
        exact = partial(concatenated, core=self.core, lora_rank=self.lora_rank)
        return Plan(
            **self.own_ranks(population),
            trains=partial(train_tier, ADAPTER),
            tier_scales={OFFSET: -1.0},
            combine=exact if self.aggregation == "concatenated" else mean_factors,
            measure=Measure("gradient") if self.control else None,
            correction=self._correction if self.control else None,
            server_update=self._server_update,
        )

    def sharing(self, slot: Slot, population: Population) -> Tensor:
        """All in one, but for a client's own variates."""
        return alone(population) if slot.tier.startswith(CLIENT) else super().sharing(slot, population)

    def _correction(self, bank: Bank, slot: Slot, client: int, lora_rank: int) -> Tensor:
        return self.correction_scale * correction(bank, slot, client, lora_rank)

    def _server_update(self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        bank, ranks, seen = state.bank, plan.lora_ranks or (), plan.population.seen
        is_unscaled = self.init == "qr" and self.init_scale is None and self.aggregation == "concatenated"
        merged = merge_groups(plan, [as_change(update, bank.initial) for update in updates] if is_unscaled else updates)
        log = dict(merged.log)
        if state.round_index == 0 and self.init == "qr" and not is_unscaled:
            log["untrained_change"] = relative_change(bank, merge_groups(plan, untrained(bank, updates)).tensors)
        if not self.control:
            return replace(merged, log=log)
        variates = updated_variates(bank, updates, [ranks[client] for client in seen], self.average_over == "owners")
        return Outcome({**merged.tensors, **variates}, log=log)
