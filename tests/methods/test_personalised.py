"""The personalised methods at their limits, where each of them is another method, and what each of them merges."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_data
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist, squareform
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import silhouette_score

import fedsim
from fedsim.adapters.bank import Bank
from fedsim.adapters.layout import HEAD_TIER, Layout, Site, Slot
from fedsim.adapters.mixing import adaptive_top, two_way
from fedsim.parts.clustering import cosine_similarities, first_appearance
from fedsim.parts.initialisation import lora_initial
from fedsim.parts.objectives import cross_entropy, near_tier
from fedsim.parts.outer import nesterov_step
from fedsim.parts.tree import TreeCuts, agglomerated, best_clusters
from fedsim.round import ClientUpdate, Horizon, Population, ServerState
from fedsim.run_spec import population_of
from fedsim.server.cohort import sample_cohort
from fedsim.storage.run_folder import load_checkpoint

POPULATION = Population(6, (0, 1, 2, 3, 4), (5,), (12,) * 6)
HELD = ("global.mean", "global.p10", "unseen.untuned.mean")
"""What clients and newcomers hold; what they make of it in local training may differ by a personal part."""


def plan_of(method, round_index=3, rounds=10, **learnt):
    return method.plan(ServerState(round_index, Horizon(rounds), learnt), POPULATION)


def adapters(result, tier="adapter"):
    """The copies of one tier at the end of a run."""
    state, prefix = load_checkpoint(result.folder)[1], f"bank|{tier}/"
    return {key.removeprefix(prefix): rows for key, rows in state.items() if key.startswith(prefix) and "|rows" in key}


def events_of(result):
    return [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]


def assert_same_run(found, expected, keys=HELD, tier="adapter", of="adapter"):
    """The same metrics, and the same copies of one tier in both."""
    assert {key: found.summary[key] for key in keys} == pytest.approx({key: expected.summary[key] for key in keys})
    ours, theirs = adapters(found, tier), adapters(expected, of)
    assert ours.keys() == theirs.keys()
    assert ours
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-6, msg=key)


# FedSA-LoRA


def test_fedsa_lora_shares_a_and_nothing_else():
    plan = plan_of(fedsim.FedSALoRA())
    assert plan.groups(Slot("adapter", "q", "A")).tolist() == [0] * 6
    for factor in ("B", "W", "b"):
        assert plan.groups(Slot("adapter", "q", factor)).tolist() == list(range(6))
    assert all(plan.trains(Slot("adapter", "q", factor)) for factor in ("A", "B"))


def test_fedsa_lora_sends_half_of_what_fedit_sends(tiny_run):
    both, one = (
        tiny_run(name, method=kind(lora_rank=2, head_policy="local"))
        for name, kind in (("fedit", fedsim.FedIT), ("fedsa", fedsim.FedSALoRA))
    )
    assert one.summary["bytes.up"] == both.summary["bytes.up"] / 2
    rows = adapters(one)
    assert {len(rows[key]) for key in rows if "/A|" in key} == {1}
    assert {len(rows[key]) for key in rows if "/B|" in key} == {5}


def test_fedsa_lora_with_b_shared_too_is_fedit(tiny_run):
    found = tiny_run("fedsa", method=fedsim.FedSALoRA(lora_rank=2, shared=("A", "B")))
    assert_same_run(found, tiny_run("fedit"), (*HELD, "personal.mean", "unseen.tuned.mean", "bytes.up", "bytes.down"))


def test_fedsa_lora_with_nothing_shared_is_local(tiny_run):
    found = tiny_run("fedsa", method=fedsim.FedSALoRA(lora_rank=2, shared=()))
    assert_same_run(found, tiny_run("local", method=fedsim.Local(lora_rank=2)), (*HELD, "personal.mean", "bytes.up"))


# clustered FedAvg


def test_agglomeration_is_scipys_on_the_same_cosines():
    random = torch.Generator().manual_seed(0)
    pieces = [torch.randn(12, 3, 4, generator=random), torch.randn(12, 5, generator=random)]
    similarities = cosine_similarities(pieces, [piece[:7] for piece in pieces])
    flat = torch.cat([piece.flatten(1) for piece in pieces], dim=1).numpy()
    distances = cdist(flat, flat, "cosine")
    np.testing.assert_allclose(1 - similarities.numpy(), distances[:, :7], atol=1e-6)
    tree = linkage(squareform(distances, checks=False), "average")
    for n_groups in (1, 2, 5, 12):
        expected = first_appearance(torch.from_numpy(fcluster(tree, n_groups, "maxclust").astype(np.int64)))
        assert agglomerated(torch.from_numpy(distances), n_groups).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("n_clients", "n_groups", "labels"), [(0, 2, []), (1, 2, [0]), (2, 1, [0, 0]), (2, 2, [0, 1]), (2, 3, [0, 1])]
)
def test_few_clients_have_a_group_each_or_one_in_all(n_clients, n_groups, labels):
    assert agglomerated(1 - torch.eye(n_clients), n_groups).tolist() == labels


@pytest.mark.parametrize("engine", ["batched", "sequential"])
def test_fedprox_without_its_term_is_fedit_and_with_it_stays_nearer_at_no_more_bytes(tiny_run, engine):
    runs = {
        mu: tiny_run(f"{mu}", method=fedsim.FedProx(lora_rank=2, mu=mu), rounds=1, engine=engine) for mu in (0, 1, 1e3)
    }
    plain = tiny_run("fedit", method=fedsim.FedIT(lora_rank=2), rounds=1, engine=engine)
    assert runs[0].digest == plain.digest
    moved = [sum(float(v.norm()) for k, v in adapters(runs[mu]).items() if "/B|rows" in k) for mu in (0, 1, 1e3)]
    assert moved == sorted(moved, reverse=True)
    assert moved[2] < moved[0] / 2
    for run in runs.values():
        assert (run.summary["bytes.up"], run.summary["bytes.down"]) == (
            plain.summary["bytes.up"],
            plain.summary["bytes.down"],
        )


@pytest.mark.parametrize("head_policy", ["tier", "global", "local"])
def test_clustered_fedavg_with_one_cluster_is_fedit(tiny_run, head_policy):
    found = tiny_run("one", method=fedsim.ClusteredFedAvg(lora_rank=2, n_clusters=1, head_policy=head_policy))
    expected = tiny_run("fedit", method=fedsim.FedIT(lora_rank=2, head_policy=head_policy))
    assert found.summary["global.mean"] == pytest.approx(expected.summary["global.mean"])
    ours, theirs = adapters(found), adapters(expected)
    for key in (key for key in theirs if key.endswith("|rows")):
        torch.testing.assert_close(ours[key][-1], theirs[key][-1], rtol=1e-5, atol=1e-6)


def test_clustered_fedavg_with_as_many_clusters_as_clients_is_local_after_the_warm_up(tiny_run):
    """With one round of warm-up, from a shared start, that is Local from the first round on."""
    found = tiny_run("each", method=fedsim.ClusteredFedAvg(lora_rank=2, n_clusters=5, warmup_share=0))
    expected = tiny_run("local", method=fedsim.Local(lora_rank=2))
    for key in ("global.mean", "personal.mean"):
        assert found.summary[key] == pytest.approx(expected.summary[key])
    ours, theirs = adapters(found), adapters(expected)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key][1:], value, rtol=1e-5, atol=1e-6)


def test_clustered_fedavg_finds_the_two_groups_and_places_newcomers(tiny_run):
    """Even and odd clients label oppositely; two of each kind are unseen."""
    method = fedsim.ClusteredFedAvg(lora_rank=2, n_clusters=2, warmup_share=0)
    result = tiny_run("clusters", method=method, data=tiny_data(10, 32, unseen=(4, 9)))
    found, admitted = [event["labels"] for event in events_of(result) if "labels" in event]
    assert sorted(found) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert admitted == [client % 2 for client in range(10)]


@pytest.mark.parametrize(("share", "warmup"), [(0, 1), (0.3, 2), (0.5, 3)])
def test_clustered_fedavg_warms_up_for_its_share_of_the_rounds(tiny_run, share, warmup):
    """At least for the first; 0.3 of six rounds is two."""
    result = tiny_run(method=fedsim.ClusteredFedAvg(lora_rank=2, warmup_share=share), rounds=6)
    stages = [event["stage"] for event in events_of(result)[:6]]
    assert stages == ["warm-up"] * warmup + ["clusters"] * (6 - warmup)


def test_clustered_fedavg_places_whom_the_clustering_missed(tiny_run):
    method = fedsim.ClusteredFedAvg(lora_rank=2, n_clusters=2, warmup_share=0)
    result = tiny_run("late", method=method, cohort_size=3, rounds=8)
    labels = load_checkpoint(result.folder)[1]["learnt|labels"]
    assert set(labels[:5].tolist()) == {0, 1}, "client 5 is unseen"
    first = sample_cohort(population_of(tiny_data()), 3, 0, 0)
    found = next(event["labels"] for event in events_of(result) if "labels" in event)
    assert labels[first].tolist() == found, "whoever has a cluster stays in it"


def test_clustered_fedavg_keeps_a_member_whose_change_is_like_another_clusters():
    """Client 1 is of cluster 0 and moves as cluster 1 does; client 2, of none, moves alike and joins that."""
    B, moves = Slot("adapter", "q", "B"), torch.eye(4, 2)
    bank = Bank({B: torch.zeros(4, 2), B._replace(tier="change"): torch.zeros(4, 2)})
    bank.write(B._replace(tier="change"), {0: -moves, 1: moves}, 2, 0)
    labels = torch.tensor([0, 0, -1, 1, -1, -1])
    state = ServerState(5, Horizon(10), {"labels": labels}, bank)
    plan = fedsim.ClusteredFedAvg(lora_rank=2, n_clusters=2).plan(state, POPULATION)
    updates = [ClientUpdate(client, 12, {B: 0.5 * moves}) for client in (1, 2)]
    assert plan.server_update(state, plan, updates).learnt["labels"].tolist() == [0, 0, 1, 1, -1, -1]


# FedDPA


@pytest.mark.parametrize("head_policy", ["tier", "global"])
def test_feddpa_t_whose_local_adapter_counts_nothing_is_fedit(tiny_run, head_policy):
    options = {"lora_rank": 2, "lora_alpha": 4, "head_policy": head_policy}
    found = tiny_run("feddpa", method=fedsim.FedDPA(variant="T", weighting="constant", local_weight=0, **options))
    expected = tiny_run("fedit", method=fedsim.FedIT(**options))
    assert adapters(found, "global").keys() == adapters(expected).keys()
    for key, value in adapters(expected).items():
        torch.testing.assert_close(adapters(found, "global")[key], value, rtol=1e-5, atol=1e-6)
    if head_policy == "global":  # under "tier" the local adapter brings its own change of the classifier
        assert_same_run(found, expected, (*HELD, "bytes.up"), tier="global")


def test_feddpa_f_is_fedit_and_then_fine_tuning_of_its_copy(tiny_run):
    """At weight 1 what a client holds is FedIT's adapter, trained on by itself: FedIT, then Local from there."""
    options = {"lora_rank": 2, "lora_alpha": 4, "head_policy": "frozen"}
    method = fedsim.FedDPA(variant="F", weighting="constant", local_weight=1, **options)
    found = tiny_run("feddpa", method=method)
    expected = tiny_run("fedit", method=fedsim.FedIT(**options), rounds=2)
    for key, value in adapters(expected).items():
        torch.testing.assert_close(adapters(found, "global")[key], value, rtol=1e-5, atol=1e-6)
    whole = tiny_run("fedit_3", method=fedsim.FedIT(**options))
    assert found.summary["personal.mean"] == pytest.approx(whole.summary["personal.mean"])
    assert found.summary["global.mean"] == pytest.approx(whole.summary["personal.mean"])
    assert found.summary["unseen.untuned.mean"] == pytest.approx(expected.summary["unseen.untuned.mean"])


