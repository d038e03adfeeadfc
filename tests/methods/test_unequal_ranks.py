"""Methods for clients of unequal LoRA rank: server updates on factors made up here, against dense sums in float64."""

from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from conftest import TinyAttention, tiny_data
from torch import nn

import fedsim
from fedsim.adapters.bank import NEVER, Bank
from fedsim.adapters.layout import Layout, Slot, fit_rank, pad_rank
from fedsim.costs.accounting import account_round, round_costs
from fedsim.distributed.workers import Workers
from fedsim.models.client_module import ClientModule
from fedsim.models.sites import find_sites, site_weights
from fedsim.parts.initialisation import lora_initial
from fedsim.parts.uplink import Uplink
from fedsim.parts.variates import CLIENT, SERVER, variate
from fedsim.plan import starting_values
from fedsim.randomness import generator
from fedsim.round import ClientUpdate, Horizon, Population, ServerState
from fedsim.server.aggregator import Aggregator
from fedsim.server.workload import Workload
from fedsim.storage.run_folder import load_checkpoint

WIDTH, ALPHA = 12, 4.0
RANKS = fedsim.LoraRanks(values=(1, 2, 4))
SAMPLES = (10, 30, 60)
SITE = "blocks.0.q_proj"


class Server:
    """The server's half of a round of a method with three clients, on a backbone 12 wide."""

    def __init__(self, method, ranks=RANKS):
        self.method, self.backbone = method, TinyAttention(WIDTH)
        self.population = Population(3, (0, 1, 2), (), SAMPLES)
        sites = find_sites(self.backbone)
        kinds = getattr(method, "mixing", None), getattr(method, "middle_tiers", ())
        layout = Layout(sites, method.tiers, method.lora_rank, method.head_policy, *kinds)
        self.initial = starting_values(method, layout, generator(0, "initial"), site_weights(self.backbone, sites))
        never = torch.full((3,), NEVER)
        self.state = ServerState(0, Horizon(9), bank=Bank(self.initial), last_seen=never)
        workload = Workload(method, self.population, layout, self.initial, fedsim.LocalTraining())
        self.aggregator = Aggregator(workload, Workers())
        self.sites, self.ranks = sites, ranks.of(3)

    def assignments(self):
        """What the three clients are given, by client."""
        dispatch = self.aggregator.dispatch(self.state, [0, 1, 2])
        return {a.client: a for block in dispatch.blocks for a in block}

    def round(self, train, measured=lambda client, slot, tensor: None) -> dict[int, ClientUpdate]:
        """Let `train(client, slot, tensor)` change what clients train, and update the server; what they sent."""
        dispatch = self.aggregator.dispatch(self.state, [0, 1, 2])
        costs = round_costs(self.state, dispatch.plan, self.aggregator.workload.of, dispatch.clients, None, Uplink())
        updates = []
        for a in [a for block in dispatch.blocks for a in block]:
            tensors = {slot: train(a.client, slot, a.tensors[slot]) for slot in a.tensors if slot in a.trains}
            gradients = {slot: measured(a.client, slot, a.tensors[slot]) for slot in tensors}
            gradients = {slot: g for slot, g in gradients.items() if g is not None}
            updates.append(ClientUpdate(a.client, SAMPLES[a.client], tensors, measured=gradients))
        collected = self.aggregator.collect(dispatch.plan, updates)
        self.state, outcome = self.aggregator.merge(self.state, dispatch.plan, collected)
        self.costs, sums = account_round(costs, outcome, None)
        self.log = {**outcome.log, **sums}
        return {update.client: update for update in sorted(updates, key=lambda update: update.client)}

    def function(self, client: int, largest: bool = False) -> np.ndarray:
        """What all tiers of a client (or at the largest rank) add to the site's weight, dense."""
        sizes = {0: 1, 1: 1, 2: 1} if largest else None
        dispatch = self.aggregator.dispatch(self.state, [0, 1, 2], test_sizes=sizes)
        (a,) = [a for block in dispatch.blocks for a in block if a.client == client]
        return added(a.tensors, a.scales, self.method.tiers)


def added(tensors, scales, tiers) -> np.ndarray:
    pairs = [(tier, tensors[Slot(tier, SITE, "B")].double(), tensors[Slot(tier, SITE, "A")].double()) for tier in tiers]
    return sum(scales[tier] * (B @ A).numpy() for tier, B, A in pairs)


