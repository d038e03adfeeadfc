"""One contract, two engines: whatever clients differ in, training them together is training each alone."""

import re
from dataclasses import dataclass, replace

import pytest
import timm
import torch
from conftest import TinyAttention, tiny_data
from lightning.fabric import Fabric

import fedsim
from fedsim import methods
from fedsim.adapters.layout import Layout, Mixing, Slot, fit_rank
from fedsim.adapters.mixing import DepthGate, TokenRouter
from fedsim.engines.batched import BatchedEngine
from fedsim.engines.sequential import SequentialEngine
from fedsim.engines.stack import StackedOptimizer
from fedsim.models.client_module import ClientModule
from fedsim.models.sites import find_sites
from fedsim.parts.directions import SubspaceClustering
from fedsim.parts.fisher import FisherAllocation
from fedsim.parts.objectives import proximal, tier_overlap
from fedsim.parts.tree import TreeCuts
from fedsim.plan import Measure, Plan
from fedsim.round import Assignment, Population
from fedsim.storage.run_folder import load_checkpoint

CLIENTS, RANK = 6, 3
SIZES = (16, 7, 12, 1, 0, 16)
TIERS = ("root", "leaf")


def federation() -> fedsim.FederatedData:
    """Clients with 16, 7, 12, 1, 0 and 16 images of 3 x 8 x 8; test splits of other sizes, one empty."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (100, 3, 8, 8), generator=random, dtype=torch.uint8)
    targets = torch.randint(0, 3, (100,), generator=random)
    order = torch.randperm(100, generator=random)
    train = list(order[: sum(SIZES)].split(SIZES))
    test = list(order[sum(SIZES) :].split((5, 9, 0, 20, 4, 10)))

    def augment(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        return images.float() / 255 + draws.view(-1, 1, 1, 1)

    return fedsim.FederatedData(inputs, targets, train, test, ["a", "b", "c"], augment=augment, n_draws=1)


def backbone() -> torch.nn.Module:
    torch.manual_seed(0)
    size = dict(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3)
    return timm.create_model("vit_tiny_patch16_224", **size)


def assignments(**changes) -> list[Assignment]:
    """Every client with random tensors of its own; `changes` maps a field to a function of (client, assignment)."""
    made = []
    for client in range(CLIENTS):
        random = torch.Generator().manual_seed(client)
        tensors = {slot: 0.3 * torch.randn(shape, generator=random) for slot, shape in LAYOUT.shapes.items()}
        local = fedsim.LocalTraining(batch_size=4, learning_rate=1e-2)
        steps = -(-SIZES[client] // 4) * 2
        made.append(Assignment(client, 1, tensors, frozenset(tensors), {}, steps, local))
        for field, change in changes.items():
            made[-1] = replace(made[-1], **{field: change(client, made[-1])})
    return made


def local(**of_client):
    """Change `local` client by client."""
    return {"local": lambda client, a: replace(a.local, **{name: of(client) for name, of in of_client.items()})}


def low_ranks(client: int, a: Assignment) -> dict[Slot, torch.Tensor]:
    return {slot: fit_rank(t, slot.factor, 1 + client % RANK) for slot, t in a.tensors.items()}


def mixed(mixing: Mixing):
    """Let this mixing weigh the tiers, with random values of each client's own."""

    def tensors(client: int, a: Assignment) -> dict[Slot, torch.Tensor]:
        random = torch.Generator().manual_seed(client)
        shapes = {
            slot: mixing.shape(site) for slot, site in Layout(LAYOUT.sites, TIERS, 1, mixing=mixing).mixed.items()
        }
        return a.tensors | {slot: torch.randn(shape, generator=random) for slot, shape in shapes.items()}

    return {"mixing": mixing, "tensors": tensors}


def middles(client: int, a: Assignment) -> dict[Slot, torch.Tensor]:
    """The client's tensors with an H in one tier, at each client's own LoRA rank."""
    random = torch.Generator().manual_seed(client)
    ranks = {slot.site: len(t) for slot, t in a.tensors.items() if slot.factor == "A"}
    return a.tensors | {
        Slot("leaf", site, "H"): torch.randn(rank, rank, generator=random) for site, rank in ranks.items()
    }