def test_feddpa_uploads_the_global_adapter_only():
    plan = plan_of(fedsim.FedDPA(variant="T", weighting="constant", head_policy="global"))
    assert plan.second_pass is not None
    trained = {
        (part, tier)
        for part, each in (("first", plan), ("second_pass", plan.second_pass))
        for tier in ("global", "local", HEAD_TIER)
        if each.trains(Slot(tier, "q", "B"))
    }
    assert trained == {("first", "local"), ("second_pass", "global"), ("second_pass", HEAD_TIER)}
    assert plan.tier_scales == {"global": 0.5, "local": 0.5}
    assert plan.second_pass.tiers == ("global",)
    assert plan.groups(Slot("local", "q", "B")).tolist() == list(range(6))


def test_feddpa_whose_local_adapter_weighs_nothing_in_tests_trains_all_the_same_and_is_tested_as_fedit(tiny_run):
    options = {"lora_rank": 2, "head_policy": "global"}
    found, constant = (
        tiny_run(weighting, method=fedsim.FedDPA(weighting=weighting, largest_weight=0, **options))
        for weighting in ("local", "constant")
    )
    expected = tiny_run("fedit", method=fedsim.FedIT(**options))
    for tier in ("global", "local"):
        for key, value in adapters(constant, tier).items():
            torch.testing.assert_close(adapters(found, tier)[key], value, rtol=1e-5, atol=1e-6)
    assert_same_run(found, expected, tier="global")
    assert found.summary["bytes.down"] == expected.summary["bytes.down"], "weights are not sent"


