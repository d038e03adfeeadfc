"""What a client's step costs, estimated and measured: FLOPs counted by torch, bytes counted as they are saved."""

import json
import weakref
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import pytest
import timm
import torch
from conftest import TinyAttention, tiny_data
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import FlopCounterMode

import fedsim
from fedsim.adapters.layout import Layout, Slot, byte_count, fit_rank
from fedsim.adapters.linear import ClientBatch
from fedsim.costs import profiler
from fedsim.costs.profiler import profile
from fedsim.costs.step_cost import MIB, Work, by_layers
from fedsim.models.causal import random_llama
from fedsim.models.client_module import ClientModule
from fedsim.models.sites import find_sites
from fedsim.models.text import embedded_text_backbone
from fedsim.parts.budgets import layers_that_fit
from fedsim.parts.objectives import cross_entropy
from fedsim.plan import Plan

BATCH, RANK, TOLERANCE = 2, 8, 0.02
NET = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10)
LAYOUT = Layout(find_sites(NET), ("adapter", "other"), RANK, "global")
MODULE = ClientModule(NET, LAYOUT.sites)
IMAGES = torch.randn(BATCH, 3, 64, 64)
PROFILE = profile(NET, LAYOUT.sites, IMAGES)
ALL = frozenset(range(12))


MIDDLE = Layout(find_sites(NET), ("adapter", "other"), RANK, "global", middle_tiers=("adapter",))


def trained(depths, tiers=("adapter", "head"), factors="ABWb") -> frozenset[Slot]:
    of = LAYOUT.depths | {site.name: -1 for site in LAYOUT.sites if site.is_head}
    chosen = {*depths, -1}
    return frozenset(s for s in LAYOUT.shapes if s.tier in tiers and s.factor in factors and of[s.site] in chosen)


def measured(
    learns: frozenset[Slot], n_clients: int | None = None, lora_rank: int = RANK, layout: Layout = LAYOUT
) -> tuple[float, float, float]:
    """FLOPs forward, FLOPs backward and bytes kept, of a client alone or of each of a block's."""
    n = n_clients or 1
    tensors = {
        slot: fit_rank(0.1 * torch.randn(shape), slot.factor, lora_rank) for slot, shape in layout.shapes.items()
    }
    if n_clients:
        tensors = {slot: tensor.expand(n, *tensor.shape).clone() for slot, tensor in tensors.items()}
    for slot in learns:
        tensors[slot].requires_grad_()
    rows = ClientBatch([BATCH] * n) if n_clients else None
    MODULE.install(tensors, {}, partial(cross_entropy, received={}), rows=rows)
    images, targets = IMAGES.repeat(n, 1, 1, 1), torch.zeros(n * BATCH, dtype=torch.long)
    known = {t.untyped_storage().data_ptr() for t in [*NET.parameters(), *NET.buffers(), *tensors.values(), images]}
    kept = {}

    def keep(tensor):
        is_copy = {*tensor.shape[-2:]} <= {192, lora_rank, 2 * lora_rank}  # factors side by side, B H: not activations
        if tensor.untyped_storage().data_ptr() not in known and not is_copy:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = MODULE.training_step((images, targets)).sum()
        forward = counter.get_total_flops()
        loss.backward()
    n_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return forward / n, (counter.get_total_flops() - forward) / n, n_bytes / n


CASES = {
    "all depths": trained(ALL),
    "the last nine": trained(range(3, 12)),
    "the last six": trained(range(6, 12)),
    "the last three": trained(range(9, 12)),
    "the last": trained({11}),
    "three that are scattered": trained({1, 6, 11}),
    "B alone": trained(ALL, factors="B"),
    "both tiers": trained(ALL, tiers=("adapter", "other", "head")),
    "the head alone": trained(()),
}


@pytest.mark.parametrize("n_clients", [None, 3])
@pytest.mark.parametrize("name", CASES)
def test_estimates_are_within_two_percent_of_what_is_measured_alone_and_in_a_block(name, n_clients):
    cost = PROFILE.cost(Work(LAYOUT.shapes, CASES[name], fedsim.LocalTraining(batch_size=BATCH)))
    forward, backward, kept = measured(CASES[name], n_clients)
    assert cost.forward == pytest.approx(forward, rel=TOLERANCE)
    assert cost.backward == pytest.approx(backward, rel=TOLERANCE)
    assert cost.activations == pytest.approx(kept, rel=2 * TOLERANCE, abs=20_000)