def first_and_others(logits: torch.Tensor, n_tiers: int) -> torch.Tensor:
    """Two of the three outputs speak for the first tier, and only the two largest of all count."""
    kept = logits.masked_fill(logits < logits.topk(2).values[..., -1:], -torch.inf).softmax(-1)
    return torch.stack((kept[..., 0] + kept[..., 1], kept[..., 2]), dim=-1)[..., :n_tiers]


LAYOUT = Layout(find_sites(backbone()), TIERS, RANK, "tier")
COPY = {slot: 0.3 * torch.randn(shape) for slot, shape in LAYOUT.shapes.items()}
ALL_TRAIN = {"trains": lambda client, a: frozenset(a.tensors)}
UNEQUAL_RANKS = {"tensors": low_ranks, "scales": lambda client, a: dict.fromkeys(TIERS, 4 / (1 + client % RANK))}
ALLOCATIONS = {
    "trains": lambda client, a: frozenset(s for s in a.tensors if f"blocks.{client % 2}" in s.site or "head" in s.site)
}
RATES = local(learning_rate=lambda client: 10.0 ** -(1 + client % 3), weight_decay=lambda client: 0.5 * (client % 3))
OWN_RATES = {"rates": lambda client, a: {s: 0.1 / (1 + client) for s in a.trains if s.tier == "mix" or s.factor == "B"}}
STEPS = {"steps": lambda client, a: (1 + 2 * client) * bool(SIZES[client])}
GATES, ROUTERS = mixed(DepthGate(TIERS)), mixed(TokenRouter(TIERS, 2))
CORRECTED = {"corrections": lambda client, a: {slot: 0.01 * torch.ones_like(t) for slot, t in a.tensors.items()}}
CLIPPED = {"sample_clip": lambda client: 0.3 + 0.1 * client, "sample_noise": lambda client: 0.5 * (client % 3)}
POISSON = {"sample_batches": lambda client: "poisson"}
CASES = {
    "uneven data": {},
    "clipped samples": local(**CLIPPED),
    "clipped samples of unequal ranks under dropout": UNEQUAL_RANKS
    | local(**CLIPPED, dropout=lambda client: 0.2 * (client % 3), optimizer=lambda client: "sgd"),
    "clipped samples of allocations": ALLOCATIONS | local(**CLIPPED),
    "clipped samples and middle factors, sampled": {"tensors": middles} | ALL_TRAIN | local(**CLIPPED, **POISSON),
    "clipped samples, some batches empty": local(**CLIPPED, **POISSON, batch_size=lambda client: 1 + client % 2),
    "frozen slices of one copy": {
        "tensors": lambda client, a: {slot: fit_rank(COPY[slot], slot.factor, 1 + client % RANK) for slot in a.tensors},
        "trains": lambda client, a: frozenset(s for s in a.tensors if s.tier == "leaf"),
    },
    "one tier frozen": {"trains": lambda client, a: frozenset(s for s in a.tensors if s.tier == "leaf")},
    "unequal ranks": UNEQUAL_RANKS,
    "allocations": ALLOCATIONS,
    "gates": GATES | ALL_TRAIN | OWN_RATES | STEPS,
    "frozen gates": GATES | {"trains": lambda client, a: frozenset(s for s in a.tensors if s.tier == "leaf")},
    "gates at some depths, of some tiers": GATES
    | {
        "tensors": lambda client, a: {
            slot: t
            for slot, t in GATES["tensors"](client, a).items()
            if slot.site != "depth.0" and (slot.tier != "leaf" or "blocks.1" not in slot.site)
        },
    }
    | ALL_TRAIN,
    "routers": ROUTERS | ALL_TRAIN | STEPS,
    "routers of outputs that stand for tiers": mixed(TokenRouter(TIERS, 3, first_and_others))
    | ALL_TRAIN
    | local(optimizer=lambda client: "sgd"),  # where only the first tier is selected Adam would scale up rounding
    "routers of unequal ranks under dropout": ROUTERS
    | {
        "tensors": lambda client, a: low_ranks(client, replace(a, tensors=ROUTERS["tensors"](client, a))),
        "scales": UNEQUAL_RANKS["scales"],
    }
    | ALL_TRAIN
    | local(dropout=lambda client: 0.2),
    "middle factors": {"tensors": middles} | ALL_TRAIN | STEPS | CORRECTED,
    "middle factors alone, of unequal ranks": {
        "tensors": lambda client, a: middles(client, replace(a, tensors=low_ranks(client, a))),
        "scales": UNEQUAL_RANKS["scales"],
        "trains": lambda client, a: frozenset(s for s in a.tensors if s.factor == "H"),
    },
    "middle factors under gates": GATES
    | {"tensors": lambda client, a: middles(client, replace(a, tensors=GATES["tensors"](client, a)))}
    | ALL_TRAIN,
    "rates of slots": OWN_RATES | local(weight_decay=lambda client: 0.5 * (client % 3)),
    "rates and decay": RATES,
    "sgd": local(optimizer=lambda client: "sgd", weight_decay=lambda client: 0.1 * client),
    "clipping": local(clip_norm=lambda client: None if client == 2 else 0.1 + 0.1 * client),
    "dropout": local(dropout=lambda client: 0.2 * (client % 3)),
    "batch sizes": local(batch_size=lambda client: 2 + client % 3),
    "unequal steps": STEPS,
    "corrections": CORRECTED,
    "corrections of unequal ranks": UNEQUAL_RANKS | CORRECTED,
    "nothing trained": {"trains": lambda client, a: frozenset()},
    "everything": {
        "mixing": GATES["mixing"],
        "tensors": lambda client, a: GATES["tensors"](client, replace(a, tensors=low_ranks(client, a))),
        "scales": UNEQUAL_RANKS["scales"],
        "trains": lambda client, a: ALLOCATIONS["trains"](client, a) | {Slot("mix", f"depth.{client % 2}", "gate")},
        **OWN_RATES,
        **local(
            learning_rate=lambda client: 10.0 ** -(1 + client % 3),
            weight_decay=lambda client: 0.5 * (client % 3),
            clip_norm=lambda client: 0.1 + client,
            dropout=lambda client: 0.2,
            batch_size=lambda client: 2 + client % 3,
        ),
    },
}
CASES["everything of clipped samples"] = CASES["everything"] | {
    "local": lambda client, a: local(**CLIPPED, **POISSON)["local"](
        client, replace(a, local=CASES["everything"]["local"](client, a))
    )
}