@pytest.mark.parametrize("wrong", [{"n_references": 0}, {"largest_weight": 1.5}, {"local_weight": -0.1}])
def test_feddpa_says_which_of_its_numbers_cannot_be(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        fedsim.FedDPA(**wrong)


# Ditto


@pytest.mark.parametrize("head_policy", ["tier", "global", "frozen"])
@pytest.mark.parametrize("engine", ["batched", "sequential"])
def test_dittos_global_adapter_is_fedits_to_the_bit(tiny_run, head_policy, engine):
    options = {"lora_rank": 2, "lora_alpha": 4, "head_policy": head_policy}
    common = {"cohort_size": 3, "engine": engine}
    found = tiny_run("ditto", method=fedsim.Ditto(penalty=0.5, **options), **common)
    expected = tiny_run("fedit", method=fedsim.FedIT(**options), **common)
    ours, theirs = adapters(found, "global"), adapters(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    if head_policy == "global":
        for key, value in adapters(expected, HEAD_TIER).items():
            assert torch.equal(adapters(found, HEAD_TIER)[key], value)
    for column in ("bytes.up", "bytes.down"):
        assert found.summary[column] == expected.summary[column]


@pytest.mark.parametrize("head_policy", ["frozen", "local"])
def test_ditto_that_is_not_held_is_local(tiny_run, head_policy):
    options = {"lora_rank": 2, "lora_alpha": 4, "head_policy": head_policy}
    found = tiny_run("ditto", method=fedsim.Ditto(penalty=0, **options))
    expected = tiny_run("local", method=fedsim.Local(**options))
    for key in ("personal.mean", "global.mean"):
        assert found.summary[key] == pytest.approx(expected.summary[key]), key
    ours, theirs = adapters(found, "personal"), adapters(expected)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key][:5], value, rtol=1e-4, atol=1e-6, msg=key)


