# %% [markdown]
# # 201 · Your own method
#
# You write a method in one short file, without changing fedsim, and train it. A method states only how it departs from
# FedAvg. This one, called Median, departs in two ways: factors are merged by their median instead of their mean, and
# the last layer's adapter never leaves its client.

# %%
"""Median: the median of factors instead of their mean; the last depth never leaves its client."""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from fedsim.adapters.layout import HeadPolicy, Slot
from fedsim.parts.aggregation import Merged
from fedsim.parts.sharing import alone, one_copy
from fedsim.plan import Plan
from fedsim.round import Population, ServerState


def median_factors(B: Tensor, A: Tensor, weights: Tensor) -> Merged:
    """Return the median of B (n, O, R) and that of A (n, R, I)."""
    return Merged(B.median(0).values, A.median(0).values, 0.0)


@dataclass(frozen=True, kw_only=True)
class Median:
    """One robust adapter for all."""

    lora_rank: int = 8
    """Width R of the adapter."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier."""

    tiers = ("adapter",)

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg, but for who shares what and how it is merged."""
        last = max(depth for site, depth in state.depths.items() if site != "head")
        own = {site for site, depth in state.depths.items() if depth == last and site != "head"}
        return Plan(population=population, sharing=partial(self._sharing, own), combine=median_factors)

    def _sharing(self, own: set[str], slot: Slot, population: Population) -> Tensor:
        return alone(population) if slot.site in own else one_copy(self.head_policy, slot, population)


# %% [markdown]
# What stands there:
#
# - The fields are the method's options. `lora_rank`, `lora_alpha`, `head_policy` and `tiers` are asked of every method.
# - `plan` returns a [`Plan`](../reference/python.md). All that it does not name is FedAvg's default.
# - `sharing` says for every slot (tier, site, factor) who shares it: `one_copy` is one group of all clients, `alone` a
#   group of its own for each. See [tiers, groups and slots](../concepts/round.md).
# - `combine` merges the factors of a group's members: B (n, O, R) and A (n, R, I) of n clients.
#
# All fields of a plan are listed in CONTRIBUTING.md.
#
# ## Train it, beside FedIT

# %%
import fedsim
from fedsim.data.builtin.digits import DigitStyles
from fedsim.models.digits_vit import DigitsViT
from fedsim.randomness import numpy_generator

digits = DigitStyles(clients_per_style=2, train_per_client=24, test_per_client=12, alpha=10)
common = {
    "backbone": DigitsViT().backbone(digits),
    "local": fedsim.LocalTraining(epochs=2, batch_size=12, learning_rate=3e-3),
    "rounds": 3,
}
found = fedsim.compare(
    {"median": Median(lora_rank=4), "fedit": fedsim.FedIT(lora_rank=4)},
    lambda seed: digits.federation(numpy_generator(seed, "data")),
    out="runs/median",
    **common,
)
for name in ("median", "fedit"):
    (run,) = found.results[name]
    print(f"{name:7} accuracy {run.summary['global.mean']:.3f}, {run.summary['bytes.up'] / 1e6:.2f} MB sent")

# %% [markdown]
# Median sends less, since a quarter of the adapter stays at home. One seed decides nothing about accuracy: see
# [compare fairly](202_compare_fairly.md).
#
# ## From the command line
#
# A recipe is a frozen dataclass and a function. To give yours a command line, write the method's class into a recipe as
# `recipes/hilora_cifar100.py` does for HiLoRA, with the fields `method`, `data`, `model` and `local`.
