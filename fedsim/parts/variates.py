"""Rank-aware control variates (SCAFFOLD, arXiv 1910.06378, option I; for LoRA: ILoRA, arXiv 2511.16069).

    c_k  the mean gradient over client k's own data at the model that it received last
    c    their mean;  every raw gradient of client k becomes  g + c − c_k

c and all c_k lie in the bank beside the slots that they belong to, at the largest LoRA rank. A client of a smaller rank
sees the leading rows of A and columns of B.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedsim.adapters.bank import Bank
from fedsim.adapters.layout import HEAD_TIER, RANK_AXIS, HeadPolicy, Slot, fit_rank, pad_rank
from fedsim.round import ClientUpdate

SERVER, CLIENT = "variate:", "client_variate:"


def variate(slot: Slot, owner: str) -> Slot:
    """Return where the server's or the clients' variate of a slot is kept."""
    return slot._replace(tier=owner + slot.tier)


def is_corrected(slot: Slot, policy: HeadPolicy) -> bool:
    """Whether gradients of a trained slot are corrected: not those of a classifier of each client's own, which the
    mean over clients says nothing of."""
    return slot.tier != HEAD_TIER or policy != "local"


def with_variates(initial: Mapping[Slot, Tensor], trained: Sequence[Slot]) -> dict[Slot, Tensor]:
    """Return the initial values with variates of these slots, all zero."""
    return dict(initial) | {variate(slot, owner): 0 * initial[slot] for slot in trained for owner in (SERVER, CLIENT)}


def correction(bank: Bank, slot: Slot, client: int, lora_rank: int) -> Tensor:
    """Return c − c_k of one slot, at the client's LoRA rank."""
    server = bank.read(variate(slot, SERVER), torch.tensor([0]))[0]
    own = bank.read(variate(slot, CLIENT), torch.tensor([client]))[0]
    return fit_rank(server - own, slot.factor, lora_rank)


def updated_variates(
    bank: Bank, updates: Sequence[ClientUpdate], lora_ranks: Sequence[int], owners_only: bool = True
) -> dict[Slot, dict[int, Tensor]]:
    """Return the new c_k of these clients and the new c = c + Σ Δc_k / N, of measured slots that have variates.

    `lora_ranks` are those of all N clients that train. With `owners_only`, N counts for each rank direction the clients
    that have it, so that corrections cancel over clients; else all of them, as the released code does.
    """
    copies: dict[Slot, dict[int, Tensor]] = {}
    measured = dict.fromkeys(slot for update in updates for slot in update.measured)
    for slot in [slot for slot in measured if variate(slot, SERVER) in bank.initial]:
        place, widest = variate(slot, CLIENT), bank.initial[slot]
        own = {
            update.client: pad_rank(update.measured[slot], slot.factor, widest.shape[RANK_AXIS.get(slot.factor, -1)])
            for update in updates
            if slot in update.measured
        }
        before = bank.read(place, torch.tensor(list(own)))
        change = (torch.stack(list(own.values())) - before).sum(0)
        server = bank.read(variate(slot, SERVER), torch.tensor([0]))[0]
        copies[place] = own
        copies[variate(slot, SERVER)] = {0: server + change / _sharers(slot, widest, lora_ranks, owners_only)}
    return copies


def _sharers(slot: Slot, widest: Tensor, lora_ranks: Sequence[int], owners_only: bool) -> Tensor:
    """How many clients a mean is taken over, for each rank direction, in a shape that divides the slot."""
    if slot.factor not in RANK_AXIS or not owners_only:
        return torch.tensor(float(len(lora_ranks)))
    ranks, directions = torch.tensor(lora_ranks), torch.arange(widest.shape[RANK_AXIS.get(slot.factor, -1)])
    owners = (ranks[:, None] > directions).sum(0).clamp(min=1).float()
    return {"A": owners[:, None], "B": owners}.get(slot.factor, torch.minimum(owners[:, None], owners))
