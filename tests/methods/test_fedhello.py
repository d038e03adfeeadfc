"""Fed-HeLLo and its baselines: who trains what, what is merged, what follows from scores."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import TinyAttention, tiny_data

import fedsim
from fedsim.adapters.layout import Slot
from fedsim.parts.fisher import FisherAllocation
from fedsim.plan import Measure, Plan, equally
from fedsim.round import ClientUpdate, Horizon, Population, ServerState
from fedsim.storage.run_folder import load_checkpoint

DEPTHS = {f"blocks.{depth}.{name}": depth for depth in range(12) for name in ("q", "v")} | {"head": 12}
POPULATION = Population(101, tuple(range(100)), (), (10,) * 101, proxy=100)
FULL = fedsim.Capabilities(values=(99,))
SOME = fedsim.Capabilities(values=(1, 2, 3), assign="cycle")
METHODS = {
    "gd": fedsim.FedHeLLo(strategy="gd"),
    "rgd": fedsim.FedHeLLo(strategy="rgd"),
    "fedra": fedsim.FedRA(),
    "straggler": fedsim.Straggler(),
    "exclusive": fedsim.Exclusive(),
}


def state(round_index: int = 0, **changes) -> ServerState:
    return ServerState(round_index, Horizon(500), depths=DEPTHS, adapted=tuple(range(12)), **changes)


def allocations(method, at: ServerState | None = None) -> list[set[int]]:
    return [set(depths) for depths in method.plan(at or state(), POPULATION).allocations]


def uneven_data() -> fedsim.FederatedData:
    """Six clients with 4, 8, … 24 samples; one is unseen."""
    random = torch.Generator().manual_seed(0)
    owner = torch.arange(6).repeat_interleave(torch.arange(1, 7) * 4)
    inputs = torch.randn(len(owner), 12, generator=random)
    targets = (inputs @ torch.randn(12, 3, generator=random)).argmax(1)
    return fedsim.from_tensors(inputs, targets, owner, unseen=(5,))


def copies(result: fedsim.Result) -> dict[str, torch.Tensor]:
    """Every copy that the server holds in the end."""
    return {name: t for name, t in load_checkpoint(result.folder)[1].items() if name.endswith("|rows")}


def events(result: fedsim.Result) -> list[dict]:
    return [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]


# who trains what


def test_gd_gives_a_third_of_the_clients_each_published_set_in_every_round():
    for round_index in (0, 7):
        sets = allocations(METHODS["gd"], state(round_index))
        assert sets[:33] == [{0, 1, 2, 9, 10, 11}] * 33
        assert sets[33:66] == [{0, 1, 2, 3, 4, 8, 9, 10, 11}] * 33
        assert sets[66:] == [set(range(12))] * 34


@pytest.mark.parametrize("name", ["rgd", "fedra"])
def test_random_sets_are_as_large_as_can_be_and_drawn_anew_by_client_and_round(name):
    sets = allocations(METHODS[name])
    assert [len(depths) for depths in sets] == [6] * 33 + [9] * 33 + [12] * 34
    assert len({tuple(sorted(depths)) for depths in sets[:33]}) > 20
    assert allocations(METHODS[name]) == sets
    assert allocations(METHODS[name], state(1)) != sets != allocations(METHODS[name], state(seed=1))


def test_the_bottleneck_is_drawn_more_at_its_ends_and_fedra_alike_everywhere():
    def share(name: str, depth: int) -> float:
        sets = [depths for index in range(60) for depths in allocations(METHODS[name], state(index))[:33]]
        return sum(depth in depths for depths in sets) / len(sets)

    assert share("rgd", 0) == pytest.approx(0.626, abs=0.04)
    assert share("rgd", 6) == pytest.approx(0.271, abs=0.04)
    assert share("fedra", 0) == pytest.approx(0.5, abs=0.04)
    assert share("fedra", 6) == pytest.approx(0.5, abs=0.04)


def test_fedra_covers_every_layer_within_the_cohort_unless_told_not_to():
    few = fedsim.Capabilities(values=(3,))
    for index in range(20):
        at = state(index, cohort=(1, 2, 5, 8, 9))
        union = [
            set().union(*(allocations(fedsim.FedRA(capabilities=few, cover=c), at)[k] for k in at.cohort))
            for c in (True, False)
        ]
        assert union[0] == set(range(12))
        assert len(union[1]) <= 12
    assert union[1] < union[0]


def test_stragglers_set_the_pace_and_the_exclusive_keep_to_themselves():
    assert allocations(METHODS["straggler"]) == [{0, 2, 4, 6, 8, 10}] * 100
    assert allocations(METHODS["exclusive"]) == [set()] * 66 + [set(range(12))] * 34
    assert allocations(fedsim.DepthFedIT())[0] == {6, 7, 8, 9, 10, 11}


def test_those_who_cannot_train_everything_send_nothing_to_the_exclusive(tiny_run):
    method = fedsim.Exclusive(lora_rank=2, capabilities=fedsim.Capabilities(values=(1, 2), assign="cycle"))
    result = tiny_run(method=method, rounds=2)
    assert [event["trained"] for event in events(result)[:2]] == [[1, 3]] * 2
    everyone = tiny_run("everyone", method=replace(method, capabilities=FULL), rounds=2)
    assert result.summary["bytes.up"] == pytest.approx(everyone.summary["bytes.up"] * 2 / 5)


# what is merged


@dataclass(frozen=True, kw_only=True)
class UniformFedIT:
    """FedIT in which clients count alike."""

    lora_rank: int = 2
    lora_alpha: float | None = None
    head_policy: str = "global"
    tiers = ("adapter",)

    def plan(self, state, population):
        return Plan(population=population, weights=equally)


AT_FULL = {
    "gd": fedsim.FedHeLLo(lora_rank=2, capabilities=FULL, strategy="gd"),
    "rgd": fedsim.FedHeLLo(lora_rank=2, capabilities=FULL, strategy="rgd"),
    "samples": fedsim.FedHeLLo(lora_rank=2, capabilities=FULL, strategy="rgd", average="samples"),
    "fedra": fedsim.FedRA(lora_rank=2, capabilities=FULL),
    "straggler": fedsim.Straggler(lora_rank=2, capabilities=FULL),
    "exclusive": fedsim.Exclusive(lora_rank=2, capabilities=FULL),
    "depth_fedit": fedsim.DepthFedIT(lora_rank=2, capabilities=FULL),
}


@pytest.mark.parametrize("name", AT_FULL)
def test_at_full_capability_they_are_fedit(tiny_run, name):
    is_weighted = name in ("samples", "depth_fedit")
    fedit = fedsim.FedIT(lora_rank=2, head_policy="global") if is_weighted else UniformFedIT()
    found, expected = (
        copies(tiny_run(label, method=method, data=uneven_data(), cohort_size=3))
        for label, method in (("found", AT_FULL[name]), ("expected", fedit))
    )
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["rgd", "fedra"])
def test_layers_that_nobody_trained_are_unchanged_bit_for_bit_and_all_others_are_not(tiny_run, name):
    method = replace(METHODS[name], lora_rank=2, capabilities=fedsim.Capabilities(values=(1, 2), assign="cycle"))
    run = {"method": method, "backbone": TinyAttention(depth=4), "cohort_size": 1, "evaluate_every": 6}
    result = tiny_run(**run, rounds=6)
    whole, before = copies(result), copies(tiny_run("before", **run, rounds=5))
    (trained,) = events(result)[5]["allocations"]
    adapters = {key for key in whole if key.startswith("bank|adapter/blocks")}
    kept = {key for key in adapters & before.keys() if torch.equal(whole[key], before[key])}
    assert kept == {key for key in adapters if int(key.split(".")[1]) not in trained}
    assert kept, "or the test shows nothing"


def test_a_layer_moves_by_the_mean_change_of_those_who_trained_it_alike_or_by_samples(tiny_run):
    def moved(average: str) -> list[dict[str, torch.Tensor]]:
        method = fedsim.FedHeLLo(lora_rank=2, capabilities=SOME, strategy="gd", average=average)
        one_step = fedsim.LocalTraining(batch_size=64, optimizer="sgd", learning_rate=0.1)
        run = {"backbone": TinyAttention(depth=3), "data": uneven_data(), "rounds": 1, "local": one_step}
        return copies(tiny_run(average, method=method, **run))

    def alone(client: int) -> dict[str, torch.Tensor]:
        data = uneven_data()
        only = replace(data, unseen=frozenset(range(6)) - {client})
        method = fedsim.FedIT(lora_rank=2, head_policy="global")
        one_step = fedsim.LocalTraining(batch_size=64, optimizer="sgd", learning_rate=0.1)
        run = {"backbone": TinyAttention(depth=3), "data": only, "rounds": 1, "local": one_step}
        return copies(tiny_run(f"alone{client}", method=method, **run))

    each = [alone(client) for client in range(5)]  # one SGD step, so others' gradients do not matter
    members = {0: (0, 1, 2, 3, 4), 1: (2,), 2: (1, 2, 4)}  # bottlenecks of 1, 2, 3, 1, 2 depths of 3
    for average, counted in (("uniform", [1] * 5), ("samples", [4, 8, 12, 16, 20])):
        found = moved(average)
        for depth, who in members.items():
            for key in [key for key in found if f"blocks.{depth}" in key]:
                total = sum(counted[client] for client in who)
                expected = sum(counted[client] / total * each[client][key] for client in who)
                torch.testing.assert_close(found[key], expected, rtol=1e-4, atol=1e-6)


# the classifier


def test_a_classifier_may_stay_with_its_client_or_be_forgotten(tiny_run):
    method = fedsim.FedHeLLo(lora_rank=2, capabilities=SOME, strategy="rgd", head_policy="local")
    kept = copies(tiny_run("kept", method=method))
    assert len(kept["bank|head/head/W|rows"]) == 5
    result = tiny_run("forgotten", method=replace(method, forget_heads=True))
    assert not [key for key in copies(result) if key.startswith("bank|head")]


# the released regime


def test_one_step_of_adamw_per_round_moves_every_entry_by_the_rate_as_the_released_logs_show(tiny_run):
    """q and v of ViT-B at rank 16: 49,152 entries a layer, each moved by 0.0099; by half of them while B is zero."""
    random = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(24, 768, generator=random), torch.arange(24) % 3
    data = fedsim.from_tensors(inputs, targets, torch.arange(24) // 8)
    method = fedsim.FedHeLLo(
        capabilities=fedsim.Capabilities(values=(1, 2, 3)), strategy="rgd", head_policy="local", forget_heads=True
    )
    local = fedsim.LocalTraining(batch_size=128, learning_rate=0.0099, weight_decay=0.01)
    result = tiny_run(method=method, backbone=TinyAttention(768, depth=3), data=data, local=local)
    assert sum(t.numel() for key, t in copies(result).items() if "blocks.1." in key) == 49_152
    for event in events(result)[:3]:
        entries = 49_152 if event["round"] > 1 else 49_152 / 2
        expected = [0.0099 * (entries * layers) ** 0.5 for layers in (1, 2, 3)]
        assert [len(depths) for depths in event["allocations"]] == [1, 2, 3]
        if event["round"] != 2:  # some layers were not trained before, so their B is zero still
            assert event["update_norms"] == pytest.approx(expected, rel=2e-3)
        assert event["update_norm"] == sorted(event["update_norms"])[1]


# scores


def test_after_the_warm_start_scored_layers_are_drawn_by_their_clusters():
    method = fedsim.FedHeLLo(fim=FisherAllocation(warmup_rounds=10, period=5))
    scores = torch.tensor([1.0, 1, 1, 1, 30, 30, 30, 30, 90, 90, 90, 90])
    measured = ClientUpdate(
        100, 7, measured={Slot("adapter", site, "A"): scores[depth] for site, depth in DEPTHS.items() if depth < 12}
    )
    at = state(9)
    plan = method.plan(at, POPULATION)
    assert (plan.stage, plan.measure) == ("rgd-hla", Measure("fisher", "proxy"))
    assert method.plan(state(8), POPULATION).measure is None
    outcome = method._server_update(at, plan, [measured])
    assert outcome.log["depth_weights"] == [1] * 4 + [2] * 4 + [3] * 4
    assert outcome.log["fisher_scores"] == (2 * scores).tolist()
    assert not outcome.tensors
    after = state(10, learnt=outcome.learnt)
    assert method.plan(after, POPULATION).stage == "fim-hla"
    sets = [depths for index in range(10, 70) for depths in allocations(method, replace(after, round_index=index))[:33]]
    shares = [
        sum(len(depths & set(part)) for depths in sets) / len(sets) for part in (range(4), range(4, 8), range(8, 12))
    ]
    assert shares[0] < shares[1] < shares[2]
    released = replace(method, fim=replace(method.fim, lasting=1))
    assert released.plan(after, POPULATION).stage == "fim-hla"
    assert released.plan(replace(after, round_index=11), POPULATION).stage == "rgd-hla"


def test_scores_need_data_of_the_servers_own(tiny_run, tmp_path):
    soon = FisherAllocation(warmup_rounds=1, period=1)
    method = fedsim.FedHeLLo(lora_rank=2, capabilities=SOME, fim=soon)
    with pytest.raises(ValueError, match=r"after 1 rounds .* none \(--data.proxy-samples\)"):
        tiny_run("none", method=method)
    last = fedsim.FedHeLLo(lora_rank=2, capabilities=SOME, fim=FisherAllocation(warmup_rounds=3, period=1))
    with pytest.raises(ValueError, match=r"after 3 rounds .* none \(--data.proxy-samples\)"):
        tiny_run("none", method=last, rounds=4)  # scored once, before the last round
    assert not (tmp_path / "none").exists()
    tiny_run("never", method=last, rounds=3)
    result = tiny_run(method=method, data=fedsim.with_proxy(tiny_data(), torch.arange(0, 96, 8)), rounds=4)
    told = events(result)[:4]
    assert [event["stage"] for event in told] == ["rgd-hla", "fim-hla", "fim-hla", "fim-hla"]
    assert ["fisher_scores" in event for event in told] == [True, True, True, False], "none after the last"
    assert all(min(event["fisher_scores"]) > 0 for event in told[:3])
    assert told[0]["cohort"] == [0, 1, 2, 3, 4], "the proxy does not train"