@pytest.mark.parametrize("n_clients", [None, 3])
@pytest.mark.parametrize("factors", ["H", "AB", "ABH"])
def test_a_middle_factor_costs_its_product_with_b_once_for_a_batch(factors, n_clients):
    learns = frozenset(s for s in MIDDLE.shapes if s.tier == "adapter" and s.factor in factors)
    cost = PROFILE.cost(Work(MIDDLE.shapes, learns, fedsim.LocalTraining(batch_size=BATCH)))
    forward, backward, kept = measured(learns, n_clients, layout=MIDDLE)
    assert cost.forward == pytest.approx(forward, rel=0.001)
    assert cost.backward == pytest.approx(backward, rel=TOLERANCE)
    assert cost.activations == pytest.approx(kept, rel=2 * TOLERANCE)
    plain = PROFILE.cost(Work(LAYOUT.shapes, learns & LAYOUT.shapes.keys(), fedsim.LocalTraining(batch_size=BATCH)))
    assert cost.forward - plain.forward == 24 * 2 * 192 * RANK**2
    assert cost.states - plain.states == 4 * 24 * RANK**2 * (1 + 3 * ("H" in factors))


def test_a_smaller_lora_rank_costs_less_and_is_estimated_as_well():
    shapes = {s: fit_rank(torch.empty(shape), s.factor, 2).shape for s, shape in LAYOUT.shapes.items()}
    cost = PROFILE.cost(Work(shapes, CASES["all depths"], fedsim.LocalTraining(batch_size=BATCH)))
    forward, backward, kept = measured(CASES["all depths"], lora_rank=2)
    assert (cost.forward, cost.backward) == (pytest.approx(forward, rel=TOLERANCE), pytest.approx(backward, rel=0.02))
    assert cost.activations == pytest.approx(kept, rel=2 * TOLERANCE)


@pytest.mark.parametrize("n_clients", [None, 3])
def test_nothing_is_kept_or_differentiated_below_the_lowest_trained_depth(n_clients):
    """What the last k of twelve depths keep and compute backward grows by the same amount with every depth."""
    found = [measured(trained(range(12 - k, 12)), n_clients) for k in (3, 6, 9, 12)]
    for index in (1, 2):
        steps = [after[index] - before[index] for before, after in pairwise(found)]
        assert steps == pytest.approx([steps[0]] * 3, rel=1e-6)
        assert found[0][index] < 0.3 * found[3][index]
    assert len({forward for forward, _, _ in found}) == 1, "forward always goes through all"


def test_states_are_adapters_gradients_and_two_moments():
    """24 sites of 192 inputs and outputs at rank 8 in two tiers, and a head of 10 x 192 + 10."""
    one_tier, head = 24 * 2 * 8 * 192, 1930
    cost = PROFILE.cost(Work(LAYOUT.shapes, trained(ALL), fedsim.LocalTraining()))
    assert cost.states == 4 * (2 * one_tier + head + 3 * (one_tier + head))
    sgd = PROFILE.cost(Work(LAYOUT.shapes, trained(ALL), fedsim.LocalTraining(optimizer="sgd", momentum=0.0)))
    assert sgd.states == 4 * (2 * one_tier + head + one_tier + head)
    assert sgd.backbone == 4 * sum(weight.numel() for weight in NET.parameters())


def test_a_backbone_is_measured_once_for_the_same_sites_and_inputs():
    passes = []
    hook = NET.register_forward_hook(lambda *_: passes.append(1))
    try:
        assert profile(NET, LAYOUT.sites, IMAGES) == profile(NET, LAYOUT.sites, torch.zeros_like(IMAGES)) == PROFILE
        assert not passes
        assert profile(NET, LAYOUT.sites[:2], IMAGES[:1]) != PROFILE
        assert passes == [1]
    finally:
        hook.remove()


@pytest.mark.parametrize("through", [torch.nn.Identity(), torch.exp], ids=["plain", "backward needs an output"])
def test_nothing_of_the_pass_that_measures_stays_in_memory(through):
    net = TinyAttention()
    seen = []
    net.blocks[1]["q_proj"].register_forward_hook(lambda module, arguments, output: through(output))
    for module in net.modules():
        module.register_forward_hook(lambda module, arguments, output: seen.append(weakref.ref(output)))
    profile(net, find_sites(net), torch.zeros(1, 12))
    assert len(seen) > 5
    assert not [tensor for tensor in seen if tensor() is not None], "not even until Python looks for circles"


def texts(net, length=40):
    return net, torch.arange(1, 1 + length, dtype=torch.int32)[None]


