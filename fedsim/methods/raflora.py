"""raFLoRA: every direction of the adapter is averaged over the clients that have it (arXiv 2602.13486).

    ΔW = Σ_i Σ_{k: r_k ≥ i} w_k,i s_k B_k[:, i] A_k[i],   w_k,i = p_k / Σ_{j: r_j ≥ i} p_j;   ΔW = U S Vᵀ
    client j gets U[:, :r_j], (S Vᵀ)[:r_j] / s_j

FlexLoRA weighs a client by p_k in all directions, also in those that others do not have, so the higher ones shrink in
every round (the paper's rank collapse). With equal LoRA ranks it is FlexLoRA. Directions that the same clients have are
one of the paper's partitions.

This follows the paper's abstract, which names the weights and the allocation by SVD; all else is FlexLoRA's (arXiv
2402.11505) as it is here: the product is never formed, α/r_k is each client's own, singular values go to A. p_k are
shares of training samples; the classifier is averaged by them over all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fedsim.parts.aggregation import normalised_weights, product_svd
from fedsim.parts.ranks import UnequalRanks
from fedsim.plan import Plan, merge_groups
from fedsim.round import ClientUpdate, Outcome, Population, ServerState


@dataclass(frozen=True, kw_only=True)
class RaFLoRA(UnequalRanks):
    """One adapter for all, averaged direction by direction and redistributed by SVD."""

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg of products, by direction."""
        return Plan(**self.own_ranks(population), combine=product_svd, server_update=_server_update)


def _server_update(state: ServerState, plan: Plan, updates: Sequence[ClientUpdate]) -> Outcome:
    return merge_groups(plan, _by_owners([update for update in updates if update.tensors]))


def _by_owners(updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    """Return the updates with each row of A over the share of those that have it, so that weights become w_k,i."""
    shares = normalised_weights([update.n_samples for update in updates])
    ranks = torch.tensor([next(len(t) for slot, t in u.tensors.items() if slot.factor == "A") for u in updates])
    has = ranks[:, None] > torch.arange(int(ranks.max()))
    factors = 1 / (shares[:, None] * has).sum(0).clamp(min=1e-30)
    return [
        replace(
            update,
            tensors={
                slot: (factors[: len(t), None] * t).to(t.dtype) if slot.factor == "A" else t
                for slot, t in update.tensors.items()
            },
        )
        for update in updates
    ]