def noise(client: int, slot: Slot, tensor: torch.Tensor) -> torch.Tensor:
    random = torch.Generator().manual_seed(100 * client + sum(map(ord, str(slot))))
    return tensor + 0.1 * torch.randn(tensor.shape, generator=random)


def mean_function(updates: dict[int, ClientUpdate], ranks, before=0.0) -> np.ndarray:
    """Σ p_k s_k B_k A_k of what clients sent, dense, plus what every client's frozen tiers add."""
    total = 0.0
    for client, update in updates.items():
        pair = update.tensors[Slot("adapter", SITE, "B")].double() @ update.tensors[Slot("adapter", SITE, "A")].double()
        frozen = before[client] if isinstance(before, dict) else before
        total = total + SAMPLES[client] / sum(SAMPLES) * (ALPHA / ranks[client] * pair.numpy() + frozen)
    return total


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-6) -> bool:
    return np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


# what the server holds after a round


EXACT = {
    "flora": fedsim.FLoRA(ranks=RANKS, lora_alpha=ALPHA),
    "flora, warm": fedsim.FLoRA(ranks=RANKS, lora_alpha=ALPHA, restart="warm"),
    "fedex_lora": fedsim.FedExLoRA(ranks=RANKS, lora_alpha=ALPHA),
}


@pytest.mark.parametrize("method", EXACT.values(), ids=EXACT)
def test_stacking_is_exact_for_the_mean_of_what_clients_do_over_any_number_of_rounds(method):
    server = Server(method)
    for _ in range(5):  # 7 directions a round: more than the width of 12 after two
        given = server.assignments()
        tiers = method.tiers[1:]
        before = {client: added(a.tensors, a.scales, tiers) for client, a in given.items()}
        updates = server.round(noise)
        assert close(server.function(2, largest=True), mean_function(updates, server.ranks, before), 1e-5)
        widths = server.state.bank.read(Slot(tiers[0], SITE, "B"), torch.tensor([0])).shape
        assert widths[-1] <= WIDTH


@pytest.mark.parametrize(
    ("method", "rows"), [(EXACT["flora"], sum((1, 2, 4))), (EXACT["fedex_lora"], sum((1, 2, 4, 4)))]
)
def test_what_a_round_stacks_is_sent_to_everyone(method, rows):
    """In float32, a row of A and a column of B for each direction, at four sites; FedEx adds those of the mean."""
    server = Server(method)
    server.round(noise)
    assert [cost.bytes_down for cost in server.costs] == [4 * 4 * rows * (WIDTH + WIDTH)] * 3


def test_floras_stack_is_pefts_cat():
    updates = Server(fedsim.FLoRA(ranks=RANKS, lora_alpha=ALPHA)).round(noise)
    model = nn.ModuleDict({"q_proj": nn.Linear(WIDTH, WIDTH, bias=False)})
    wrapped = None
    for client, update in updates.items():
        config = peft.LoraConfig(r=RANKS.of(3)[client], lora_alpha=ALPHA, target_modules=["q_proj"])
        if wrapped is None:
            wrapped = peft.PeftModel(model, config, adapter_name="0")
        else:
            wrapped.add_adapter(str(client), config)
        layer = wrapped.base_model.model["q_proj"]
        layer.lora_A[str(client)].weight.data = update.tensors[Slot("adapter", SITE, "A")].clone()
        layer.lora_B[str(client)].weight.data = update.tensors[Slot("adapter", SITE, "B")].clone()
    wrapped.add_weighted_adapter(["0", "1", "2"], [n / 100 for n in SAMPLES], "all", combination_type="cat")
    expected = layer.get_delta_weight("all").detach().double().numpy()
    server = Server(fedsim.FLoRA(ranks=RANKS, lora_alpha=ALPHA))
    server.round(noise)
    assert close(server.function(0), expected)


@pytest.mark.parametrize("restart", ["fresh", "warm"])
def test_flora_starts_every_round_from_new_random_a_or_from_the_mean_of_the_clients(restart):
    server, held = Server(fedsim.FLoRA(ranks=RANKS, lora_alpha=ALPHA, restart=restart)), []
    pair, bound = Slot("adapter", SITE, "A"), WIDTH**-0.5
    for _ in range(2):
        updates = server.round(noise)
        held.append(server.state.bank.read(pair, torch.tensor([0]))[0])
        padded = [pad_rank(update.tensors[pair], "A", 4) for update in updates.values()]
        mean = sum(n / sum(SAMPLES) * A for n, A in zip(SAMPLES, padded, strict=True))
        assert torch.allclose(held[-1], mean, atol=1e-6) == (restart == "warm")
    assert not torch.equal(*held)
    if restart == "fresh":  # uniform about zero, within the bound of torch's linear layers
        both = torch.cat(held)
        assert both.abs().max() < bound
        assert both.mean().abs() < bound / 4
        assert both.std() == pytest.approx(bound / 3**0.5, rel=0.1)


