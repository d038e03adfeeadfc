"""No paper's method: HiLoRA's tiers, Fed-HeLLo's allocation of layers and unequal LoRA ranks; and its parents.

Every client trains the layers that it can afford, at its own LoRA rank; groups merge by concatenated QR. CIFAR-100.

    fabric run recipes/hilora_allocated.py --devices 8 --seeds 0 1 2 --reference allocated
    python recipes/hilora_allocated.py --embedded --rounds 4
"""

from dataclasses import dataclass, field, replace
from functools import partial

import fedsim
from fedsim.data.images.images import ImageOptions
from fedsim.data.protocols import Clients, Skew
from fedsim.experiments import Experiment, run_experiment
from fedsim.models.backbones import TimmModel
from fedsim.parts.allocation import at_depths, pattern_set
from fedsim.parts.concatenation import concatenated

IMAGES = Clients(source=ImageOptions(dataset="cifar100"), split=Skew())
SOME = fedsim.Capabilities(out_of=12, assign="cycle")


@dataclass(frozen=True, kw_only=True)
class Allocated:
    """HiLoRA in which clients differ in what they can afford."""

    hilora: fedsim.HiLoRA = field(default_factory=fedsim.HiLoRA)
    """Tiers, stages and clusters."""
    ranks: fedsim.LoraRanks = field(default_factory=fedsim.LoraRanks)
    """Who has which LoRA rank."""
    capabilities: fedsim.Capabilities = SOME
    """How many of twelve layers each client can train; which, by Fed-HeLLo's bottleneck."""

    tiers, lora_alpha, head_policy = fedsim.HiLoRA.tiers, None, "tier"
    lora_rank = property(lambda self: self.ranks.largest)

    def plan(self, state: fedsim.ServerState, population: fedsim.Population) -> fedsim.Plan:
        """HiLoRA's plan, but for who trains what and how it is merged."""
        C, depths = population.n_clients, state.adapted
        sets = [pattern_set("bottleneck", n, len(depths)) for n in self.capabilities.of(C, len(depths))]
        own = {"lora_ranks": self.ranks.of(C), "allocations": at_depths(sets, depths)}
        plan = self.hilora.plan(state, population)
        unseen = plan.unseen and replace(plan.unseen, plan=replace(plan.unseen.plan, **own))
        return replace(plan, combine=partial(concatenated, lora_rank=self.lora_rank), unseen=unseen, **own)


@dataclass(frozen=True, kw_only=True)
class HiLoRAAllocated(Experiment):
    """The composition and its parents."""

    method: Allocated = field(default_factory=Allocated)
    """The composition's settings."""
    data: Clients[ImageOptions, Skew] = IMAGES
    """The images and their clients."""
    model: TimmModel = field(default_factory=TimmModel)
    """The backbone."""


def main(recipe: HiLoRAAllocated) -> None:
    """Compare it with its parents: the same head and, where they can be unequal, the same LoRA ranks."""
    own, rank = recipe.method, {"lora_rank": recipe.method.lora_rank}
    mixed = {"ranks": own.ranks, "lora_alpha": own.lora_alpha, "head_policy": own.head_policy}
    parents = {"hilora": replace(own.hilora, **rank), "ilora": fedsim.ILoRA(**mixed, init="random")}
    parents |= {"flexlora": fedsim.FlexLoRA(**mixed), "fedit": fedsim.FedIT(**rank)}
    run_experiment(recipe, {"allocated": own, **parents})


if __name__ == "__main__":
    fedsim.cli(HiLoRAAllocated, main)