def test_ditto_that_is_held_more_stays_nearer_to_the_global_adapter(tiny_run):
    local, far = fedsim.LocalTraining(batch_size=4, learning_rate=1e-2, optimizer="sgd"), []
    for penalty in (0, 1, 30):
        method = fedsim.Ditto(lora_rank=2, penalty=penalty, head_policy="frozen")
        result = tiny_run(f"{penalty}", method=method, local=local, rounds=4)
        shared, own = adapters(result, "global"), adapters(result, "personal")
        far.append(sum(float((own[key][:5] - shared[key]).norm()) for key in shared if key.endswith("|rows")))
    assert far == sorted(far, reverse=True)
    assert far[2] < far[0] / 2


def test_dittos_client_without_an_adapter_of_its_own_has_the_global_one(tiny_run):
    result = tiny_run("ditto", method=fedsim.Ditto(lora_rank=2), cohort_size=2, rounds=2)
    shared, own = adapters(result, "global"), adapters(result, "personal")
    unseen = 5
    for key in shared:
        if "/A|" in key or "/B|" in key:
            assert torch.equal(own[key][unseen], shared[key][0])


def test_the_distance_between_tiers_is_that_of_adapters_and_a_classifiers_own_change():
    logits, targets = torch.randn(3, 6, 4), torch.randint(4, (3, 6))
    A, W = Slot("personal", "q", "A"), Slot("personal", "head", "W")
    there = {A._replace(tier="global"): torch.randn(3, 2, 5), W._replace(tier="global"): torch.randn(3, 4, 5)}
    steps = torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1)
    tensors = there | {A: there[A._replace(tier="global")] + steps, W: steps.expand(3, 4, 5)}
    found = near_tier(0.5, ("personal", "global"), logits, targets, tensors, there)
    plain = cross_entropy(logits, targets, {}, {})
    torch.testing.assert_close(found, plain + 0.25 * torch.tensor([0.0, 30.0, 4 * 30.0]))


