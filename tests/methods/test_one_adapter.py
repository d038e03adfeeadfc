"""Methods with one adapter for all: limits in which they are another method, and dense formulas for their servers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TinyAttention, tiny_data
from scipy.linalg import orthogonal_procrustes
from test_personalised import adapters
from test_unequal_ranks import ALPHA, RANKS, SAMPLES, SITE, WIDTH, Server, close, mean_function, noise

import fedsim
from fedsim.adapters.layout import Slot
from fedsim.parts.aggregation import aligned
from fedsim.run_spec import RunSpec
from fedsim.storage.run_folder import load_checkpoint

EQUAL = fedsim.LoraRanks(values=(2,))
"""What a method of unequal LoRA ranks takes where they are all 2."""
PAIR = Slot("adapter", SITE, "A")


def held(server: Server, factor: str) -> torch.Tensor:
    """The server's copy of a factor."""
    return server.state.bank.read(PAIR._replace(factor=factor), torch.tensor([0]))[0]


def mean_of(sent, function) -> np.ndarray:
    """The mean of a function of the clients' B and A, by samples, in float64."""
    pairs = {k: [u.tensors[PAIR._replace(factor=f)].double().numpy() for f in "BA"] for k, u in sent.items()}
    return sum(SAMPLES[client] / sum(SAMPLES) * function(*pair) for client, pair in pairs.items())


def shaken(client: int, slot: Slot, tensor: torch.Tensor) -> torch.Tensor:
    """Local training that moves factors far."""
    return noise(client, slot, tensor) * 3 - 2 * tensor


def costs_of(result, column: str) -> list[int]:
    """The bytes of every round, summed over clients."""
    rows = [row.split(",") for row in (result.folder / "costs.csv").read_text().splitlines()]
    head, rounds = rows[0], sorted({int(row[0]) for row in rows[1:]})
    return [sum(int(row[head.index(column)]) for row in rows[1:] if int(row[0]) == k) for k in rounds]


# RoLoRA


def test_rolora_that_never_turns_is_ffa_lora(tiny_run):
    options = {"lora_alpha": None, "head_policy": "global"}
    found = tiny_run("rolora", method=fedsim.RoLoRA(lora_rank=2, turns=("B",), **options))
    expected = tiny_run("ffa", method=fedsim.FFALoRA(ranks=EQUAL, **options))
    assert found.digest == expected.digest
    assert found.summary["bytes.down"] == expected.summary["bytes.down"]


@pytest.mark.parametrize("engine", ["batched", "sequential"])
def test_rolora_moves_one_factor_a_round_and_sends_half_of_what_fedit_sends(tiny_run, engine):
    options = {"lora_rank": 2, "head_policy": "frozen"}
    held = []
    for rounds in (1, 2, 3):
        result = tiny_run(f"{rounds}", method=fedsim.RoLoRA(**options), rounds=rounds, engine=engine)
        held.append(adapters(result))
    assert {key.split("/")[1][0] for key in held[0]} == {"B"}, "A is at its start"
    for before, after, moved in ((held[0], held[1], "A"), (held[1], held[2], "B")):
        for key in after:
            assert (key in before and bool((before[key] == after[key]).all())) == (f"/{moved}|" not in key), key
    fedit = tiny_run("fedit", method=fedsim.FedIT(**options), engine=engine)
    for column in ("bytes_up", "bytes_down"):
        assert [2 * size for size in costs_of(result, column)] == costs_of(fedit, column)


# FedSVD


def test_fedsvd_without_its_svd_is_ffa_lora(tiny_run):
    found = tiny_run("fedsvd", method=fedsim.FedSVD(ranks=EQUAL, period=4))
    expected = tiny_run("ffa", method=fedsim.FFALoRA(ranks=EQUAL))
    assert found.digest == expected.digest
    assert found.summary["bytes.down"] == expected.summary["bytes.down"]


def test_fedsvd_keeps_the_mean_product_and_makes_a_its_right_singular_vectors():
    server = Server(fedsim.FedSVD(ranks=RANKS, lora_alpha=ALPHA))
    for _ in range(3):
        given, sent = server.assignments(), server.round(noise)
        assert all(slot.factor != "A" for update in sent.values() for slot in update.tensors)
        whole = {k: replace(u, tensors=u.tensors | {PAIR: given[k].tensors[PAIR]}) for k, u in sent.items()}
        mean = mean_function(whole, server.ranks)
        U, S, Vh = np.linalg.svd(mean)
        B, A = (held(server, factor).double().numpy() for factor in "BA")
        np.testing.assert_allclose(A @ A.T, np.eye(4), atol=1e-6)
        np.testing.assert_allclose(np.abs(A @ Vh[:4].T), np.eye(4), atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(B, axis=0), S[:4], rtol=1e-4)
        for client, rank in enumerate(server.ranks):
            assert close(server.function(client), (U[:, :rank] * S[:rank]) @ Vh[:rank], 1e-5)
            assert torch.equal(server.assignments()[client].tensors[PAIR], held(server, "A")[:rank])


