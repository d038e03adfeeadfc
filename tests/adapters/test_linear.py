"""Adapters in the forward pass: against dense matrices and against PEFT, on maps a few numbers wide."""

import peft
import pytest
import torch
from torch import nn

from fedsim.adapters.layout import Site, Slot
from fedsim.adapters.linear import TieredLinear, insert_tiered_linears

WIDTH, OUTPUTS = 8, 6
WHOLE = Site("q", "q", WIDTH, OUTPUTS, 0)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def base(outputs: int = OUTPUTS, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, outputs, bias=bias)


def factors(site: Site, ranks: dict[str, int]) -> dict[Slot, torch.Tensor]:
    """A pair (A, B) for each tier, of its own LoRA rank."""
    tensors = {}
    for t, (tier, rank) in enumerate(ranks.items()):
        tensors[Slot(tier, site.name, "A")] = random(rank, site.in_features, seed=2 * t)
        tensors[Slot(tier, site.name, "B")] = random(site.out_features, rank, seed=2 * t + 1)
    return tensors


@pytest.mark.parametrize("ranks", [{"root": 3}, {"root": 3, "cluster": 3, "leaf": 3}, {"root": 1, "leaf": 4}])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4)])
def test_the_map_is_w_plus_the_scaled_sum_of_all_tiers_products(ranks, shape):
    linear, x = base(), random(*shape, WIDTH, seed=9)
    tensors, scales = factors(WHOLE, ranks), {"root": 0.5, "leaf": 2.0}
    tiered = TieredLinear(linear, [WHOLE])
    tiered.install(tensors, scales)
    dense = linear.weight.detach().clone()
    for tier in ranks:
        dense += scales.get(tier, 1.0) * tensors[Slot(tier, "q", "B")] @ tensors[Slot(tier, "q", "A")]
    torch.testing.assert_close(tiered(x), x @ dense.T + linear.bias)


def test_nothing_installed_leaves_the_frozen_map_as_it_is():
    linear, x = base(), random(3, WIDTH, seed=9)
    assert torch.equal(TieredLinear(linear, [WHOLE])(x), linear(x))


def test_installing_again_forgets_the_client_before():
    linear, x = base(), random(3, WIDTH, seed=9)
    tiered = TieredLinear(linear, [WHOLE])
    tiered.install(factors(WHOLE, {"root": 3, "leaf": 3}), {})
    tiered.install({}, {})
    assert torch.equal(tiered(x), linear(x))


QUERY = Site("qkv.q", "qkv", WIDTH, 4, 0, rows=(0, 4))
VALUE = Site("qkv.v", "qkv", WIDTH, 4, 0, rows=(8, 12))


@pytest.mark.parametrize("sites", [(QUERY, VALUE), (QUERY,), (VALUE,)], ids=["q_and_v", "q", "v"])
def test_adapters_of_a_fused_map_change_their_own_rows_only(sites):
    linear, x = base(12), random(2, 5, WIDTH, seed=9)
    tiered = TieredLinear(linear, (QUERY, VALUE))
    tensors = {slot: t for site in sites for slot, t in factors(site, {"root": 2, "leaf": 2}).items()}
    tiered.install(tensors, {"leaf": 3.0})
    dense = linear.weight.detach().clone()
    for site in sites:
        for tier, scale in (("root", 1), ("leaf", 3)):
            dense[slice(*site.rows)] += (
                scale * tensors[Slot(tier, site.name, "B")] @ tensors[Slot(tier, site.name, "A")]
            )
    y = tiered(x)
    torch.testing.assert_close(y, x @ dense.T + linear.bias)
    touched = torch.zeros(12, dtype=torch.bool)
    for site in sites:
        touched[slice(*site.rows)] = True
    assert torch.equal(y[..., ~touched], linear(x)[..., ~touched])


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_adds_a_full_matrix_and_bias_for_each_tier_whatever_the_scales(bias):
    site = Site("head", "head", WIDTH, OUTPUTS, 1, is_head=True, has_bias=bias)
    linear, x = base(bias=bias), random(3, WIDTH, seed=9)
    tensors = {Slot(tier, "head", "W"): random(OUTPUTS, WIDTH, seed=t) for t, tier in enumerate(("root", "leaf"))}
    if bias:
        tensors |= {Slot(tier, "head", "b"): random(OUTPUTS, seed=5 + t) for t, tier in enumerate(("root", "leaf"))}
    tiered = TieredLinear(linear, [site])
    tiered.install(tensors, {"root": 100.0})
    expected = linear(x)
    for slot, value in tensors.items():
        expected = expected + (x @ value.T if slot.factor == "W" else value)
    torch.testing.assert_close(tiered(x), expected)