@pytest.mark.parametrize("seed", [0, 5])
def test_floras_new_random_a_follows_the_seed_of_the_run(seed):
    server, pair = Server(fedsim.FLoRA(ranks=RANKS, lora_alpha=ALPHA)), Slot("adapter", SITE, "A")
    server.state = replace(server.state, seed=seed)
    server.round(noise)
    drawn = torch.rand(4, WIDTH, generator=generator(seed, f"flora/{pair}", 0))
    torch.testing.assert_close(server.state.bank.read(pair, torch.tensor([0]))[0], (2 * drawn - 1) / WIDTH**0.5)


def test_fedex_lora_of_clients_that_weigh_alike_ends_in_the_plain_mean_of_products():
    server = Server(fedsim.FedExLoRA(ranks=RANKS, lora_alpha=ALPHA, average="clients"))
    frozen = np.zeros((WIDTH, WIDTH))
    for _ in range(2):
        expected = frozen.copy()
        for client, update in server.round(noise).items():
            B, A = (update.tensors[Slot("adapter", SITE, factor)].double().numpy() for factor in "BA")
            expected += ALPHA / server.ranks[client] * (B @ A) / 3
        assert close(server.function(2, largest=True), expected, 1e-5)
        held = server.assignments()[2]
        frozen = server.function(2) - added(held.tensors, held.scales, ("adapter",))


def test_fedex_lora_merges_a_round_of_a_single_client(tiny_run):
    """Nothing is left over then; with unequal clients the mean of the factors would leave a residual."""
    result = tiny_run(method=fedsim.FedExLoRA(ranks=fedsim.LoraRanks(values=(2,))), cohort_size=1, rounds=1)
    state = load_checkpoint(result.folder)[1]
    pairs = [key for key in state if key.startswith("bank|residual/") and "/B|" in key and key.endswith("|rows")]
    assert len(pairs) == 4
    assert all((state[key] @ state[key.replace("/B|", "/A|")]).abs().max() < 1e-6 for key in pairs)


@pytest.mark.parametrize("method", [fedsim.FlexLoRA(ranks=RANKS, lora_alpha=ALPHA)])
def test_flexlora_hands_out_the_best_approximation_at_each_rank(method):
    server = Server(method)
    U, S, Vh = np.linalg.svd(mean_function(server.round(noise), server.ranks))
    for client, rank in enumerate(server.ranks):
        assert close(server.function(client), (U[:, :rank] * S[:rank]) @ Vh[:rank], 1e-5)
    assert len(server.log["discarded_energy_by_lora_rank"]) == 4


def test_ilora_hands_out_the_projection_onto_the_first_columns_at_each_rank():
    server = Server(fedsim.ILoRA(ranks=RANKS, lora_alpha=ALPHA, control=False))
    start = {client: server.assignments()[client] for client in range(3)}
    delta = mean_function(server.round(noise), server.ranks)
    for client, rank in enumerate(server.ranks):
        offset = added(start[client].tensors, start[client].scales, ("offset",))
        basis = delta[:, :rank]
        projection = basis @ np.linalg.lstsq(basis, delta, rcond=None)[0]
        assert close(server.function(client), projection + offset, 1e-5)
    whole = server.log["discarded_energy_by_lora_rank"]
    assert whole == sorted(whole, reverse=True)


def test_unfolded_ilora_sums_bare_factors():
    server = Server(fedsim.ILoRA(ranks=RANKS, lora_alpha=ALPHA, control=False, fold_scaling=False, core="svd"))
    updates = server.round(noise)
    bare = mean_function(updates, [ALPHA] * 3)
    U, S, Vh = np.linalg.svd(bare)
    a = server.assignments()[2]
    found = a.tensors[Slot("adapter", SITE, "B")].double() @ a.tensors[Slot("adapter", SITE, "A")].double()
    assert close(found.numpy(), (U[:, :4] * S[:4]) @ Vh[:4], 1e-5)