def overlap_too(logits, targets, tensors, received):
    return proximal(0.5, logits, targets, tensors, received) + 0.1 * tier_overlap(tensors, "root", "leaf")


def both_engines(case: dict, block_size: int, is_static: bool = False):
    """The updates of the sequential and the batched engine, by client."""
    data, net, case = federation(), backbone(), dict(case)
    module = ClientModule(net, LAYOUT.sites, mixing=case.pop("mixing", None))
    fabric = Fabric(accelerator="cpu", devices=1)
    population = Population(CLIENTS, tuple(range(CLIENTS)), (), SIZES)
    plan = Plan(
        population=population, objective=overlap_too, measure=Measure("gradient") if "corrections" in case else None
    )
    made = assignments(**case)
    blocks = [made[start : start + block_size] for start in range(0, CLIENTS, block_size)]
    batched = BatchedEngine(fabric, module, data, 7, block_size, is_static=is_static)
    engines = SequentialEngine(fabric, module, data, 7), batched
    return [
        [{u.client: u for u in work(plan, blocks)} for work in (engine.local_update, engine.evaluate)]
        for engine in engines
    ]


def assert_same(updates, expected, tolerance=1e-4):
    assert updates.keys() == expected.keys()
    for client, reference in expected.items():
        update = updates[client]
        assert update.n_samples == reference.n_samples
        assert update.logs.keys() == reference.logs.keys(), client
        for name, value in reference.logs.items():
            assert update.logs[name] == pytest.approx(value, rel=tolerance, abs=1e-6), (client, name)
        for ours, theirs in ((update.tensors, reference.tensors), (update.measured, reference.measured)):
            assert ours.keys() == theirs.keys(), client
            for slot, value in theirs.items():
                torch.testing.assert_close(
                    ours[slot], value, rtol=tolerance, atol=max(1e-6, tolerance / 10), msg=f"{client} {slot}"
                )


UNEVEN = (
    "uneven data",
    "clipped samples",
    "unequal ranks",
    "allocations",
    "batch sizes",
    "unequal steps",
    "everything",
)


@pytest.mark.parametrize(("name", "block_size"), [*((name, 4) for name in CASES), *((name, 6) for name in UNEVEN)])
def test_a_block_trains_and_evaluates_as_its_clients_do_one_by_one(name, block_size):
    (trained, evaluated), (trained_together, evaluated_together) = both_engines(CASES[name], block_size)
    assert_same(trained_together, trained)
    assert_same(evaluated_together, evaluated)
    moved = any(update.tensors for update in trained.values())
    assert moved == (name != "nothing trained")


