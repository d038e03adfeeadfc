"""How much each tier counts where a method weighs its tiers: numbers, a scalar a depth, or a router for every token.

    y = W x + Σ_t w_t(x) · scale_t · B_t A_t x

A mixing says which tiers it weighs, where its trained value lies (an ordinary slot of the tier `MIX_TIER`) and how that
becomes weights. A tier that it does not name, and every tier where its slot is not in use, has weight 1.
Where a test weighs tiers sample by sample (`InstanceWeights`), the model asks first and puts `SampleWeights` in place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.adapters.layout import MIX_TIER, Mixing, Site, Slot


def softmax_of_first(logits: Tensor, n_tiers: int) -> Tensor:
    """Softmax over the outputs of those tiers that there are, logits (..., n) to (..., n_tiers)."""
    return logits[..., :n_tiers].softmax(-1)


def two_way(logits: Tensor, n_tiers: int) -> Tensor:
    """Softmax of two outputs as σ(z_0 − z_1) and the rest, logits (..., 2) to (..., 2).

    Where both tiers do the same, the gradient is then zero and not rounding noise that Adam would blow up.
    """
    own = (logits[..., :1] - logits[..., 1:]).sigmoid()
    return torch.cat((own, 1 - own), dim=-1)


def adaptive_top(logits: Tensor, n_tiers: int) -> Tensor:
    """The softmax of the n largest of 2n − 1 outputs, where the first n all stand for the first tier; (..., n_tiers).

    So between one and n of the n tiers have a weight (FedLEASE, arXiv 2509.15087). The first tier's is what the others
    leave: where they have none, its gradient is zero and not rounding noise that Adam would blow up.
    """
    used = logits[..., : 2 * n_tiers - 1]
    top = used.topk(n_tiers)
    others = torch.full_like(used, -torch.inf).scatter(-1, top.indices, top.values).softmax(-1)[..., n_tiers:]
    return torch.cat((1 - others.sum(-1, keepdim=True), others), dim=-1)


@dataclass(frozen=True)
class DepthGate:
    """One scalar θ for each depth, shared by its sites: the first tier weighs λ = σ(θ), the second 1 − λ."""

    tiers: tuple[str, str]
    initial: float = 0.5
    """λ at the start, in (0, 1)."""

    is_tokenwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.initial < 1:
            raise ValueError(f"The initial λ is {self.initial}; it must lie in (0, 1) (--method.initial-lambda).")

    def slot(self, site: Site) -> Slot:
        """One place for all sites of a depth."""
        return Slot(MIX_TIER, f"depth.{site.depth}", "gate")

    def shape(self, site: Site) -> tuple[int, ...]:
        """A scalar."""
        return ()

    def start(self, site: Site, generator: torch.Generator) -> Tensor:
        """θ with σ(θ) = `initial`, ()."""
        return torch.logit(torch.tensor(self.initial))

    def weights(self, value: Tensor, x: Tensor, n_tiers: int) -> Tensor:
        """Return (λ, 1 − λ): θ (...) to (..., 1, n_tiers), the same for every token."""
        own = value.sigmoid()
        return torch.stack((own, 1 - own), dim=-1).unsqueeze(-2)[..., :n_tiers]


@dataclass(frozen=True)
class TierWeights:
    """One number for each tier; what it is is what the tier weighs."""

    tiers: tuple[str, ...]
    initial: tuple[float, ...]
    """The weights at the start, one for each tier."""
    by_site: bool = False
    """Whether every site has weights of its own, and not all of them the same."""

    is_tokenwise: ClassVar[bool] = False

    def slot(self, site: Site) -> Slot:
        """One place for all sites, or one for each."""
        return Slot(MIX_TIER, site.name if self.by_site else "all", "weights")

    def shape(self, site: Site) -> tuple[int, ...]:
        """(tiers,)."""
        return (len(self.tiers),)

    def start(self, site: Site, generator: torch.Generator) -> Tensor:
        """The given numbers."""
        return torch.tensor(self.initial)

    def weights(self, value: Tensor, x: Tensor, n_tiers: int) -> Tensor:
        """Return the value (..., tiers) as (..., 1, n_tiers), the same for every token."""
        return value.unsqueeze(-2)[..., :n_tiers]


@dataclass(frozen=True, kw_only=True)
class InstanceWeights(TierWeights):
    """Two tiers at the given numbers in training, and at each sample's own in a test (FedDPA, arXiv 2403.19211).

    w = λ · mean cosine of the sample's last hidden state to those of some of the client's training samples

    The tier `weighed` has w and the other one 1 − w; w is negative where the cosine is. States are those of the model
    with the tier `seen_by` alone. A client without training samples keeps the given numbers.
    """

    weighed: str
    seen_by: str
    largest: float = 0.5
    """λ, in [0, 1]."""
    n_references: int = 5
    """Training samples of each client; all where it has fewer."""

    is_tokenwise: ClassVar[bool] = True

    def alone(self, value: Tensor) -> Tensor:
        """Return a value like `value` (..., tiers) with which only the tier `seen_by` counts."""
        return value.new_tensor([float(tier == self.seen_by) for tier in self.tiers]).expand_as(value)

    def of_states(self, states: Tensor, direction: Tensor, value: Tensor) -> Tensor:
        """Return the weights (..., B, tiers) of samples with states (..., B, D).

        `direction` (..., D) is the mean of the references' unit states, zero where there are none, so that its product
        with a unit state is the mean cosine; `value` (..., tiers) are the weights in training.
        """
        cosine = (F.normalize(states.float(), dim=-1) @ direction.unsqueeze(-1)).squeeze(-1)
        own = self.largest * cosine
        by_tier = torch.stack([own if tier == self.weighed else 1 - own for tier in self.tiers], dim=-1)
        return torch.where(direction.any(-1)[..., None, None], by_tier, value.unsqueeze(-2))


@dataclass(frozen=True)
class SampleWeights(TierWeights):
    """Numbers for each tier that are each sample's own, (B, tiers), or (K, widest, tiers) of a block's clients."""

    is_tokenwise: ClassVar[bool] = True

    def weights(self, value: Tensor, x: Tensor, n_tiers: int) -> Tensor:
        """Return the weights for x (B, ..., I) or (K, M, I), whose tokens (and beams) follow each sample's first."""
        axis = value.ndim - 2
        each = value[..., :n_tiers].repeat_interleave(x.shape[axis] // value.shape[axis], dim=axis)
        return each.view(*each.shape[:-1], *(1,) * (x.ndim - each.ndim), n_tiers)


@dataclass(frozen=True)
class TokenRouter:
    """A linear map G (n_outputs, I) at every site, whose outputs for a token become the tiers' weights.

    `weigh` takes logits (..., n_outputs) and how many of the tiers there are, the first n, to weights (..., n). It may
    map several outputs to one tier, or select.
    """

    tiers: tuple[str, ...]
    n_outputs: int
    weigh: Callable[[Tensor, int], Tensor] = softmax_of_first
    spread: float = 1.0
    """G starts uniform in ± this over √I, as `nn.Linear` does at 1; 0 lets all outputs start alike."""

    is_tokenwise: ClassVar[bool] = True

    def slot(self, site: Site) -> Slot:
        """A router of its own at every site."""
        return Slot(MIX_TIER, site.name, "G")

    def shape(self, site: Site) -> tuple[int, ...]:
        """(n_outputs, I)."""
        return (self.n_outputs, site.in_features)

    def start(self, site: Site, generator: torch.Generator) -> Tensor:
        """Uniform around zero, (n_outputs, I)."""
        bound = self.spread / site.in_features**0.5
        return torch.rand(self.shape(site), generator=generator).mul_(2 * bound).sub_(bound)

    def weights(self, value: Tensor, x: Tensor, n_tiers: int) -> Tensor:
        """Return `weigh(G x)`: G (..., n_outputs, I) and x (..., M, I) to (..., M, n_tiers)."""
        return self.weigh(x @ value.mT.to(x.dtype), n_tiers)


class Mixed(NamedTuple):
    """A mixing with its value at one site, whose `tiers` are stacked in this order."""

    mixing: Mixing
    value: Tensor
    tiers: Sequence[str]

    def columns(self, x: Tensor, lora_ranks: Sequence[int]) -> Tensor:
        """Return each tier's weight repeated over its LoRA rank, (..., M, ΣR), or (..., 1, ΣR) where tokens agree.

        x (..., M, I) is what the site sees; a leading axis K is a block's, as in the value.
        """
        weighed = [tier for tier in self.mixing.tiers if tier in self.tiers]
        assert tuple(weighed) == self.mixing.tiers[: len(weighed)], "tiers are left out from the last one on"
        weights = self.mixing.weights(self.value, x, len(weighed))
        of_tier = {tier: weights[..., t : t + 1] for t, tier in enumerate(weighed)}
        one = torch.ones_like(weights[..., :1])
        ranked = zip(self.tiers, lora_ranks, strict=True)
        return torch.cat([of_tier.get(tier, one).expand(*one.shape[:-1], rank) for tier, rank in ranked], dim=-1)