def test_lora_fair_comes_as_near_to_the_mean_product_as_the_mean_of_a_allows():
    server = Server(fedsim.LoRAFAIR(ranks=RANKS, lora_alpha=ALPHA, penalty=1e-9))
    updates = server.round(noise)
    delta = mean_function(updates, server.ranks)
    A = server.state.bank.read(Slot("adapter", SITE, "A"), torch.tensor([0]))[0].double().numpy()
    assert close(server.function(2), delta @ np.linalg.pinv(A) @ A, 1e-4)
    held_back = Server(fedsim.LoRAFAIR(ranks=RANKS, lora_alpha=ALPHA, penalty=1e9))
    held_back.round(noise)
    means = [held_back.state.bank.read(Slot("adapter", SITE, factor), torch.tensor([0]))[0] for factor in "BA"]
    assert close(held_back.function(2), (means[0] @ means[1]).numpy(), 1e-5), "a heavy penalty leaves FedIT"
    assert np.linalg.norm(held_back.function(2) - delta) > np.linalg.norm(server.function(2) - delta)


def test_ffa_lora_never_touches_a_and_its_mean_of_b_is_exact():
    server = Server(fedsim.FFALoRA(ranks=RANKS, lora_alpha=ALPHA))
    updates = server.round(noise)
    A = server.initial[Slot("adapter", SITE, "A")]
    assert all(slot.factor != "A" for update in updates.values() for slot in update.tensors)
    sent = {
        client: replace(u, tensors=u.tensors | {Slot("adapter", SITE, "A"): fit_rank(A, "A", server.ranks[client])})
        for client, u in updates.items()
    }
    assert close(server.function(2), mean_function(sent, server.ranks), 1e-5)


def test_with_equal_ranks_and_an_svd_core_ilora_without_its_start_is_flexlora():
    ranks = fedsim.LoraRanks(values=(3,))
    ilora = fedsim.ILoRA(ranks=ranks, lora_alpha=ALPHA, init="random", core="svd", control=False)
    servers = [Server(method, ranks) for method in (ilora, fedsim.FlexLoRA(ranks=ranks, lora_alpha=ALPHA))]
    for _ in range(3):
        for server in servers:
            server.round(noise)
        assert close(servers[0].function(1), servers[1].function(1))


EQUAL = fedsim.LoraRanks(values=(2,))


@pytest.mark.parametrize("method", [fedsim.FedIT(lora_rank=2, lora_alpha=6), fedsim.FFALoRA(ranks=EQUAL, lora_alpha=6)])
def test_what_the_server_holds_has_one_unit_from_the_start(method):
    """Its starting values are what clients send back that trained nothing, α/R included; clients get LoRA's own."""
    server = Server(method, EQUAL)
    start = lora_initial(Layout(server.sites, method.tiers, 2, method.head_policy), generator(0, "initial"))
    for slot, value in server.assignments()[0].tensors.items():
        torch.testing.assert_close(value, start[slot])
    server.round(lambda client, slot, tensor: tensor)
    for slot, value in server.initial.items():
        torch.testing.assert_close(server.state.bank.read(slot, torch.zeros(1, dtype=torch.long))[0], value)


# ILoRA's start


@pytest.mark.parametrize("options", [{}, {"init_scale": None, "lora_alpha": None}, {"init_scale": 0.1}])
def test_ilora_starts_with_the_pretrained_function_at_every_rank(options):
    server = Server(fedsim.ILoRA(ranks=RANKS, **options))
    module, x = ClientModule(server.backbone, server.sites), torch.randn(5, WIDTH)
    module.install({}, {}, None)
    expected = module(x)
    for client, a in server.assignments().items():
        assert a.tensors[Slot("adapter", SITE, "B")].shape == (WIDTH, server.ranks[client])
        module.install(a.tensors, a.scales, None)
        torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-5)


def test_ilora_starts_from_leading_columns_of_q_and_rows_of_r_nested_and_of_the_asked_size():
    server = Server(fedsim.ILoRA(ranks=RANKS))
    weight = site_weights(server.backbone, server.sites)[SITE].detach().double().numpy()
    Q, R = np.linalg.qr(weight)
    signs = np.where(np.diag(R) < 0, -1, 1)
    given = {client: a.tensors for client, a in server.assignments().items()}
    B, A = (given[2][Slot("adapter", SITE, factor)].double().numpy() for factor in "BA")
    assert (B @ A).std() == pytest.approx(1e-4, rel=0.2)
    assert np.sqrt(np.square(B @ A).mean()) == pytest.approx(1e-4, rel=1e-5)
    length = np.linalg.norm(B[:, 0])
    np.testing.assert_allclose(B / length, (Q * signs)[:, :4], atol=1e-5)
    np.testing.assert_allclose(A / np.linalg.norm(A), (signs[:, None] * R)[:4] / np.linalg.norm(R[:4]), atol=1e-5)
    for client, rank in enumerate(server.ranks):
        for factor, scale in (("B", 1), ("A", rank / 4)):
            slot = Slot("adapter", SITE, factor)
            expected = scale * fit_rank(given[2][slot], factor, rank)
            assert torch.equal(given[client][slot], expected), "α/r B A is the leading part of what the server holds"


