"""Fed-SB and Ravan, whose B and A stay: limits, and dense formulas from gradients of whole weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TinyAttention, tiny_data
from test_one_adapter import costs_of
from test_unequal_ranks import SAMPLES, SITE, Server, noise

import fedsim
from fedsim.adapters.layout import Slot
from fedsim.storage.run_folder import load_checkpoint

WIDTH, RATE = 12, 0.05
SGD = fedsim.LocalTraining(batch_size=64, learning_rate=RATE, optimizer="sgd", momentum=0.0)
"""One step a round, with all of a client's data."""
MAPS = [f"blocks.{depth}.{name}" for depth in (0, 1) for name in ("q_proj", "v_proj")]


def ranks(*values: int) -> fedsim.LoraRanks:
    return fedsim.LoraRanks(values=values)


def gradients(net: torch.nn.Module, data: fedsim.FederatedData, client: int) -> dict[str, torch.Tensor]:
    """The gradient of each adapted map's whole weight (O, I), of the mean loss over a client's data."""
    weights = [net.get_submodule(name).weight.requires_grad_() for name in MAPS]
    inputs, targets = data.batch(data.train[client])
    return dict(zip(MAPS, torch.autograd.grad(F.cross_entropy(net(inputs), targets), weights), strict=True))


def mean_gradients(net: torch.nn.Module, data: fedsim.FederatedData) -> dict[str, np.ndarray]:
    """Their mean over the clients that take part, by samples, in float64."""
    clients = [client for client in range(data.n_clients) if client not in data.unseen]
    found = {client: gradients(net, data, client) for client in clients}
    total = sum(map(data.train_size, clients))
    return {name: sum(data.train_size(c) / total * found[c][name].double().numpy() for c in clients) for name in MAPS}


def factors(result, tier: str, name: str) -> list[np.ndarray]:
    """The server's B, H and A, initial ones where they were never written."""
    from fedsim.experiments.export import restored

    _, _, state = restored(result.folder)
    only = torch.tensor([0])
    return [state.bank.read(Slot(tier, name, factor), only)[0].double().numpy() for factor in "BHA"]


# Fed-SB


def test_fed_sb_starts_from_the_svd_of_the_mean_gradient(tiny_run):
    """At full width the two rounds of measuring give the whole gradient, at any rank its randomised SVD."""
    expected = mean_gradients(TinyAttention(), tiny_data())
    whole = tiny_run("whole", method=fedsim.FedSB(ranks=ranks(WIDTH), first_rate=0.3), rounds=2)
    for name, G in expected.items():
        B, H, A = factors(whole, "adapter", name)
        np.testing.assert_allclose(B.T @ B, np.eye(WIDTH), atol=1e-5)
        np.testing.assert_allclose(A @ A.T, np.eye(WIDTH), atol=1e-5)
        assert np.count_nonzero(H - np.diag(np.diag(H))) == 0
        assert (np.diff(-np.diag(H)) <= 0).all(), "singular values descend"
        np.testing.assert_allclose(B @ H @ A, -0.3 * WIDTH * G / np.linalg.norm(G), atol=1e-5)
    for passes in (1, 2):
        options = {"rounds": 2 * passes, "cohort_size": None}
        few = tiny_run(f"{passes}", method=fedsim.FedSB(ranks=ranks(3), first_rate=0.3, passes=passes), **options)
        start = tiny_run(f"start {passes}", method=fedsim.FedSB(ranks=ranks(3), start="random"), rounds=1)
        for name, G in expected.items():
            Omega = factors(start, "adapter", name)[2]
            for _ in range(passes):
                Q = np.linalg.qr(G @ Omega.T)[0]
                U, S, Omega = np.linalg.svd(Q.T @ G, full_matrices=False)
            B, H, A = factors(few, "adapter", name)
            np.testing.assert_allclose(B @ H @ A, -0.3 * WIDTH * (Q @ U * S) @ Omega / np.linalg.norm(S), atol=1e-5)


def test_fed_sb_at_full_width_is_federated_averaging_of_whole_weights(tiny_run):
    """Orthonormal B and A as wide as the map span all directions: SGD on H is SGD on W."""
    options = {"head_policy": "frozen", "start": "random"}
    found = tiny_run("run", method=fedsim.FedSB(ranks=ranks(WIDTH), **options), local=SGD, rounds=3)
    data, net = tiny_data(), TinyAttention()
    before = {name: net.get_submodule(name).weight.detach().clone() for name in MAPS}
    for _ in range(3):
        step = mean_gradients(net, data)  # one step each, so the mean of weights is a step by the mean gradient
        with torch.no_grad():
            for name, G in step.items():
                net.get_submodule(name).weight.sub_(RATE * torch.from_numpy(G).float())
    for name, weight in before.items():
        B, H, A = factors(found, "adapter", name)
        moved = (net.get_submodule(name).weight.detach() - weight).numpy()
        assert np.abs(moved).max() > 1e-3
        np.testing.assert_allclose(B @ H @ A, moved, atol=1e-6)