def test_fedsvd_sends_a_down_and_never_up(tiny_run):
    runs = {
        name: tiny_run(name, method=method)
        for name, method in (
            ("fedsvd", fedsim.FedSVD(ranks=EQUAL, head_policy="frozen")),
            ("fedit", fedsim.FedIT(lora_rank=2, head_policy="frozen")),
        )
    }
    up, down = ({name: costs_of(run, column) for name, run in runs.items()} for column in ("bytes_up", "bytes_down"))
    assert [2 * size for size in up["fedsvd"]] == up["fedit"]
    assert down["fedsvd"] == down["fedit"]


# FedRot-LoRA


def test_fedrot_lora_that_turns_nothing_is_fedit(tiny_run):
    options = {"lora_rank": 2, "lora_alpha": 4}
    found = tiny_run("fedrot", method=fedsim.FedRotLoRA(strength=0, **options))
    turned = tiny_run("turned", method=fedsim.FedRotLoRA(**options))
    expected = tiny_run("fedit", method=fedsim.FedIT(**options))
    assert found.digest == expected.digest != turned.digest
    assert turned.summary["bytes.up"] == expected.summary["bytes.up"]


def a_turn_nearest(matrix: np.ndarray) -> np.ndarray:
    """The proper rotation nearest to a matrix: Kabsch's algorithm."""
    U, _, Vh = np.linalg.svd(matrix)
    return U @ np.diag([1.0] * (len(U) - 1) + [np.linalg.det(U @ Vh)]) @ Vh


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_fedrot_lora_turns_clients_by_scipys_procrustes_to_a_and_b_in_turn(strength):
    server = Server(fedsim.FedRotLoRA(lora_rank=3, lora_alpha=6, strength=strength), fedsim.LoraRanks(values=(3,)))
    first = server.round(shaken)
    assert close(held(server, "A").double().numpy(), mean_of(first, lambda B, A: A * 2), 1e-6), "not turned at first"
    for factor in "ABA":
        reference = held(server, factor).double().numpy() / (2 if factor == "A" else 1)  # the bank holds A times α/R

        def turn(B, A, factor=factor, reference=reference):
            if strength == 1:
                return orthogonal_procrustes(*((A.T, reference.T) if factor == "A" else (B, reference)))[0]
            hard = a_turn_nearest(A @ reference.T if factor == "A" else B.T @ reference)
            return a_turn_nearest((1 - strength) * np.eye(3) + strength * hard)

        sent = server.round(shaken)
        assert close(held(server, "B").double().numpy(), mean_of(sent, lambda B, A, of=turn: B @ of(B, A)), 1e-5)
        assert close(held(server, "A").double().numpy(), mean_of(sent, lambda B, A, of=turn: 2 * of(B, A).T @ A), 1e-5)


def test_turning_keeps_the_product_and_undoes_a_rotation():
    random = torch.Generator().manual_seed(0)
    B, A = torch.randn(7, 3, generator=random), torch.randn(3, 5, generator=random)
    for strength in (1.0, 0.4):
        new_B, new_A = aligned(B, A, torch.randn(3, 5, generator=random), "A", strength)
        torch.testing.assert_close(new_B @ new_A, B @ A, rtol=1e-5, atol=1e-5)
    mirrored = torch.linalg.qr(torch.randn(3, 3, generator=random)).Q
    mirrored = mirrored * -torch.sign(torch.linalg.det(mirrored))
    for factor, reference in (("A", A), ("B", B)):
        new_B, new_A = aligned(B @ mirrored, mirrored.mT @ A, reference, factor, 1.0)
        torch.testing.assert_close((new_B, new_A), (B, A), rtol=1e-5, atol=1e-5)


# raFLoRA


def test_raflora_of_equal_ranks_is_flexlora(tiny_run):
    found = tiny_run("raflora", method=fedsim.RaFLoRA(ranks=EQUAL))
    assert found.digest == tiny_run("flexlora", method=fedsim.FlexLoRA(ranks=EQUAL)).digest