def test_ilora_logs_how_far_the_model_moves_by_being_aggregated_without_any_training():
    """Against dense matrices: the sum of what clients hold, cut to the leading columns of its Q."""
    server = Server(fedsim.ILoRA(ranks=RANKS))
    difference, before = 0.0, 0.0
    for site in [site.name for site in server.sites if not site.is_head]:
        B, A = (server.initial[Slot("adapter", site, factor)].double().numpy() for factor in "BA")
        total = sum(n / 100 * B[:, :r] @ A[:r] for n, r in zip(SAMPLES, server.ranks, strict=True))
        Q = np.linalg.qr(total[:, :4])[0]
        difference += np.square(Q @ Q.T @ total - B @ A).sum()
        before += np.square(B @ A).sum()
    server.round(noise)
    assert server.log["untrained_change"] == pytest.approx((difference / before) ** 0.5, rel=1e-4)
    assert server.log["untrained_change"] > 0.05
    server.round(noise)
    assert "untrained_change" not in server.log
    equal = Server(fedsim.ILoRA(ranks=EQUAL), EQUAL)
    equal.round(noise)
    assert equal.log["untrained_change"] < 1e-3


def test_an_unscaled_start_survives_a_round_without_training_and_needs_alpha_to_follow_the_rank():
    server = Server(fedsim.ILoRA(ranks=RANKS, init_scale=None, lora_alpha=None, control=False))
    for _ in range(2):
        server.round(lambda client, slot, tensor: tensor)
        for client in range(3):
            assert np.abs(server.function(client)).max() < 1e-5, "pretrained directions are not shrunk"
    with pytest.raises(ValueError, match="init_scale is None"):
        fedsim.ILoRA(init_scale=None)


# control variates


def gradient(client: int, slot: Slot, tensor: torch.Tensor) -> torch.Tensor:
    return noise(client + 7, slot, torch.zeros_like(tensor))


@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_corrections_cancel_over_the_clients_that_own_a_direction(alpha):
    server = Server(fedsim.ILoRA(ranks=RANKS, lora_alpha=alpha))
    assert all(not c.any() for a in server.assignments().values() for c in a.corrections.values()), "none at first"
    for _ in range(2):
        server.round(noise, gradient)
    corrections = {client: a.corrections for client, a in server.assignments().items()}
    for slot, axis in ((Slot("adapter", SITE, "A"), 0), (Slot("adapter", SITE, "B"), 1)):
        total = torch.zeros_like(server.initial[slot])
        for client, rank in enumerate(server.ranks):
            scale = 1.0 if alpha is None or slot.factor == "B" else alpha / rank
            own = corrections[client][slot] / scale
            assert own.any() or rank == 4, "where nobody else has a direction there is nothing to correct"
            total.narrow(axis, 0, rank).add_(own)
        assert total.abs().max() < 1e-6
    head = sum(corrections[client][Slot("head", "head", "W")] for client in range(3))
    assert head.abs().max() < 1e-6


def test_the_variates_are_option_one_of_scaffold():
    server = Server(fedsim.ILoRA(ranks=fedsim.LoraRanks(values=(2,)), lora_alpha=None, correction_scale=0.25))
    slot = Slot("adapter", SITE, "A")
    for factor in (1.0, 3.0):
        sent = server.round(noise, lambda client, slot, tensor, f=factor: f * gradient(client, slot, tensor))
    own = [sent[client].measured[slot] for client in range(3)]
    everyone = torch.tensor([0])
    torch.testing.assert_close(server.state.bank.read(variate(slot, SERVER), everyone)[0], sum(own) / 3)
    for client in range(3):
        kept = server.state.bank.read(variate(slot, CLIENT), torch.tensor([client]))[0]
        torch.testing.assert_close(kept, own[client])
        correction = server.assignments()[client].corrections[slot]
        torch.testing.assert_close(correction, 0.25 * (sum(own) / 3 - own[client]))


