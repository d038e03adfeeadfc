"""HetLoRA: zero-padded factors weighed by what they do, and clients that prune their own rank (arXiv 2401.06432).

    client k    cross-entropy + λ ‖B[:, γ r_k:]‖ ‖A[γ r_k:, :]‖;   r_k ← γ r_k where that tail became smaller
    server      Σ w_k pad(B_k), Σ w_k pad(A_k),  w_k = ‖s_k B_k A_k‖ / Σ_j ‖s_j B_j A_j‖;  client j gets the leading r_j

Deliberate differences: one rank for all sites of a client, so tails are summed over sites before they are compared; a
classifier is averaged by training samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedsim.adapters.bank import Bank
from fedsim.adapters.layout import Slot, fit_rank
from fedsim.parts.aggregation import product_norm
from fedsim.parts.objectives import Held, cross_entropy
from fedsim.parts.ranks import LoraRanks, UnequalRanks
from fedsim.plan import Plan, by_samples, merge_groups
from fedsim.round import ClientUpdate, Outcome, Population, ServerState


@dataclass(frozen=True, kw_only=True)
class HetLoRA(UnequalRanks):
    """One adapter for all, of LoRA ranks that may shrink."""

    ranks: LoraRanks = field(default_factory=LoraRanks)
    """Who begins with which LoRA rank."""
    keep: float = 0.99
    """γ: the share of a rank that is kept when it is pruned, at least one direction less; 1 for no pruning."""
    penalty: float = 5e-3
    """λ: weight of the tail in a client's loss."""

    keeps_means = True

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is {self.keep}; it must lie in (0, 1] (--method.keep).")
        if self.penalty < 0:
            raise ValueError(f"penalty is {self.penalty}; it must not be negative (--method.penalty).")

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg of padded factors at the ranks that are left."""
        ranks = state.learnt.get("lora_ranks")
        plan = Plan(
            **self.own_ranks(population),
            objective=self._objective,
            weights=by_norm,
            server_update=self._server_update,
        )
        return plan if ranks is None else replace(plan, lora_ranks=ranks.tolist())

    def _objective(self, logits: Tensor, targets: Tensor, tensors: Held, received: Held) -> Tensor:
        return cross_entropy(logits, targets, tensors, received) + self.penalty * self._tail(tensors)

    def _tail(self, tensors: Held) -> Tensor | float:
        """Σ over sites of ‖B_tail‖ ‖A_tail‖. In a block padding is zero: a client's rank is the rows of A it has."""
        total: Tensor | float = 0.0
        for slot in [slot for slot in tensors if slot.factor == "B"]:
            B, A = tensors[slot], tensors[slot._replace(factor="A")]
            ranks = A.detach().any(-1).sum(-1, keepdim=True)
            is_tail = torch.arange(A.shape[-2], device=A.device) >= self._kept(ranks)
            B_norm = torch.linalg.vector_norm(B * is_tail.unsqueeze(-2), dim=(-2, -1))
            total = total + B_norm * torch.linalg.vector_norm(A * is_tail.unsqueeze(-1), dim=(-2, -1))
        return total

    def _kept(self, ranks: Tensor) -> Tensor:
        """γ r rounded down, at least 1."""
        return (self.keep * ranks).floor().long().clamp(min=1)

    def _server_update(self, state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
        merged, ranks = merge_groups(plan, updates), torch.tensor(plan.lora_ranks)
        for update in updates:
            rank = int(ranks[update.client])
            received = _received(state.bank, update, rank)
            if float(self._tail(update.tensors)) < float(self._tail(received)):
                ranks[update.client] = self._kept(ranks[update.client])
        log = {**merged.log, "lora_ranks": ranks.tolist()}
        return Outcome(merged.tensors, {**state.learnt, "lora_ranks": ranks}, log)


def by_norm(members: Sequence[ClientUpdate], slot: Slot) -> Tensor:
    """Weights (n,) of a factor's merge: the share of each client's ‖B_k A_k‖_F; of a classifier by samples."""
    if slot.factor not in ("A", "B"):
        return by_samples(members, slot)
    pairs = [
        (u.tensors[slot._replace(factor="B")].double(), u.tensors[slot._replace(factor="A")].double()) for u in members
    ]
    norms = torch.stack([product_norm(B, A).clamp(min=0).sqrt() for B, A in pairs])
    return norms / norms.sum() if norms.sum() > 0 else torch.full_like(norms, 1 / len(norms))


def _received(bank: Bank, update: ClientUpdate, lora_rank: int) -> dict[Slot, Tensor]:
    """What the client started its round from."""
    only = torch.tensor([0])
    return {slot: fit_rank(bank.read(slot, only)[0], slot.factor, lora_rank) for slot in update.tensors}