def test_raflora_averages_a_direction_over_the_clients_that_have_it():
    server = Server(fedsim.RaFLoRA(ranks=RANKS, lora_alpha=ALPHA))
    for _ in range(2):
        sent, total = server.round(noise), np.zeros((WIDTH, WIDTH))
        for direction in range(4):
            owners = [client for client, rank in enumerate(server.ranks) if rank > direction]
            for client in owners:
                B, A = (sent[client].tensors[slot].double().numpy() for slot in (PAIR._replace(factor="B"), PAIR))
                share = SAMPLES[client] / sum(SAMPLES[owner] for owner in owners)
                total += share * ALPHA / server.ranks[client] * np.outer(B[:, direction], A[direction])
        U, S, Vh = np.linalg.svd(total)
        for client, rank in enumerate(server.ranks):
            assert close(server.function(client), (U[:, :rank] * S[:rank]) @ Vh[:rank], 1e-5)


def test_raflora_keeps_a_direction_that_few_clients_have():
    """Where nobody trains, what the only client of the largest rank has keeps its size, and FlexLoRA's shrinks."""
    sizes = {}
    for kind in (fedsim.RaFLoRA, fedsim.FlexLoRA):
        server = Server(kind(ranks=fedsim.LoraRanks(values=(1, 1, 2)), lora_alpha=None), RANKS)
        server.state.bank.write(PAIR, {0: torch.eye(2, WIDTH)}, 1, 0)
        server.state.bank.write(PAIR._replace(factor="B"), {0: torch.eye(WIDTH, 2) * torch.tensor([2.0, 1.0])}, 1, 0)
        for _ in range(3):
            server.round(lambda client, slot, tensor: tensor)
        sizes[kind] = np.linalg.svd(server.function(2))[1][:2]
    np.testing.assert_allclose(sizes[fedsim.RaFLoRA], [2, 1], rtol=1e-5)
    np.testing.assert_allclose(sizes[fedsim.FlexLoRA], [2, 0.6**3], rtol=1e-5)


# FedMomentum


def test_fedmomentum_keeps_the_best_adapter_evenly_split_and_the_rest_in_the_backbone():
    server = Server(fedsim.FedMomentum(ranks=EQUAL, lora_alpha=6), EQUAL)
    total = np.zeros((WIDTH, WIDTH))
    for _ in range(4):  # 4 directions a round that the adapter has no room for: more than the width of 12 after three
        sent = server.round(noise)
        mean = mean_of(sent, lambda B, A: 3 * B @ A)
        U, S, Vh = np.linalg.svd(mean)
        total += mean
        assert close(server.function(0), total, 1e-5), "adapter and residual are all that was learnt"
        given = server.assignments()[1]
        B, A = (given.tensors[slot].double().numpy() for slot in (PAIR._replace(factor="B"), PAIR))
        assert close(3 * B @ A, (U[:, :2] * S[:2]) @ Vh[:2], 1e-5)
        np.testing.assert_allclose(B.T @ B, np.diag(S[:2] / 3), atol=1e-6)
        np.testing.assert_allclose(A @ A.T, np.diag(S[:2] / 3), atol=1e-6)
        total -= (U[:, :2] * S[:2]) @ Vh[:2]


def test_fedmomentum_sends_the_directions_that_the_adapter_has_no_room_for():
    """Of three clients of rank 2, four: in float32, a row of A and a column of B each, at four sites."""
    server = Server(fedsim.FedMomentum(ranks=EQUAL), EQUAL)
    server.round(noise)
    assert [cost.bytes_down for cost in server.costs] == [4 * 4 * 4 * (WIDTH + WIDTH)] * 3


def test_fedmomentum_and_fedex_lora_end_a_round_in_the_same_function():
    servers = [Server(kind(ranks=RANKS, lora_alpha=ALPHA)) for kind in (fedsim.FedMomentum, fedsim.FedExLoRA)]
    for server in servers:
        server.round(noise)
    assert close(*(server.function(2, largest=True) for server in servers), 1e-5)


def test_fedmomentum_has_no_residual_where_one_client_takes_part(tiny_run):
    options = {"cohort_size": 1, "rounds": 2}
    found = tiny_run("fedmomentum", method=fedsim.FedMomentum(ranks=EQUAL, head_policy="frozen"), **options)
    assert not adapters(found, "residual")
    fedit = tiny_run("fedit", method=fedsim.FedIT(lora_rank=2, head_policy="frozen"), **options)
    assert found.summary["bytes.down"] == fedit.summary["bytes.down"]