# PF2LoRA


@pytest.mark.parametrize("head_policy", ["tier", "global"])
def test_pf2lora_whose_clients_do_not_move_their_own_adapter_is_fedit(tiny_run, head_policy):
    options = {"lora_rank": 3, "lora_alpha": 6, "head_policy": head_policy}
    found = tiny_run("pf2lora", method=fedsim.PF2LoRA(client_rank=1, client_rate=0, **options))
    expected = tiny_run("fedit", method=fedsim.FedIT(**options))
    assert_same_run(found, expected, (*HELD, "bytes.up", "bytes.down"), tier="common")


def test_pf2lora_adds_a_thin_adapter_that_stays_with_its_client(tiny_run):
    result = tiny_run("pf2lora", method=fedsim.PF2LoRA(lora_rank=3, client_rank=1, lora_alpha=6))
    for key, rows in adapters(result, "client").items():
        if key.endswith("B|rows"):
            assert rows.shape == (5, 12, 1)
            assert rows.any((1, 2)).all()
    plan = plan_of(fedsim.PF2LoRA(lora_rank=8, client_rank=2, lora_alpha=16))
    assert plan.tier_scales["client"] * 16 / 8 == 16 / 2
    assert plan.groups(Slot("client", "q", "A")).tolist() == list(range(6))


# FDLoRA


def test_the_outer_step_is_torchs_sgd_with_nesterovs_momentum():
    random = torch.Generator().manual_seed(0)
    value, velocity = torch.randn(3, 4, generator=random), torch.zeros(3, 4)
    parameter = value.clone().requires_grad_()
    optimizer = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    for _ in range(4):
        mean = torch.randn(3, 4, generator=random)
        parameter.grad = parameter.detach() - mean
        optimizer.step()
        value, velocity = nesterov_step(value, mean, velocity, 0.7, 0.9)
        torch.testing.assert_close(value, parameter.detach())


FEDIT_LIKE = {"personal_share": 0, "fusion_share": 0, "outer_rate": 1, "outer_momentum": 0}


@pytest.mark.parametrize("head_policy", ["tier", "global"])
def test_fdlora_that_steps_to_the_mean_and_fuses_nothing_is_fedit(tiny_run, head_policy):
    options = {"lora_rank": 2, "head_policy": head_policy}
    method = fedsim.FDLoRA(weights=(0.0, 1.0), sync_period=100, **FEDIT_LIKE, **options)
    expected = tiny_run("fedit", method=fedsim.FedIT(**options))
    keys = (*HELD, "personal.mean", "bytes.up", "unseen.tuned.mean")
    assert_same_run(tiny_run("fdlora", method=method), expected, keys, tier="global")


@pytest.mark.parametrize("shares", [(-0.1, 0.2), (0.2, -0.1), (0.5, 0.5)])
def test_fdlora_refuses_shares_that_leave_no_round_for_the_global_adapter(shares):
    with pytest.raises(ValueError, match="not negative, below 1 in sum"):
        fedsim.FDLoRA(personal_share=shares[0], fusion_share=shares[1])


