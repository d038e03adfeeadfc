"""HiLoRA's cascade, seen from outside: what trains when, who shares what, what it discovers."""

import json

import pytest
import torch
from conftest import TinyAttention, tiny_data

import fedsim
from fedsim.adapters.layout import HEAD_TIER, Slot
from fedsim.parts.directions import SubspaceClustering
from fedsim.parts.objectives import cross_entropy
from fedsim.round import Horizon, Population, ServerState
from fedsim.storage.run_folder import load_checkpoint

POPULATION = Population(6, (0, 1, 2, 3, 4), (5,), (12,) * 6)
LABELS = torch.tensor([0, 1, 0, 1, 0, -1])


def plan_in(stage: int, **settings):
    learnt = {"stage": torch.tensor(stage), "labels": LABELS} if stage else {}
    return fedsim.HiLoRA(lora_rank=2, **settings).plan(ServerState(3, Horizon(10), learnt), POPULATION)


def events_of(result):
    return [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_only_the_current_tier_trains_on_top_of_the_finished_ones(stage):
    plan, tiers = plan_in(stage), ("root", "cluster", "leaf")[: stage + 1]
    assert plan.tiers == tiers
    trained = {tier for tier in ("root", "cluster", "leaf", "directions") if plan.trains(Slot(tier, "q", "B"))}
    assert trained == {tiers[-1]}


def test_root_is_everyones_cluster_by_label_and_leaf_private():
    plan = plan_in(2)
    assert plan.groups(Slot("root", "q", "A")).tolist() == [0] * 6
    assert plan.groups(Slot("cluster", "q", "A")).tolist() == LABELS.tolist()
    assert plan.groups(Slot("leaf", "q", "A")).tolist() == list(range(6))


@pytest.mark.parametrize(("policy", "groups"), [("global", [0] * 6), ("local", list(range(6)))])
def test_a_separate_head_follows_its_policy_in_every_stage(policy, groups):
    for stage in range(3):
        plan = plan_in(stage, head_policy=policy)
        assert plan.groups(Slot(HEAD_TIER, "head", "W")).tolist() == groups
        assert plan.trains(Slot(HEAD_TIER, "head", "W"))


def test_the_objective_adds_the_printed_penalties():
    random = torch.Generator().manual_seed(0)
    tensors = {
        Slot(tier, site, "B"): torch.randn(5, 2, generator=random, dtype=torch.float64)
        for tier in ("root", "cluster", "leaf")
        for site in ("q", "v")
    }
    logits, targets = torch.randn(4, 3, generator=random, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    plain = cross_entropy(logits, targets, {}, {})

    def penalty(one, other):
        products = (tensors[Slot(one, site, "B")].T @ tensors[Slot(other, site, "B")] for site in ("q", "v"))
        return sum(float(product.norm() ** 2) for product in products)

    for stage, tier, extra in (
        (0, "root", 0.0),
        (1, "cluster", 0.3 * penalty("root", "cluster")),
        (2, "leaf", 0.3 * penalty("root", "leaf") + 0.7 * penalty("cluster", "leaf")),
    ):
        held = {slot: value for slot, value in tensors.items() if slot.tier in plan_in(stage).tiers}
        loss = plan_in(stage, gamma_c=0.3, gamma_l=0.7).objective(logits, targets, held, held)
        assert float(loss - plain) == pytest.approx(extra), tier


def test_stages_end_at_their_caps(tiny_run):
    result = tiny_run(method=fedsim.HiLoRA(lora_rank=2, tolerance=0.0, root_share=0.2, cluster_share=0.5), rounds=10)
    assert [event["stage"] for event in events_of(result)] == ["root"] * 2 + ["cluster"] * 5 + ["leaf"] * 3 + ["unseen"]


def test_a_stage_ends_early_once_its_product_has_settled(tiny_run):
    result = tiny_run(method=fedsim.HiLoRA(lora_rank=2, tolerance=1e9), rounds=10)
    stages = [event["stage"] for event in events_of(result)]
    assert stages[:2] == ["root", "root"]  # the change from nothing is infinite, so only the second can settle
    assert stages[2:4] == ["cluster", "cluster"]
    assert set(stages[4:-1]) == {"leaf"}


def test_a_finished_tier_is_frozen_bit_for_bit(tiny_run):
    common = {"method": fedsim.HiLoRA(lora_rank=2, tolerance=0.0, root_share=0.25, cluster_share=0.25)}
    folder = tiny_run(rounds=8, **common).folder
    manifests = sorted((folder / "checkpoints").glob("*.json"))
    _, last = load_checkpoint(folder)
    manifests[-1].unlink()
    _, before = load_checkpoint(folder)
    for name in last:
        if name.startswith(("bank|root", "bank|cluster")):
            assert torch.equal(last[name], before[name]), name
    assert any(not torch.equal(last[n], before[n]) for n in last if n.startswith("bank|leaf") and n.endswith("B|rows"))


def test_merged_tiers_have_orthonormal_b(tiny_run):
    folder = tiny_run(method=fedsim.HiLoRA(lora_rank=2), rounds=6).folder
    _, tensors = load_checkpoint(folder)
    for name, rows in tensors.items():
        if name.startswith(("bank|root", "bank|cluster")) and name.endswith("/B|rows"):
            for B in rows:
                torch.testing.assert_close(B.T @ B, torch.eye(2), atol=1e-5, rtol=0)


def test_orthogonality_lowers_the_logged_overlap_of_tiers(tiny_run):
    def overlap(name, gamma):
        method = fedsim.HiLoRA(lora_rank=2, gamma_c=gamma, gamma_l=gamma, tolerance=0.0)
        events = events_of(tiny_run(name, method=method, rounds=12, data=tiny_data(per_client=40)))
        return [event["overlap.root_leaf"] for event in events if "overlap.root_leaf" in event][-1]

    assert overlap("with", 10.0) < 0.5 * overlap("without", 0.0)


def test_what_it_discovers_is_logged(tiny_run):
    result = tiny_run(method=fedsim.HiLoRA(lora_rank=2), rounds=6)
    (clustered,) = [event for event in events_of(result) if "rule_scores" in event]
    assert clustered["next_stage"] == "cluster"
    assert clustered["n_clusters"] == len(set(clustered["labels"]))
    assert clustered["clients"] == [0, 1, 2, 3, 4]
    assert [k for k, _ in clustered["rule_scores"]] == [1, 2, 3, 4]
    assert 0 <= clustered["rule_margin"] <= max(score for _, score in clustered["rule_scores"])
    assert 0 <= clustered["discarded_energy"] < 1
    assert events_of(result)[-1]["routed"].keys() == {"5"}
    assert 0 <= result.summary["unseen.routing_agreement"] <= 1
    assert 0 <= result.summary["unseen.routing_agreement_with_own"] <= 1


def test_a_probe_by_adapters_trains_a_fresh_cluster_adapter_on_the_frozen_root_once_clusters_have_trained(tiny_run):
    clustering = SubspaceClustering(routing="adapter")
    probe = plan_in(2, clustering=clustering).unseen.plan
    assert probe.tiers == ("root", "cluster")
    assert [slot for t in probe.tiers for f in "ABW" if probe.trains(slot := Slot(t, "q", f))] == [
        Slot("cluster", "q", "A"),
        Slot("cluster", "q", "B"),
    ]
    assert probe.groups(Slot("root", "q", "B")).tolist() == [0] * 6
    assert probe.groups(Slot("cluster", "q", "B")).tolist() == [-1] * 6
    learnt = {"stage": torch.tensor(1), "since": torch.tensor(3), "labels": LABELS}
    method = fedsim.HiLoRA(lora_rank=2, clustering=clustering)
    assert method.plan(ServerState(3, Horizon(3), learnt), POPULATION).unseen.plan.tiers == ("root",)
    result = tiny_run(method=method, rounds=4)
    assert events_of(result)[-1]["routed"].keys() == {"5"}
    assert "unseen.routing_agreement" not in result.summary
    assert 0 <= result.summary["unseen.routing_agreement_with_own"] <= 1


def test_with_one_client_and_one_round_it_is_fedit_up_to_the_basis(tiny_run):
    def product(name, method, tier):
        folder = tiny_run(name, method=method, rounds=1, data=tiny_data(n_clients=1, unseen=())).folder
        _, tensors = load_checkpoint(folder)
        return {
            site: tensors[f"bank|{tier}/{site}/B|rows"][0] @ tensors[f"bank|{tier}/{site}/A|rows"][0]
            for site in ("blocks.0.q_proj", "blocks.1.v_proj")
        }

    ours, theirs = product("a", fedsim.HiLoRA(lora_rank=2), "root"), product("b", fedsim.FedIT(lora_rank=2), "adapter")
    for site, expected in theirs.items():
        torch.testing.assert_close(ours[site], expected, atol=1e-6, rtol=1e-4)


def test_two_groups_with_opposite_labels_are_told_apart(tiny_run):
    data = tiny_data(n_clients=8, per_client=120, unseen=(6, 7))
    clustering = SubspaceClustering(k_max=4)
    method = fedsim.HiLoRA(lora_rank=2, clustering=clustering, tolerance=0.0, head_policy="frozen")
    local = fedsim.LocalTraining(epochs=2, batch_size=8, learning_rate=1e-2)
    result = tiny_run(method=method, rounds=6, data=data, backbone=TinyAttention(depth=3), local=local)
    labels = next(event["labels"] for event in events_of(result) if "labels" in event)
    assert labels == [0, 1, 0, 1, 0, 1]
    assert events_of(result)[-1]["routed"] == {"6": 0, "7": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"root_share": 0.0}, "root_share and cluster_share"),
        ({"gamma_c": -1.0}, "none may be negative"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fedsim.HiLoRA(**settings)