@pytest.mark.parametrize("engine", ["batched", "sequential"])
def test_fed_sb_sends_a_square_for_each_map_once_it_has_begun(tiny_run, engine):
    method = fedsim.FedSB(ranks=ranks(3), head_policy="frozen")
    result = tiny_run(method=method, rounds=5, engine=engine)
    clients, maps = 5, 4
    factor, square = 4 * 3 * WIDTH * maps * clients, 4 * 3 * 3 * maps * clients
    assert costs_of(result, "bytes_up") == [factor, factor, square, square, square], "gradients of B and A, then H"
    assert costs_of(result, "bytes_down") == [0, 2 * factor, 2 * factor + square, square, square]
    steps = costs_of(result, "local_steps")
    assert steps[:2] == [0, 0]
    assert min(steps[2:]) > 0
    assert result.summary["unseen.tuned.mean"] >= 0


def test_fed_sb_moves_nothing_but_h_and_the_head_after_its_start(tiny_run):
    states = []
    for rounds in (2, 4):
        result = tiny_run(f"{rounds}", method=fedsim.FedSB(ranks=ranks(2)), rounds=rounds)
        states.append(load_checkpoint(result.folder)[1])
    before, after = ({k: v for k, v in state.items() if k.endswith("|rows")} for state in states)
    for key in after:
        assert torch.equal(before.get(key, torch.zeros(1)), after[key]) == ("/A|" in key or "/B|" in key), key


@pytest.mark.parametrize(
    ("options", "message"),
    [({"passes": 0}, "passes is 0; it must be 1 or more"), ({"first_rate": -1.0}, "first_rate is -1.0; it must not")],
)
def test_fed_sb_refuses_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        fedsim.FedSB(**options)


# Ravan


def test_ravan_of_one_head_without_scales_is_fed_sb_from_a_random_start(tiny_run):
    ravan = tiny_run("ravan", method=fedsim.Ravan(n_heads=1, lora_rank=3, train_scales=False))
    fed_sb = tiny_run("fed_sb", method=fedsim.FedSB(ranks=ranks(3), start="random"))
    for name in MAPS:
        for found, expected in zip(factors(ravan, "head1", name), factors(fed_sb, "adapter", name), strict=True):
            np.testing.assert_array_equal(found, expected)
        assert np.abs(factors(ravan, "head1", name)[1]).max() > 1e-3
    assert ravan.summary["bytes.up"] == fed_sb.summary["bytes.up"]


def test_ravan_steps_by_the_gradients_part_in_each_heads_own_directions(tiny_run):
    method = fedsim.Ravan(n_heads=3, lora_rank=4, head_policy="frozen")
    found = tiny_run("run", method=method, local=SGD, rounds=1)
    for name, G in mean_gradients(TinyAttention(), tiny_data()).items():
        heads = [factors(found, tier, name) for tier in method.tiers]
        lefts, rights = (np.concatenate([head[k].T if k == 0 else head[k] for head in heads]) for k in (0, 2))
        np.testing.assert_allclose(lefts @ lefts.T, np.eye(WIDTH), atol=1e-5)
        np.testing.assert_allclose(rights @ rights.T, np.eye(WIDTH), atol=1e-5)
        for B, H, A in heads:
            np.testing.assert_allclose(H, -RATE * B.T @ G @ A.T, atol=1e-7)


def test_ravan_merges_the_products_of_scales_and_h_exactly_and_starts_scales_at_one():
    server = Server(fedsim.Ravan(n_heads=2, lora_rank=3, lora_alpha=6), ranks(3))
    given = server.assignments()[0].tensors
    for _ in range(2):
        assert all(
            torch.equal(value, torch.ones(2))
            for a in server.assignments().values()
            for slot, value in a.tensors.items()
            if slot.tier == "mix"
        )
        sent = server.round(noise)
        assert {slot.factor for slot in sent[0].tensors if slot.site == SITE} == {"H", "weights"}
        expected = np.zeros((WIDTH, WIDTH))
        for client, update in sent.items():
            scales = update.tensors[Slot("mix", SITE, "weights")].double().numpy()
            assert np.abs(scales - 1).max() > 1e-3
            for scale, tier in zip(scales, server.method.tiers, strict=True):
                B, H, A = ({**given, **update.tensors}[Slot(tier, SITE, factor)].double().numpy() for factor in "BHA")
                expected += SAMPLES[client] / sum(SAMPLES) * scale * 6 / 3 * B @ H @ A
        now = server.assignments()[1]
        found = sum(
            now.scales[tier] * np.linalg.multi_dot([now.tensors[Slot(tier, SITE, f)].double().numpy() for f in "BHA"])
            for tier in server.method.tiers
        )
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("engine", ["batched", "sequential"])
def test_ravan_trains_scales_once_h_is_not_zero_and_sends_squares(tiny_run, engine):
    plain = fedsim.Ravan(n_heads=2, lora_rank=3, head_policy="frozen")
    result = tiny_run("scaled", method=plain, engine=engine)
    frozen = tiny_run("frozen", method=replace(plain, train_scales=False), engine=engine)
    clients, maps, rounds = 5, 4, 3
    assert frozen.summary["bytes.up"] == rounds * clients * maps * 4 * 2 * 3**2
    assert result.summary["bytes.up"] == frozen.summary["bytes.up"] + rounds * clients * maps * 4 * 2
    assert costs_of(result, "bytes_down")[1:] == costs_of(frozen, "bytes_down")[1:], "scales start at 1"
    assert result.digest != frozen.digest


def test_heads_that_do_not_fit_side_by_side_are_refused(tiny_run):
    with pytest.raises(ValueError, match=r"4 adapters of LoRA rank 4 are to be orthogonal, and site .* is 12 wide"):
        tiny_run(method=fedsim.Ravan(lora_rank=4))