@pytest.mark.parametrize("name", [name for name in CASES if name != "nothing trained"])
def test_padding_to_few_shapes_changes_nothing_but_the_last_bits(name):
    (trained, evaluated), (trained_together, evaluated_together) = both_engines(CASES[name], 6, is_static=True)
    assert_same(trained_together, trained)
    assert_same(evaluated_together, evaluated)


def mask_the_gradient(self, active):
    """The tempting mistake: zero gradients where nothing is trained, then let the optimiser step everywhere."""
    if self.stack.mask is not None:
        self.gradients.mul_(self.stack.mask)
    self.gradients[active:] = 0
    self.direction.data.zero_()
    self.unit.step()
    rate = self._column([a.local.learning_rate for a in self.stack.block])
    self.stack.values.mul_(1 - rate * self.decay).add_(self.direction.detach() * rate)


@pytest.mark.parametrize("name", ["rates and decay", "unequal steps", "everything"])
def test_masking_the_gradient_instead_of_the_update_would_be_noticed(name, monkeypatch):
    monkeypatch.setattr(StackedOptimizer, "step", mask_the_gradient)
    (trained, _), (trained_together, _) = both_engines(CASES[name], 6)
    with pytest.raises(AssertionError):
        assert_same(trained_together, trained)


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """FedAvg in which clients differ in LoRA rank, in the depths they train, and factors in their learning rate."""

    lora_rank: int = 3
    lora_alpha: float | None = 3.0
    head_policy: str = "global"
    tiers = ("adapter",)

    def plan(self, state, population):
        ids = range(population.n_clients)
        return Plan(
            population=population,
            lora_ranks=[1 + client % 3 for client in ids],
            allocations=[frozenset({client % 2}) for client in ids],
            rate=lambda slot, rate: rate * (1 + (slot.factor == "B")),
        )


RANKS = fedsim.LoraRanks(values=(1, 2, 3))
SOME = {"lora_rank": 2, "capabilities": fedsim.Capabilities(values=(1, 2), ratio=(2, 1), assign="cycle")}
METHODS = {
    "fedit": fedsim.FedIT(lora_rank=2),
    "local": fedsim.Local(lora_rank=2, head_policy="local"),
    "hilora": fedsim.HiLoRA(lora_rank=2, clustering=SubspaceClustering(k_min=2)),
    "mixed": Mixed(),
    "fedalt": fedsim.FedALT(lora_rank=2, lora_alpha=4),
    "fedlease": fedsim.FedLEASE(lora_rank=2, lora_alpha=4, warmup_rounds=1, max_experts=3),
    "pf2lora": fedsim.PF2LoRA(lora_rank=2, client_rank=1, lora_alpha=4, client_rate=0.5),
    "fdlora": fedsim.FDLoRA(lora_rank=2, lora_alpha=4, personal_share=0.25, fusion_share=0.25, sync_period=1),
    "fedsa_lora": fedsim.FedSALoRA(lora_rank=2, lora_alpha=4),
    "clustered_fedavg": fedsim.ClusteredFedAvg(lora_rank=2, n_clusters=2),
    "feddpa_f": fedsim.FedDPA(lora_rank=2, lora_alpha=4, variant="F", tuning_share=0.5, weighting="constant"),
    "feddpa_t": fedsim.FedDPA(lora_rank=2, lora_alpha=4, variant="T"),
    "feddpa_global": fedsim.FedDPA(lora_rank=2, lora_alpha=4, variant="F", weighting="global", n_references=20),
    "ilora": fedsim.ILoRA(ranks=RANKS),
    "ilora_unscaled": fedsim.ILoRA(ranks=RANKS, init_scale=None, lora_alpha=None, control=False),
    "fedtreelora": fedsim.FedTreeLoRA(lora_rank=2, warmup_rounds=2, tree=TreeCuts(tau=0.0)),
    "fedtreelora_by_cosine": fedsim.FedTreeLoRA(
        lora_rank=2, warmup_rounds=1, tree=TreeCuts(tau=0.0, distance="cosine"), head_policy="local"
    ),
    "fedtreelora_by_token": fedsim.FedTreeLoRA(  # of latecomers, whose experts are equal, Adam would scale up rounding
        lora_rank=2, warmup_rounds=3, tree=TreeCuts(clusters=2, one_tree=False), weigh="token"
    ),
    "ffa_lora": fedsim.FFALoRA(ranks=RANKS),
    "flexlora": fedsim.FlexLoRA(ranks=RANKS),
    "flora": fedsim.FLoRA(ranks=RANKS),
    "fedex_lora": fedsim.FedExLoRA(ranks=RANKS),
    "hetlora": fedsim.HetLoRA(ranks=RANKS, penalty=0.1),
    "lora_fair": fedsim.LoRAFAIR(ranks=RANKS),
    "fedhello_gd": fedsim.FedHeLLo(**SOME, strategy="gd", head_policy="local", forget_heads=True),
    "fedhello": fedsim.FedHeLLo(**SOME, average="samples", fim=FisherAllocation(warmup_rounds=1, period=1)),
    "fedprox": fedsim.FedProx(lora_rank=2, lora_alpha=4, mu=0.5),
    "rolora": fedsim.RoLoRA(lora_rank=2, lora_alpha=4),
    "fedsvd": fedsim.FedSVD(ranks=RANKS),
    "fedrot_lora": fedsim.FedRotLoRA(lora_rank=2, lora_alpha=4, strength=0.5),
    "raflora": fedsim.RaFLoRA(ranks=RANKS),
    "fedmomentum": fedsim.FedMomentum(ranks=RANKS),
    "ditto": fedsim.Ditto(lora_rank=2, lora_alpha=4, penalty=0.5),
    "scaffold": fedsim.SCAFFOLD(lora_rank=2, lora_alpha=4),
    "fed_sb": fedsim.FedSB(ranks=RANKS),
    "ravan": fedsim.Ravan(lora_rank=2, n_heads=3, lora_alpha=4),
    "fedra": fedsim.FedRA(**SOME),
    "straggler": fedsim.Straggler(**SOME),
    "exclusive": fedsim.Exclusive(**SOME),
    "depth_fedit": fedsim.DepthFedIT(**SOME),
}