@pytest.mark.parametrize("alpha", [4, 16])
def test_one_tier_equals_pefts_lora(alpha):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.q_proj, self.out = nn.Linear(WIDTH, OUTPUTS), nn.Linear(OUTPUTS, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.relu(self.q_proj(x)))

    rank, x = 4, random(5, WIDTH, seed=9)
    site = Site("q_proj", "q_proj", WIDTH, OUTPUTS, 0)
    tensors = {slot: t.requires_grad_() for slot, t in factors(site, {"adapter": rank}).items()}
    A, B = tensors.values()
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["q_proj"])
    reference = peft.get_peft_model(Model(), config)
    layer = reference.base_model.model.q_proj
    layer.lora_A["default"].weight.data = A.detach().clone()
    layer.lora_B["default"].weight.data = B.detach().clone()
    ours = Model().requires_grad_(False)
    insert_tiered_linears(ours, [site])["q_proj"].install(tensors, {"adapter": alpha / rank})
    torch.testing.assert_close(ours(x), reference(x), rtol=0, atol=1e-6)
    ours(x).square().sum().backward()
    reference(x).square().sum().backward()
    torch.testing.assert_close(A.grad, layer.lora_A["default"].weight.grad, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(B.grad, layer.lora_B["default"].weight.grad, rtol=1e-6, atol=1e-5)


def test_only_trained_tensors_get_gradients_and_the_backbone_none():
    backbone = nn.Sequential(nn.Linear(WIDTH, WIDTH), base(12), nn.ReLU(), nn.Linear(12, 3))
    sites = [
        Site("1.q", "1", WIDTH, 4, 0, rows=(0, 4)),
        Site("1.v", "1", WIDTH, 4, 0, rows=(8, 12)),
        Site("3", "3", 12, 3, 1, is_head=True),
    ]
    backbone.requires_grad_(False)
    tensors = {slot: t for site in sites[:2] for slot, t in factors(site, {"root": 2, "leaf": 2}).items()}
    tensors |= {Slot("leaf", "3", "W"): torch.zeros(3, 12), Slot("leaf", "3", "b"): torch.zeros(3)}
    trained = {slot for slot in tensors if slot.tier == "leaf"}
    for slot in trained:
        tensors[slot].requires_grad_()
    for linear in insert_tiered_linears(backbone, sites).values():
        linear.install(tensors, {})
    backbone(random(4, WIDTH, seed=9)).square().sum().backward()
    for slot, value in tensors.items():
        assert (value.grad is not None and bool(value.grad.any())) == (slot in trained), slot
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_freezing_is_done_by_the_map_itself():
    assert not any(p.requires_grad for p in TieredLinear(base(), [WHOLE]).parameters())


def test_maps_are_replaced_where_they_stand_and_never_wrapped_twice():
    backbone = nn.ModuleDict({"block": nn.ModuleDict({"q": base(), "k": base()})})
    site = Site("block.q", "block.q", WIDTH, OUTPUTS, 0)
    original = backbone["block"]["q"]
    first = insert_tiered_linears(backbone, [site])
    second = insert_tiered_linears(backbone, [site])
    assert list(second) == ["block.q"]
    assert backbone["block"]["q"] is second["block.q"]
    assert second["block.q"] is not first["block.q"]
    assert second["block.q"].base is original
    assert second["block.q"].weight is original.weight
    assert type(backbone["block"]["k"]) is nn.Linear