def test_fdlora_begins_without_velocity():
    layout = Layout((Site("q", "q", 6, 6, 0),), fedsim.FDLoRA.tiers, 2)
    start = fedsim.FDLoRA(lora_rank=2).initial(layout, torch.Generator(), {})
    assert not any(value.any() for slot, value in start.items() if slot.tier == "velocity")
    assert torch.equal(start[Slot("personal", "q", "A")], start[Slot("global", "q", "A")])


def test_fdlora_starts_as_local_and_goes_on_from_the_mean(tiny_run):
    """Two rounds alone are Local's; the global adapter then is the mean of what they made."""
    options = {"lora_rank": 2, "head_policy": "frozen"}
    method = fedsim.FDLoRA(personal_share=2 / 3, fusion_share=0, outer_rate=0.0, **options)
    found, local = tiny_run("fdlora", method=method), tiny_run("local", method=fedsim.Local(**options), rounds=2)
    personal, shared = adapters(found, "personal"), adapters(found, "global")
    assert {len(rows) for key, rows in personal.items() if key.endswith("rows")} == {6}
    for key in [key for key in shared if key.endswith("B|rows")]:
        torch.testing.assert_close(shared[key][0], personal[key][:5].mean(0))
        torch.testing.assert_close(personal[key][5], shared[key][0], msg="client 5 is unseen")
    rows = csv.DictReader((found.folder / "metrics.csv").read_text().splitlines())
    trained = [float(row["personal.mean"]) for row in rows]
    assert trained[1] == pytest.approx(local.summary["personal.mean"])


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        (fedsim.FDLoRA(personal_share=0.25, fusion_share=0.25), "personal personal global global fusion fusion"),
        (fedsim.FDLoRA(personal_share=0, fusion_share=0), "global global global global global global"),
        (fedsim.FedDPA(variant="F", tuning_share=0.25), "global global global global local local"),
        (fedsim.FedDPA(variant="F", tuning_share=0), "global global global global global local"),
    ],
)
def test_shares_of_the_rounds_are_rounded_to_whole_ones(method, stages):
    """A quarter of six rounds is two (1.5, to even); FedDPA-F tunes in one round at least."""
    assert [plan_of(method, index, 6).stage for index in range(6)] == stages.split()


def test_fdlora_learns_two_weights_for_each_client_and_nothing_else_at_the_end(tiny_run):
    method = fedsim.FDLoRA(lora_rank=2, personal_share=0.25, fusion_share=0.5, fusion_rate=0.1)
    plan = plan_of(method, round_index=9)
    assert plan.trains(Slot("mix", "all", "weights"))
    assert not plan.trains(Slot("personal", "q", "B"))
    result = tiny_run("fdlora", method=method, rounds=4)
    (weights,) = [rows for key, rows in adapters(result, "mix").items() if key.endswith("rows")]
    assert weights.shape == (5, 2)
    assert (weights != 0.5).all()


# FedALT


def test_two_way_is_softmax_whose_gradient_is_nothing_where_both_tiers_do_the_same():
    logits = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.testing.assert_close(two_way(logits, 2), logits.softmax(-1))
    (two_way(logits, 2) * torch.randn(50, 1)).sum().backward()
    assert not logits.grad.any()


class OwnOnly(fedsim.FedALT):
    """FedALT whose mixer is frozen at 1."""

    @property
    def mixing(self):
        return replace(super().mixing, weigh=lambda logits, n_tiers: torch.eye(2)[0].expand(*logits.shape[:-1], 2))


@pytest.mark.parametrize("warmup_rounds", [0, 2])
def test_fedalt_whose_mixer_is_frozen_at_one_is_local(tiny_run, warmup_rounds):
    options = {"lora_rank": 2, "lora_alpha": 2.0}
    found = tiny_run("fedalt", method=OwnOnly(warmup_rounds=warmup_rounds, **options), data=tiny_data(unseen=()))
    expected = tiny_run("local", method=fedsim.Local(**options), data=tiny_data(unseen=()))
    assert_same_run(found, expected, ("global.mean", "personal.mean"), tier="individual")