@pytest.mark.parametrize("head_policy", ["local", "global"])
def test_a_classifier_of_each_clients_own_is_not_corrected_by_a_mean_over_all(head_policy):
    server = Server(fedsim.ILoRA(ranks=RANKS, head_policy=head_policy))
    for _ in range(2):
        server.round(noise, gradient)
    for assignment in server.assignments().values():
        corrected = {slot.tier for slot, value in assignment.corrections.items() if value.any()}
        assert corrected == ({"adapter"} if head_policy == "local" else {"adapter", "head"})
    held = {slot.tier for slot in server.state.bank.rows if "variate" in slot.tier}
    assert any("head" in tier for tier in held) == (head_policy == "global")


def test_the_released_average_divides_by_all_clients():
    server = Server(fedsim.ILoRA(ranks=RANKS, lora_alpha=None, average_over="all"))
    slot = Slot("adapter", SITE, "A")
    sent = server.round(noise, gradient)
    mean = server.state.bank.read(variate(slot, SERVER), torch.tensor([0]))[0]
    torch.testing.assert_close(mean[3], sent[2].measured[slot][3] / 3)


# HetLoRA


def test_hetlora_weighs_clients_by_the_norm_of_what_they_do():
    server = Server(fedsim.HetLoRA(ranks=fedsim.LoraRanks(values=(2,)), lora_alpha=None))
    sent = server.round(noise)
    B, A = Slot("adapter", SITE, "B"), Slot("adapter", SITE, "A")
    norms = np.array([np.linalg.norm((u.tensors[B] @ u.tensors[A]).numpy()) for u in sent.values()])
    expected = sum(w * sent[client].tensors[A].numpy() for client, w in enumerate(norms / norms.sum()))
    np.testing.assert_allclose(server.state.bank.read(A, torch.tensor([0]))[0].numpy(), expected, rtol=1e-5)
    head = Slot("head", "head", "W")
    by_samples = sum(n / 100 * sent[client].tensors[head].numpy() for client, n in enumerate(SAMPLES))
    np.testing.assert_allclose(server.state.bank.read(head, torch.tensor([0]))[0].numpy(), by_samples, rtol=1e-5)


def test_hetlora_prunes_those_whose_tail_shrinks_and_only_them():
    server = Server(fedsim.HetLoRA(ranks=fedsim.LoraRanks(values=(4,)), keep=0.5, lora_alpha=None))
    server.round(noise)  # tails grow from nothing
    assert server.log["lora_ranks"] == [4, 4, 4]

    def shrink_the_second(client, slot, tensor):
        return tensor * 0.5 if client == 1 else tensor * 2

    server.round(shrink_the_second)
    assert server.log["lora_ranks"] == [4, 2, 4]
    assert server.assignments()[1].tensors[Slot("adapter", SITE, "A")].shape == (2, WIDTH)
    server.round(shrink_the_second)
    assert server.log["lora_ranks"] == [4, 1, 4]
    server.round(shrink_the_second)
    assert server.log["lora_ranks"] == [4, 1, 4], "one direction is always left"


# rank assignment


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [2, 8, 16, 2, 8, 16, 2, 8]),
        ({"assign": "blocks"}, [2, 2, 2, 8, 8, 8, 16, 16]),
        ({"assign": "list", "values": (1, 2, 3, 4, 4, 3, 2, 1)}, [1, 2, 3, 4, 4, 3, 2, 1]),
    ],
)
def test_ranks_are_assigned_as_asked(options, expected):
    assert fedsim.LoraRanks(**{"values": (2, 8, 16)} | options).of(8) == expected


def test_random_ranks_follow_their_seed():
    draws = [fedsim.LoraRanks(values=(2, 8, 16), assign="random", seed=seed).of(50) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert set(draws[0]) == {2, 8, 16}


def test_ranks_that_do_not_fit_are_refused_before_anything_starts(tmp_path):
    ranks = fedsim.LoraRanks(values=(1, 2), assign="list")
    with pytest.raises(ValueError, match=r"values has 2 entries for 6 clients \(--method.ranks.values\)"):
        fedsim.simulate(
            method=fedsim.FlexLoRA(ranks=ranks),
            backbone=TinyAttention(),
            data=tiny_data(),
            rounds=1,
            out=tmp_path / "x",
        )
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="1 or more"):
        fedsim.LoraRanks(values=(0, 2))
