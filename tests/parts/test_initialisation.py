"""How a fresh adapter starts."""

import torch

from fedsim.adapters.layout import Layout, Site
from fedsim.parts.initialisation import lora_initial

SITES = (Site("q", "q", 64, 32, 0), Site("head", "head", 32, 3, 1, is_head=True))
LAYOUT = Layout(SITES, ("root", "leaf"), 8, "tier")


def start(seed: int) -> dict:
    return lora_initial(LAYOUT, torch.Generator().manual_seed(seed))


def test_every_slot_has_a_start_of_its_shape():
    assert {slot: value.shape for slot, value in start(0).items()} == LAYOUT.shapes


def test_every_tier_starts_as_the_identity():
    for slot, value in start(0).items():
        assert value.any() == (slot.factor == "A")


def test_a_is_uniform_with_the_bound_and_variance_of_loras_initialisation():
    """Kaiming-uniform with a = √5 is uniform in ±1/√I, of variance 1/(3 I)."""
    values = torch.cat([value.flatten() for slot, value in start(0).items() if slot.factor == "A"])
    assert float(values.abs().max()) <= 1 / 64**0.5
    assert abs(float(values.var()) * 3 * 64 - 1) < 0.1
    torch.manual_seed(0)
    reference = torch.nn.init.kaiming_uniform_(torch.empty(8, 64), a=5**0.5)
    assert float(reference.abs().max()) <= 1 / 64**0.5


def test_the_start_is_a_function_of_the_seed_and_tiers_start_apart():
    one, again, other = start(0), start(0), start(1)
    for slot, value in one.items():
        assert torch.equal(value, again[slot])
        if slot.factor == "A":
            assert not torch.equal(value, other[slot])
            assert not torch.equal(value, one[slot._replace(tier="leaf" if slot.tier == "root" else "root")])