def test_fedalts_rest_of_the_world_is_the_mean_of_all_others_last_uploads(tiny_run):
    result = tiny_run("fedalt", method=fedsim.FedALT(lora_rank=2, lora_alpha=4), cohort_size=3, rounds=4)
    individual, world = adapters(result, "individual"), adapters(result, "world")
    has_own = load_checkpoint(result.folder)[1]["learnt|has_own"].tolist()
    assert has_own == [True] * 5 + [False]
    for key in [key for key in world if key.endswith("|rows")]:
        for client in range(6):
            others = [other for other in range(5) if other != client]
            torch.testing.assert_close(world[key][client + 1], individual[key][others].mean(0))
        torch.testing.assert_close(individual[key][5], individual[key][:5].mean(0), msg="client 5 is unseen")


def test_fedalts_mixer_stays_with_its_client_and_moves(tiny_run):
    result = tiny_run("fedalt", method=fedsim.FedALT(lora_rank=2, spread=0))
    for rows in (rows for key, rows in adapters(result, "mix").items() if key.endswith("G|rows")):
        assert rows.shape == (5, 2, 12)
        assert len({tuple(row.flatten().tolist()) for row in rows}) == 5
    plan = plan_of(fedsim.FedALT())
    assert not plan.trains(Slot("world", "q", "B"))
    assert not plan.uploads(Slot("mix", "q", "G"))
    assert plan.uploads(Slot("individual", "q", "B"))


class HalfAndHalf(fedsim.FedALT):
    """FedALT whose mixer is frozen at 1/2."""

    @property
    def mixing(self):
        return replace(super().mixing, weigh=lambda logits, n_tiers: torch.full((*logits.shape[:-1], 2), 0.5))


class TreeFromOneStart(fedsim.FedTreeLoRA):
    """FedTreeLoRA whose warm-up starts from the first draw, as FedALT's does."""

    def initial(self, layout, generator, weights):
        start = lora_initial(layout, generator)
        return {s: start[s._replace(tier="cluster")] if s.tier == "local" else t for s, t in start.items()}


def test_fedtreelora_whose_groups_are_singletons_is_fedalt_with_a_constant_gate(tiny_run):
    """Both after two rounds alone; λ's rate is so small that it stays where it is."""
    options = {"lora_rank": 2, "warmup_rounds": 2, "head_policy": "tier"}
    tree = TreeFromOneStart(tree=TreeCuts(clusters=6), lambda_rate=1e-12, **options)
    found = tiny_run("tree", method=tree, data=tiny_data(unseen=()), rounds=4)
    expected = tiny_run("fedalt", method=HalfAndHalf(**options), data=tiny_data(unseen=()), rounds=4)
    for key in ("global.mean", "personal.mean"):
        assert found.summary[key] == pytest.approx(expected.summary[key])
    ours, theirs = adapters(found, "cluster"), adapters(expected, "individual")
    for key in [key for key in theirs if key.endswith("|rows")]:
        torch.testing.assert_close(ours[key][1:], theirs[key], rtol=1e-5, atol=1e-6)


# FedLEASE


def test_adaptive_top_hears_one_to_n_tiers():
    """Outputs 0, 1, 2 are the own expert's, 3 and 4 the others'; three of the five count."""
    for logits, expected in (
        ([3.0, 2.0, 1.0, 0.0, -1.0], [1.0, 0.0, 0.0]),
        ([0.0, -1.0, -1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]),
        ([0.0, 0.0, -1.0, 0.0, -1.0], [2 / 3, 1 / 3, 0.0]),
    ):
        torch.testing.assert_close(adaptive_top(torch.tensor(logits), 3), torch.tensor(expected))
    assert adaptive_top(torch.randn(4, 7), 1).tolist() == [[1.0]] * 4, "unused outputs do not count"
    assert adaptive_top(torch.randn(2, 5, 7), 4).sum(-1).sub(1).abs().max() < 1e-6


