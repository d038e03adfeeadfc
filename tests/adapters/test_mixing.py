"""Tiers that are weighed: against a loop over clients, samples, tokens and tiers."""

import pytest
import torch
from torch import nn

from fedsim.adapters.layout import Layout, Site, Slot
from fedsim.adapters.linear import ClientBatch, TieredLinear
from fedsim.adapters.mixing import DepthGate, TokenRouter
from fedsim.models.client_module import ClientModule
from fedsim.parts.initialisation import lora_initial

WIDTH, OUTPUTS, CLIENTS = 8, 6, 3
SITE = Site("q", "q", WIDTH, OUTPUTS, 2)
RANKS = {"plain": 1, "own": 3, "other": 2}
GATE, ROUTER = DepthGate(("own", "other")), TokenRouter(("own", "other"), 2)
SCALES = {"plain": 1.0, "own": 0.5, "other": 2.0}


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def client_tensors(mixing, client: int) -> dict[Slot, torch.Tensor]:
    tensors = {mixing.slot(SITE): random(*mixing.shape(SITE), seed=client)}
    for t, (tier, rank) in enumerate(RANKS.items()):
        tensors[Slot(tier, "q", "A")] = random(rank, WIDTH, seed=10 * client + 2 * t)
        tensors[Slot(tier, "q", "B")] = random(OUTPUTS, rank, seed=10 * client + 2 * t + 1)
    return tensors


def weight(mixing, value: torch.Tensor, token: torch.Tensor, tier: str) -> torch.Tensor | float:
    """The weight of a tier for one token, spelt out."""
    if tier == "plain":
        return 1.0
    if mixing is GATE:
        share = 1 / (1 + torch.exp(-value))
    else:
        exponentials = [torch.exp(value[output] @ token) for output in range(2)]
        share = exponentials[0] / sum(exponentials)
    return share if tier == "own" else 1 - share


def by_hand(linear: nn.Linear, mixing, tensors, token: torch.Tensor) -> torch.Tensor:
    y = linear.weight @ token + linear.bias
    for tier in RANKS:
        change = tensors[Slot(tier, "q", "B")] @ (tensors[Slot(tier, "q", "A")] @ token)
        y = y + weight(mixing, tensors[mixing.slot(SITE)], token, tier) * SCALES[tier] * change
    return y


def base() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, OUTPUTS)


@pytest.mark.parametrize("shape", [(5,), (2, 4), (1, 1)])
@pytest.mark.parametrize("mixing", [GATE, ROUTER], ids=["gate", "router"])
def test_every_token_of_one_client_gets_its_own_weighted_sum_of_tiers(mixing, shape):
    tiered, tensors, x = TieredLinear(base(), [SITE]), client_tensors(mixing, 1), random(*shape, WIDTH, seed=99)
    tiered.install(tensors, SCALES, mixing=mixing)
    expected = torch.stack([by_hand(tiered.base, mixing, tensors, token) for token in x.view(-1, WIDTH)])
    torch.testing.assert_close(tiered(x), expected.view(*shape, OUTPUTS))


@pytest.mark.parametrize("sizes", [(2, 2, 2), (3, 1, 2)])
@pytest.mark.parametrize("mixing", [GATE, ROUTER], ids=["gate", "router"])
def test_every_client_of_a_block_mixes_with_its_own_value(mixing, sizes):
    tiered, of_client = TieredLinear(base(), [SITE]), [client_tensors(mixing, client) for client in range(CLIENTS)]
    stacked = {slot: torch.stack([tensors[slot] for tensors in of_client]) for slot in of_client[0]}
    x = random(sum(sizes), 4, WIDTH, seed=99)
    tiered.install(stacked, SCALES, ClientBatch(sizes), mixing=mixing)
    expected = [
        torch.stack([by_hand(tiered.base, mixing, tensors, token) for token in rows.reshape(-1, WIDTH)])
        for tensors, rows in zip(of_client, x.split(sizes), strict=True)
    ]
    torch.testing.assert_close(tiered(x), torch.cat(expected).view(sum(sizes), 4, OUTPUTS))


@pytest.mark.parametrize("mixing", [GATE, ROUTER], ids=["gate", "router"])
def test_without_its_slot_every_tier_weighs_one(mixing):
    tensors, x = client_tensors(mixing, 1), random(5, WIDTH, seed=99)
    mixed, plain = TieredLinear(base(), [SITE]), TieredLinear(base(), [SITE])
    del tensors[mixing.slot(SITE)]
    mixed.install(tensors, SCALES, mixing=mixing)
    plain.install(tensors, SCALES)
    assert torch.equal(mixed(x), plain(x))