ALSO_STATIC = ("hilora", "fedtreelora", "ilora", "fedhello")
"""Methods whose shapes are padded to few ones too."""


def test_every_method_is_among_those_that_are_compared():
    assert {type(method).__name__ for method in METHODS.values()} - {"Mixed"} == set(methods.__all__)


def products(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint with factors as their product, B A or B H A, which is what they stand for."""
    rows = {key: value for key, value in state.items() if key.endswith("|rows")}
    pairs = {key for key in rows if "/B|" in key and key.replace("/B|", "/A|") in rows and "variate" not in key}
    middles = {key: rows[middle] for key in pairs if (middle := key.replace("/B|", "/H|")) in rows}
    others = {key: value for key, value in rows.items() if re.sub(r"/[AH]\|", "/B|", key) not in pairs}
    lefts = {key: rows[key] @ middles[key] if key in middles else rows[key] for key in pairs}
    return others | {key: lefts[key] @ rows[key.replace("/B|", "/A|")] for key in pairs}


@pytest.mark.parametrize("cohort_size", [None, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", METHODS)
def test_a_whole_run_ends_alike_whichever_engine_runs_it(tiny_run, name, cohort_size):
    states, results = [], []
    data = fedsim.with_proxy(tiny_data(9, 13, unseen=(4,)), torch.arange(0, 117, 6))
    runs = [{"engine": "sequential"}, {"block_size": 3}]
    runs += [{"block_size": 3, "static_shapes": True}] if name in ALSO_STATIC else []
    for k, options in enumerate(runs):
        changes = {"data": data, "backbone": TinyAttention(), "rounds": 4, **options}
        result = tiny_run(f"{k}", method=METHODS[name], cohort_size=cohort_size, **changes)
        states.append(load_checkpoint(result.folder)[1])
        results.append(result)
    for state, result in zip(states[1:], results[1:], strict=True):
        assert state.keys() == states[0].keys()
        found, expected = products(state), products(states[0])
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=key)
        for key in ("personal.mean", "global.mean", "unseen.untuned.mean", "unseen.tuned.mean", "bytes.up"):
            assert result.summary[key] == pytest.approx(results[0].summary[key], abs=1e-6), key