@pytest.mark.parametrize("head_policy", ["tier", "global"])
def test_fedlease_with_one_expert_is_fedit(tiny_run, head_policy):
    options = {"lora_rank": 2, "head_policy": head_policy}
    found = tiny_run("fedlease", method=fedsim.FedLEASE(n_experts=1, warmup_rounds=0, **options))
    expected = tiny_run("fedit", method=fedsim.FedIT(**options))
    assert {key: found.summary[key] for key in HELD} == pytest.approx({key: expected.summary[key] for key in HELD})
    for key, value in adapters(expected).items():
        if key.endswith("|rows"):
            torch.testing.assert_close(adapters(found, "expert0")[key][1:], value, rtol=1e-5, atol=1e-6)


def test_fedleases_number_of_experts_is_that_of_the_best_silhouette():
    random = torch.Generator().manual_seed(0)
    slots = [Slot("expert0", site, "B") for site in ("q", "v")]
    centres = {slot: torch.randn(3, 6, 2, generator=random) for slot in slots}
    updates = [
        ClientUpdate(k, 1, {s: centres[s][k % 3] + 0.3 * torch.randn(6, 2, generator=random) for s in slots})
        for k in range(9)
    ]
    labels, log = best_clusters(updates, 10, most=5)
    assert labels.tolist() == [0, 1, 2] * 3 + [-1]
    flat = {s: np.stack([u.tensors[s].flatten().numpy() for u in updates]) for s in slots}
    distances = np.mean([cdist(flat[s], flat[s], "cosine") for s in slots], axis=0)
    np.fill_diagonal(distances, 0)
    for count, score in log["silhouettes"]:
        model = AgglomerativeClustering(count, metric="precomputed", linkage="average").fit(distances)
        assert score == pytest.approx(silhouette_score(distances, model.labels_, metric="precomputed"), abs=1e-6)
    assert [count for count, _ in log["silhouettes"]] == [2, 3, 4, 5]


def test_fedleases_clients_hear_their_own_expert_first_and_then_the_others_in_order():
    plan = plan_of(fedsim.FedLEASE(), labels=torch.tensor([0, 1, 2, 0, 1, -1]))
    assert plan.tiers == ("expert0", "expert1", "expert2")
    assert plan.groups(Slot("expert0", "q", "B")).tolist() == [1, 2, 3, 1, 2, 0]
    assert plan.groups(Slot("expert1", "q", "B")).tolist() == [2, 3, 1, 2, 3, 0]
    assert plan.groups(Slot("expert2", "q", "B")).tolist() == [3, 1, 2, 3, 1, 0]
    assert plan.groups(Slot("mix", "q", "G")).tolist() == [1, 2, 3, 1, 2, 0]
    trained = [tier for tier in (*plan.tiers, "mix") if plan.trains(Slot(tier, "q", "B"))]
    assert trained == ["expert0", "mix"]


@pytest.mark.parametrize(("warmup_rounds", "alone"), [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_fedleases_clients_train_alone_in_as_many_rounds_as_the_warm_up_has(tiny_run, warmup_rounds, alone):
    """But for the first round, in which nobody has uploaded anything that could be clustered."""
    result = tiny_run(method=fedsim.FedLEASE(lora_rank=2, warmup_rounds=warmup_rounds), rounds=4)
    stages = [event["stage"] for event in events_of(result)[:4]]
    assert stages == ["warm-up"] * alone + ["experts"] * (4 - alone)


def test_fedlease_holds_every_expert_in_every_place(tiny_run):
    result = tiny_run("fedlease", method=fedsim.FedLEASE(lora_rank=2, n_experts=2, max_experts=3, warmup_rounds=1))
    own, other = adapters(result, "expert0"), adapters(result, "expert1")
    assert not adapters(result, "expert2")
    for key in [key for key in other if key.endswith("|rows")]:
        torch.testing.assert_close(own[key], other[key])
        assert own[key].shape[0] == 3, "two experts and everyone's mean"
    routers = adapters(result, "mix")
    assert {rows.shape for key, rows in routers.items() if key.endswith("|rows")} == {(2, 5, 12)}