def test_outputs_of_a_router_speak_only_for_tiers_that_are_there():
    three = TokenRouter(("own", "other", "third"), 3)
    tensors = client_tensors(ROUTER, 1)
    tensors[three.slot(SITE)] = torch.cat([tensors[ROUTER.slot(SITE)], 100 * torch.ones(1, WIDTH)])
    tiered, x = TieredLinear(base(), [SITE]), random(4, WIDTH, seed=99)
    tiered.install(tensors, SCALES, mixing=three)
    expected = torch.stack([by_hand(tiered.base, ROUTER, client_tensors(ROUTER, 1), token) for token in x])
    torch.testing.assert_close(tiered(x), expected)


def test_a_router_sees_the_tokens_that_dropout_hides_from_the_adapters():
    tensors, x = client_tensors(ROUTER, 1), random(5, WIDTH, seed=99)
    tensors = {slot: t for slot, t in tensors.items() if slot.tier != "plain"}
    tiered, logits = TieredLinear(base(), [SITE]), []
    watching = TokenRouter(("own", "other"), 2, lambda given, n: logits.append(given) or given.softmax(-1))
    for dropout in (None, torch.zeros_like):
        tiered.install(tensors, SCALES, dropout=dropout, mixing=watching)
        y = tiered(x)
    assert torch.equal(*logits)
    assert torch.equal(y, tiered.base(x))


SITES = tuple(Site(f"{d}.{name}", f"{d}.{name}", 8, 8, d) for d in range(2) for name in ("q", "v"))
HEAD = Site("head", "head", 8, 3, 2, is_head=True)


def test_a_gate_is_one_scalar_for_all_sites_of_a_depth_and_a_router_one_map_for_each():
    gates = Layout((*SITES, HEAD), ("own", "other"), 2, "global", GATE)
    routers = Layout((*SITES, HEAD), ("own", "other"), 2, "global", ROUTER)
    plain = Layout((*SITES, HEAD), ("own", "other"), 2, "global")
    assert list(gates.shapes)[: len(plain.shapes)] == list(plain.shapes), "mixing comes last"
    assert list(gates.mixed) == [Slot("mix", "depth.0", "gate"), Slot("mix", "depth.1", "gate")]
    assert {gates.shapes[slot] for slot in gates.mixed} == {()}
    assert list(routers.mixed) == [Slot("mix", site.name, "G") for site in SITES]
    assert {routers.shapes[slot] for slot in routers.mixed} == {(2, 8)}
    assert all(gates.depths[slot.site] == d for d, slot in enumerate(gates.mixed))
    assert plain.depths == {site.name: site.depth for site in (*SITES, HEAD)}


def test_adapters_start_alike_whether_they_are_mixed_or_not_and_gates_where_they_should():
    plain = lora_initial(Layout(SITES, ("own", "other"), 2), torch.Generator().manual_seed(0))
    gate = DepthGate(("own", "other"), initial=0.8)
    gated = lora_initial(Layout(SITES, ("own", "other"), 2, mixing=gate), torch.Generator().manual_seed(0))
    assert all(torch.equal(gated[slot], value) for slot, value in plain.items())
    assert gated[gate.slot(SITES[0])].sigmoid().item() == pytest.approx(0.8)
    routed = lora_initial(Layout(SITES, ("own", "other"), 2, mixing=ROUTER), torch.Generator().manual_seed(0))
    assert 0.5 * 8**-0.5 < routed[ROUTER.slot(SITES[0])].abs().max() <= 8**-0.5
    silent = TokenRouter(("own", "other"), 2, spread=0.0)
    assert not silent.start(SITE, torch.Generator()).any()


@pytest.mark.parametrize("initial", [0.0, 1.0, -0.1])
def test_a_gate_that_could_not_move_is_refused(initial):
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\)"):
        DepthGate(("own", "other"), initial)


def test_the_gate_of_a_depth_collects_gradients_from_all_its_sites_and_frozen_tiers_none():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.q_proj, self.v_proj, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.q_proj(x) + self.v_proj(x))

    net = Net()
    sites = tuple(Site(name, name, 8, 8, 0) for name in ("q_proj", "v_proj"))
    module = ClientModule(net, sites, mixing=GATE)
    tensors = {
        Slot(tier, site.name, factor): random(*shape, seed=s).requires_grad_(tier == "own")
        for s, (tier, site, factor, shape) in enumerate(
            (tier, site, factor, shape)
            for tier in GATE.tiers
            for site in sites
            for factor, shape in (("A", (2, 8)), ("B", (8, 2)))
        )
    }
    theta, x = torch.tensor(0.3, requires_grad=True), random(4, 8, seed=50)
    module.install(tensors | {GATE.slot(sites[0]): theta}, {}, None)
    module(x).sum().backward()
    head = net.head.weight.sum(0)
    change = sum(
        sign * (x @ tensors[Slot(tier, site.name, "A")].T @ tensors[Slot(tier, site.name, "B")].T @ head).sum()
        for tier, sign in (("own", 1), ("other", -1))
        for site in sites
    )
    share = theta.sigmoid()
    torch.testing.assert_close(theta.grad, (share * (1 - share) * change).detach())
    assert all(tensor.grad is None for slot, tensor in tensors.items() if slot.tier == "other")
