"""FLoRA: stack all clients' adapters, add the exact sum to the backbone, start adapters afresh (arXiv 2409.05976).

    [B_1 … B_S] [p_1 s_1 A_1; …; p_S s_S A_S] = Σ p_k s_k B_k A_k  is merged;  then B = 0

The backbone stays as it is: what was merged is a frozen tier that holds the stacked factors of all rounds. A restart is
fresh (a new random A each round, as in the paper) or warm (A goes on from the mean of the clients').

Deliberate differences from the released code, whose server forgets the rounds before and counts the last one twice in
evaluation: nothing is forgotten or counted twice, and α/r_k is each client's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from fedsim.parts.aggregation import weighted_mean
from fedsim.parts.ranks import UnequalRanks
from fedsim.parts.stacking import grown, stacked_sum
from fedsim.plan import Plan, by_samples, merge_groups, stack_padded, train_tier
from fedsim.randomness import generator
from fedsim.round import ClientUpdate, Outcome, Population, ServerState


@dataclass(frozen=True, kw_only=True)
class FLoRA(UnequalRanks):
    """An adapter that is merged after every round."""

    restart: Literal["fresh", "warm"] = "fresh"
    """Whether A starts a round at random or from the mean of the clients' A."""

    tiers = ("adapter", "merged")
    scaled_factor = "B"

    def plan(self, state: ServerState, population: Population) -> Plan:
        """Train the adapter on top of what is merged."""
        return Plan(
            **self.own_ranks(population),
            trains=partial(train_tier, "adapter"),
            whole_tiers=frozenset({"merged"}),
            server_update=self._server_update,
        )

    def _server_update(self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        copies = {slot: c for slot, c in merge_groups(plan, updates).tensors.items() if slot.factor not in ("A", "B")}
        sent = 0
        for slot in [slot for slot in updates[0].tensors if slot.factor == "B"]:
            pair = slot._replace(factor="A")
            B, A = stacked_sum(updates, slot)
            copies |= grown(state.bank, slot._replace(tier="merged"), B, A)
            sent += (B.numel() + A.numel()) * B.element_size()
            start = state.bank.initial[pair]
            if self.restart == "fresh":
                random = generator(state.seed, f"flora/{pair}", state.round_index)
                A = (2 * torch.rand(start.shape, generator=random) - 1) / start.shape[1] ** 0.5
            else:
                A = weighted_mean(stack_padded(updates, pair), by_samples(updates, pair))
            copies |= {slot: {0: torch.zeros_like(state.bank.initial[slot])}, pair: {0: A}}
        return Outcome(copies, stack_bytes=sent)