@pytest.mark.parametrize(
    "make",
    [
        lambda: (
            timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10),
            IMAGES[..., :32, :32],
        ),
        lambda: texts(random_llama(100, 3, depth=2)),
        lambda: texts(embedded_text_backbone(3, 60, 0)),
    ],
    ids=["images", "language model", "texts"],
)
def test_a_large_backbone_is_measured_by_shapes_alone_with_the_same_numbers(monkeypatch, make):
    net, inputs = make()
    expected = profile(net, find_sites(net), inputs)
    monkeypatch.setattr(profiler, "LARGE", 0)
    monkeypatch.setattr(profiler, "_DONE", {})
    for parameter in net.parameters():
        parameter.data.fill_(torch.nan)
    seen = []
    net.register_forward_pre_hook(lambda module, arguments: seen.append(type(arguments[0])) if arguments else None)
    found = profile(net, find_sites(net), inputs)
    assert seen == [FakeTensor] or not seen
    assert replace(found, pieces={}) == replace(expected, pieces={})
    for depth, piece in expected.pieces.items():
        assert replace(found.pieces[depth], kept=piece.kept) == piece
        assert found.pieces[depth].kept == pytest.approx(piece.kept, rel=0.16), "causal masks are left out by values"


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_backbone_that_is_stored_in_half_precision_costs_what_it_does_in_fp32(monkeypatch, dtype, is_large):
    net, tokens = random_llama(64, 2), torch.ones(2, 16, dtype=torch.int32)
    monkeypatch.setattr(profiler, "LARGE", byte_count(net.parameters()) + (not is_large))
    expected = profile(net, find_sites(net), tokens)
    monkeypatch.setattr(profiler, "_DONE", {})
    assert profile(net.to(dtype), find_sites(net), tokens) == expected


def test_a_large_backbone_that_goes_by_values_is_run(monkeypatch):
    class Picky(TinyAttention):
        def forward(self, x):
            return super().forward(x if x.sum() < 1 else 2 * x)

    expected = profile(TinyAttention(), find_sites(TinyAttention()), torch.zeros(1, 12))
    monkeypatch.setattr(profiler, "LARGE", 0)
    assert profile(Picky(), find_sites(Picky()), torch.zeros(1, 12)) == expected


def test_the_last_k_depths_cost_more_the_more_there_are():
    memory = [cost.memory / MIB for cost in by_layers(PROFILE, LAYOUT, fedsim.LocalTraining(batch_size=BATCH))]
    assert len(memory) == 13
    assert memory == sorted(memory)
    for k in range(1, 13):
        assert layers_that_fit(memory[k], memory) == k
        assert layers_that_fit(memory[k] - 1e-6, memory) == k - 1
    assert layers_that_fit(1e9, memory) == 12
    assert layers_that_fit(0, memory) == 0


@dataclass(frozen=True, kw_only=True)
class Budgeted:
    """FedAvg in which a client trains as many of the last depths as its memory allows."""

    budgets: tuple[float, ...]
    lora_rank: int = 2
    lora_alpha: float | None = None
    head_policy: str = "global"
    tiers = ("adapter",)

    def plan(self, state, population):
        layers = [layers_that_fit(budget, state.memory) for budget in self.budgets]
        n = len(state.memory) - 1
        return Plan(population=population, allocations=[frozenset(range(n - k, n)) for k in layers])


def events(result):
    return [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]


def test_a_budget_in_mib_becomes_layers_and_the_events_say_who_trained_what_at_which_cost(tiny_run):
    first = events(tiny_run("plain"))[0]["resources"]
    assert first["memory_mib"] == sorted(first["memory_mib"])
    assert len(first["memory_mib"]) == 3, "none, the last, and both depths"
    budgets = [first["memory_mib"][min(client, 2)] + 1e-3 for client in range(6)]
    run = events(tiny_run("budgets", method=Budgeted(budgets=tuple(budgets))))
    assert [event["allocations"] for event in run[:3]] == [[[], [1], [0, 1], [0, 1], [0, 1]]] * 3
    assert run[0]["cohort"] == [0, 1, 2, 3, 4]
    assert run[0]["memory_mib"][1:] == first["memory_mib"][1:] + first["memory_mib"][2:] * 2
    assert run[0]["memory_mib"][0] < first["memory_mib"][0], "who trains no layer trains no classifier either"
    assert run[0]["backward_gflop"] == sorted(run[0]["backward_gflop"])
    assert "resources" not in run[1]


@pytest.mark.parametrize(
    ("method", "values", "budgets"),
    [
        (fedsim.FedHeLLo, (1,), (1e-6,)),
        (fedsim.Straggler, (1,), (1e-6, 1e9)),
        (fedsim.Exclusive, (1,), ()),
        (fedsim.FedRA, (1,), (1e-6,)),
        (fedsim.DepthFedIT, (1,), (1e-6,)),
    ],
)
def test_a_run_in_which_nobody_trains_is_refused(tiny_run, tmp_path, method, values, budgets):
    capabilities = fedsim.Capabilities(values=values, budgets=budgets)
    options = {"strategy": "rgd"} if method is fedsim.FedHeLLo else {}
    with pytest.raises(ValueError, match=r"no client that takes part trains any of the 2 depths; .* [\d.]+ MiB"):
        tiny_run("nobody", method=method(lora_rank=2, capabilities=capabilities, **options))
    assert not (tmp_path / "nobody").exists()


def test_a_backbone_that_does_not_take_the_data_is_refused_before_anything_starts(tiny_run, tmp_path):
    with pytest.raises(ValueError, match=r"The backbone cannot take the data's inputs \(1, 12\)"):
        tiny_run("refused", backbone=TinyAttention(width=16), data=tiny_data())
    assert not (tmp_path / "refused").exists()
