"""FedALT: every client goes on with its own adapter, beside the frozen mean of all others' (arXiv 2503.11880).

    h = W0 x + w(x) B_k A_k x + (1 − w(x)) B_row A_row x,   (w, 1 − w) = softmax(G_k x) for every token
    A_row, B_row = mean over j ≠ k of A_j, of B_j   (rest of world, uniform)

B_k, A_k and the mixer G_k are trained and never replaced by a mean; B_k and A_k are uploaded, G_k is not. G starts as
in `nn.Linear`, so w is around 1/2.

Done otherwise than in the released code: where not everybody takes part, the mean is over every other client's last
upload; a client that has not trained yet holds everyone's mean in both places, for which w does not matter. Rounds in
which everyone is alone may come first (none by default). The classifier under `tier` is the client's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fedsim.adapters.layout import MIX_TIER, RANK_AXIS, HeadPolicy, Slot
from fedsim.adapters.mixing import TokenRouter, two_way
from fedsim.parts.experts import inside_and_outside, last_uploads, rename_tiers
from fedsim.parts.sharing import alone, owners, with_head
from fedsim.plan import Plan, merge_groups, train_tier
from fedsim.round import ClientUpdate, Outcome, Population, ServerState

INDIVIDUAL, WORLD = "individual", "world"


@dataclass(frozen=True, kw_only=True)
class FedALT:
    """An individual adapter, a rest-of-world adapter and a mixer of tokens."""

    lora_rank: int = 8
    """Width R of each adapter."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier; `tier` means: private like the individual adapter."""
    warmup_rounds: int = 0
    """Rounds in which every client trains alone, without a mixer."""
    spread: float = 1.0
    """G starts uniform in ± this over √I; with 0 all tokens have w = 1/2."""

    tiers = (INDIVIDUAL, WORLD)
    scaled_factor = None

    def __post_init__(self) -> None:
        if min(self.warmup_rounds, self.spread) < 0:
            given = f"{self.warmup_rounds} and {self.spread}"
            raise ValueError(f"warmup_rounds and spread are {given}; neither may be negative (--method.*).")

    @property
    def mixing(self) -> TokenRouter:
        """The mixer of two outputs at every site."""
        return TokenRouter(self.tiers, 2, two_way, self.spread)

    def plan(self, state: ServerState, population: Population) -> Plan:
        """Train the individual adapter and the mixer."""
        is_warmup = state.round_index < self.warmup_rounds
        return Plan(
            population=population,
            stage="warm-up" if is_warmup else "mixed",
            tiers=(INDIVIDUAL,) if is_warmup else self.tiers,
            active=lambda slot: slot.tier != MIX_TIER if is_warmup else slot.tier != WORLD or slot.factor in RANK_AXIS,
            trains=partial(train_tier, INDIVIDUAL),
            sharing=self._sharing,
            uploads=lambda slot: slot.tier == INDIVIDUAL and slot.factor in RANK_AXIS,
            server_update=self._server_update,
        )

    def _sharing(self, slot: Slot, population: Population) -> Tensor:
        """Client k's rest of the world is group k + 1; group 0 would be everyone's mean."""
        return with_head(self.head_policy, slot, alone(population) + (slot.tier == WORLD), population)

    def _server_update(self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        merged, n_clients = merge_groups(plan, updates), plan.population.n_clients
        sent = [rename_tiers(update, {INDIVIDUAL: INDIVIDUAL}) for update in updates if update.n_samples]
        if not sent:
            return merged
        has_own, others = owners(state.learnt, plan.population, sent)
        known = replace(plan.population, seen=tuple(has_own.nonzero().flatten().tolist()))
        sent = last_uploads(state.bank, sent, INDIVIDUAL, known)
        copies, groups = dict(merged.tensors), torch.tensor([update.client for update in sent]) + 1
        for slot in [slot for slot in sent[0].tensors if slot.factor in RANK_AXIS]:
            values = torch.stack([update.tensors[slot] for update in sent])
            inside, outside = inside_and_outside(values, groups, n_clients + 1)
            copies[slot._replace(tier=WORLD)] = outside
            copies[slot] = {**dict.fromkeys(others, inside[0]), **merged.tensors[slot]}
        return Outcome(copies, {"has_own": has_own}, merged.log)