# SCAFFOLD


@pytest.mark.parametrize(
    ("options", "same_bits"), [({"rounds": 1}, True), ({"data": tiny_data(2, unseen=(1,))}, False)]
)
def test_scaffold_is_fedit_in_its_first_round_and_with_a_single_client(tiny_run, options, same_bits):
    found = tiny_run("scaffold", method=fedsim.SCAFFOLD(lora_rank=2, lora_alpha=4), **options)
    expected = tiny_run("fedit", method=fedsim.FedIT(lora_rank=2, lora_alpha=4), **options)
    ours, theirs = adapters(found), adapters(expected)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0 if same_bits else 1e-4, atol=0 if same_bits else 1e-6)


@pytest.mark.parametrize("engine", ["batched", "sequential"])
def test_scaffold_is_its_algorithm_written_out(tiny_run, engine):
    """Three rounds of three local steps of SGD on all of a client's data, in float64."""
    data, net, rate, rounds, steps = tiny_data(), TinyAttention().double(), 1.0, 3, 3
    local = fedsim.LocalTraining(optimizer="sgd", momentum=0, batch_size=16, epochs=steps, learning_rate=rate)
    method = fedsim.SCAFFOLD(lora_rank=2, head_policy="frozen")
    common = {"data": data, "local": local, "engine": engine}
    found = tiny_run("scaffold", method=method, rounds=rounds, **common)
    plain = tiny_run("fedit", method=fedsim.FedIT(lora_rank=2, head_policy="frozen"), rounds=rounds, **common)
    sites = [f"blocks.{k}.{name}_proj" for k in range(2) for name in "qv"]
    spec = RunSpec(method=method, backbone=TinyAttention(), data=data, rounds=1)
    x = {s: t.double() for s, t in spec.initial_slots().items() if s.tier == "adapter"}

    def gradient(values, client):
        own = {slot: value.clone().requires_grad_() for slot, value in values.items()}
        weights = {n: p.detach() for n, p in net.named_parameters()}
        for site in sites:
            B, A = (own[Slot("adapter", site, factor)] for factor in "BA")
            weights[f"{site}.weight"] = weights[f"{site}.weight"] + B @ A
        rows = data.train[client]
        logits = torch.func.functional_call(net, weights, data.inputs[rows].double())
        F.cross_entropy(logits, data.targets[rows]).backward()
        return {slot: value.grad for slot, value in own.items()}

    clients = range(5)
    c = {slot: torch.zeros_like(value) for slot, value in x.items()}
    of_client = [c] * 5
    for _ in range(rounds):
        ends, new = [], []
        for k in clients:
            y = x
            for _ in range(steps):
                g = gradient(y, k)
                y = {slot: y[slot] - rate * (g[slot] - of_client[k][slot] + c[slot]) for slot in y}
            ends.append(y)
            new.append(gradient(x, k))
        x = {slot: sum(end[slot] for end in ends) / 5 for slot in x}
        c = {s: c[s] + sum(new[k][s] - of_client[k][s] for k in clients) / 5 for s in c}
        of_client = new
    for slot, value in x.items():
        key = f"{slot.site}/{slot.factor}|rows"
        torch.testing.assert_close(adapters(found)[key][0].double(), value, rtol=1e-4, atol=1e-6)
        assert (adapters(plain)[key][0] - value).abs().max() > 1e-3, "without corrections it ends elsewhere"


def test_scaffold_takes_twice_fedits_bytes_and_leaves_a_clients_own_classifier_alone(tiny_run):
    for head_policy in ("frozen", "local", "global"):
        options = {"lora_rank": 2, "head_policy": head_policy}
        found = tiny_run(f"scaffold-{head_policy}", method=fedsim.SCAFFOLD(**options))
        fedit = tiny_run(f"fedit-{head_policy}", method=fedsim.FedIT(**options))
        assert costs_of(found, "bytes_up") == [2 * size for size in costs_of(fedit, "bytes_up")]
        of_round = costs_of(fedit, "bytes_down")
        assert costs_of(found, "bytes_down") == [size + of_round[1] for size in of_round], "corrections, zero at first"
        held = load_checkpoint(found.folder)[1]
        variates = {key.split("/")[0] for key in held if "variate" in key}
        tiers = ("adapter", "head") if head_policy == "global" else ("adapter",)
        assert variates == {f"bank|{owner}:{tier}" for owner in ("variate", "client_variate") for tier in tiers}
