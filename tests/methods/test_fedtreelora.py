"""FedTreeLoRA from outside: its limits, who holds what, what trains, what is sent."""

import json
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from conftest import TinyAttention, tiny_data

import fedsim
from fedsim.adapters.bank import NEVER, Bank
from fedsim.adapters.layout import Layout, Slot, byte_count
from fedsim.costs.accounting import account_round, round_costs
from fedsim.distributed.workers import Workers
from fedsim.models.client_module import ClientModule
from fedsim.models.sites import find_sites
from fedsim.parts.initialisation import lora_initial
from fedsim.parts.tree import TreeCuts
from fedsim.parts.uplink import Uplink
from fedsim.plan import equally
from fedsim.randomness import generator
from fedsim.round import ClientUpdate, Horizon, Population, ServerState
from fedsim.server.aggregator import Aggregator
from fedsim.server.workload import Workload
from fedsim.storage.run_folder import load_checkpoint

N, DEPTHS = 4, 3
POPULATION = Population(6, (0, 1, 2, 3), (5,), (10, 30, 60, 20, 0, 10))
SITES = [f"blocks.{depth}.{name}" for depth in range(DEPTHS) for name in ("q_proj", "v_proj")]


class Server:
    """The server's half of rounds in which clients send random numbers."""

    def __init__(self, population=POPULATION, **settings):
        self.method = fedsim.FedTreeLoRA(**{"lora_rank": 2, "warmup_rounds": 1} | settings)
        self.backbone, self.population = TinyAttention(depth=DEPTHS), population
        self.layout = Layout(
            find_sites(self.backbone), self.method.tiers, 2, self.method.head_policy, self.method.mixing
        )
        self.initial = lora_initial(self.layout, generator(0, "initial"))
        never = torch.full((population.n_clients,), NEVER)
        self.state = ServerState(
            0, Horizon(9), bank=Bank(dict(self.initial)), last_seen=never, depths=self.layout.depths
        )
        local = fedsim.LocalTraining(learning_rate=1e-3)
        workload = Workload(self.method, population, self.layout, self.initial, local)
        self.aggregator = Aggregator(workload, Workers())

    def assignments(self, clients):
        dispatch = self.aggregator.dispatch(self.state, clients)
        return {a.client: a for block in dispatch.blocks for a in block}

    def round(self, clients=range(N)) -> dict[int, ClientUpdate]:
        """Let these clients add noise of their own to what they train; what they sent."""
        dispatch = self.aggregator.dispatch(self.state, list(clients))
        costs = round_costs(self.state, dispatch.plan, self.aggregator.workload.of, dispatch.clients, None, Uplink())
        updates = []
        for a in [a for block in dispatch.blocks for a in block]:
            random = torch.Generator().manual_seed(100 * self.state.round_index + a.client)
            tensors = {
                slot: a.tensors[slot] + torch.randn(a.tensors[slot].shape, generator=random) for slot in a.trains
            }
            updates.append(ClientUpdate(a.client, self.population.samples[a.client], tensors))
        collected = self.aggregator.collect(dispatch.plan, updates)
        self.state, outcome = self.aggregator.merge(self.state, dispatch.plan, collected)
        self.log = {**outcome.log, **account_round(costs, outcome, None)[1]}
        return {update.client: update for update in updates}


def events_of(result) -> list[dict]:
    return [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]


def uneven_data() -> fedsim.FederatedData:
    """Six clients with 4, 8, … 24 samples."""
    random = torch.Generator().manual_seed(0)
    client_of_sample = torch.cat([torch.full((4 * (client + 1),), client) for client in range(6)])
    inputs = torch.randn(len(client_of_sample), 12, generator=random)
    return fedsim.from_tensors(inputs, torch.randint(0, 3, (len(inputs),), generator=random), client_of_sample)


@dataclass(frozen=True, kw_only=True)
class UniformFedIT:
    """FedIT in which clients weigh alike."""

    lora_rank: int = 2
    lora_alpha: float | None = 4.0
    head_policy: str = "tier"
    tiers = ("adapter",)

    def plan(self, state, population):
        return replace(fedsim.FedIT(head_policy=self.head_policy).plan(state, population), weights=equally)


# limits


@pytest.mark.parametrize("policy", ["tier", "global", "local", "frozen"])
@pytest.mark.parametrize("cohort_size", [None, 3])
def test_a_window_of_one_without_warm_up_is_fedit_with_uniform_weights(tiny_run, policy, cohort_size):
    common = {"data": uneven_data(), "cohort_size": cohort_size, "rounds": 4}
    method = fedsim.FedTreeLoRA(
        lora_rank=2, lora_alpha=4.0, warmup_rounds=0, tree=TreeCuts(window=1), head_policy=policy
    )
    ours = tiny_run("tree", method=method, **common)
    theirs = tiny_run("fedit", method=UniformFedIT(head_policy=policy), **common)
    found, expected = load_checkpoint(ours.folder)[1], load_checkpoint(theirs.folder)[1]
    rows = {key: value for key, value in expected.items() if key.endswith("|rows")}
    assert len(rows) == 8 + 2 * (policy != "frozen")
    for key, value in rows.items():
        other = found[key.replace("bank|adapter/", "bank|cluster/")]
        scale = 2.0 if "/A|" in key else 1.0  # FedIT's A travels times α/R
        torch.testing.assert_close(scale * other, value, rtol=1e-6, atol=1e-6)
    for name in ("global.mean", "personal.mean", "bytes.up", "bytes.down"):
        assert ours.summary[name] == pytest.approx(theirs.summary[name]), name
    assert not [key for key in found if "external" in key or "gate" in key]


def test_with_every_client_alone_each_adds_its_own_adapter_and_the_mean_of_the_others_by_a_constant_gate():
    server = Server(tree=TreeCuts(clusters=N), initial_lambda=0.7, lora_alpha=6.0)
    for _ in range(2):
        sent = server.round()
    module = ClientModule(server.backbone, server.layout.sites, mixing=server.method.mixing)
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    for client, a in server.assignments(range(N)).items():
        module.install(a.tensors, a.scales, None)
        for site in SITES:
            linear = module.backbone.get_submodule(site)
            gate = sent[client].tensors[Slot("mix", f"depth.{site.split('.')[1]}", "gate")].sigmoid()
            assert torch.equal(a.tensors[Slot("mix", f"depth.{site.split('.')[1]}", "gate")].sigmoid(), gate)
            own = {f: sent[client].tensors[Slot("cluster", site, f)] for f in "AB"}
            rest = {
                f: sum(sent[k].tensors[Slot("cluster", site, f)] for k in range(N) if k != client) / 3 for f in "AB"
            }
            delta = 3.0 * (gate * own["B"] @ own["A"] + (1 - gate) * rest["B"] @ rest["A"])
            expected = x @ (linear.weight + delta).T + linear.base.bias
            torch.testing.assert_close(linear(x), expected, rtol=1e-5, atol=1e-4)


# warm-up


def test_in_the_warm_up_everyone_trains_alone_from_one_start():
    server = Server(warmup_rounds=2)
    given = server.assignments(range(N))
    assert {slot.tier for slot in given[0].tensors} == {"local"}
    assert all(torch.equal(t, given[3].tensors[slot]) for slot, t in given[0].tensors.items())
    assert not any(given[0].tensors[slot].any() for slot in given[0].tensors if slot.factor == "B")
    sent = server.round()
    for client, a in server.assignments(range(N)).items():
        assert all(torch.equal(tensor, sent[client].tensors[slot]) for slot, tensor in a.tensors.items())
    assert "trees" not in server.log
    size = sum(byte_count(update.tensors.values()) for update in sent.values())
    assert (server.log["bytes.up"], server.log["bytes.down"]) == (size, 0), "the server sees it, and returns nothing"


def test_the_tree_is_grown_once_from_what_the_warm_up_left():
    server = Server(warmup_rounds=2, tree=TreeCuts(tau=-1.0))
    logs = [server.round() and server.log for _ in range(4)]
    assert ["trees" in log for log in logs] == [False, True, False, False]
    assert all(before <= after for before, after in pairwise(logs[1]["cuts"]))


# experts


def groups_at(server: Server, depth: int) -> list[int]:
    return server.state.learnt[f"groups.{depth}"].tolist()


@pytest.mark.parametrize("policy", ["tier", "global", "local"])
def test_every_client_holds_the_mean_of_its_group_and_of_all_others(policy):
    server = Server(tree=TreeCuts(clusters=2), head_policy=policy)
    for tier in ("local", "cluster"):
        sent = server.round()
        for client, a in server.assignments(range(N)).items():
            assert {slot.tier for slot in a.tensors} - {"head"} == {"cluster", "external", "mix"}
            for slot in [slot for slot in a.tensors if slot.tier in ("cluster", "external")]:
                groups = groups_at(server, server.layout.depths[slot.site])
                members = [k for k in range(N) if (groups[k] == groups[client]) == (slot.tier == "cluster")]
                mean = sum(sent[k].tensors[slot._replace(tier=tier)] for k in members) / len(members)
                torch.testing.assert_close(a.tensors[slot], mean)
    heads = {slot for slot in a.tensors if slot.site == "head"}
    assert {slot.tier for slot in heads} == {"cluster" if policy == "tier" else "head"}


def test_only_cluster_experts_heads_and_lambda_train_each_at_its_rate():
    server = Server(tree=TreeCuts(clusters=2), lambda_rate=0.3)
    server.round()
    a = server.assignments(range(N))[0]
    assert {slot.tier for slot in a.trains} == {"cluster", "mix"}
    assert a.rates == {Slot("mix", f"depth.{d}", "gate"): 0.3 for d in range(DEPTHS)}
    assert {slot.tier for slot in a.tensors} - {slot.tier for slot in a.trains} == {"external"}


def test_a_depth_without_a_split_has_no_external_expert_and_no_lambda_and_costs_what_fedavg_does():
    server = Server(tree=TreeCuts(clusters=1))
    server.round()
    assert {slot.tier for slot in server.assignments(range(N))[0].tensors} == {"cluster"}
    sent = server.round()
    size = sum(byte_count(update.tensors.values()) for update in sent.values())
    assert (server.log["bytes.up"], server.log["bytes.down"]) == (size, size)
    assert "lambda" not in server.log


def test_the_external_expert_is_sent_down_never_up_and_lambda_not_at_all():
    server = Server(tree=TreeCuts(clusters=2), head_policy="frozen")
    server.round()
    server.round()
    adapters = sum(t.numel() for slot, t in server.initial.items() if slot.tier == "cluster") * 4 * N
    assert (server.log["bytes.up"], server.log["bytes.down"]) == (adapters, 2 * adapters)


def test_without_external_experts_there_is_nothing_to_weigh():
    server = Server(tree=TreeCuts(clusters=2), external=False)
    assert not [slot for slot in server.initial if slot.tier == "mix"]
    server.round()
    assert {slot.tier for slot in server.assignments(range(N))[0].tensors} == {"cluster"}


def test_a_router_may_weigh_every_token_in_place_of_lambda():
    server = Server(tree=TreeCuts(clusters=2), weigh="token", lambda_rate=0.3)
    server.round()
    a = server.assignments(range(N))[0]
    routers = {slot for slot in a.tensors if slot.tier == "mix"}
    assert routers == {Slot("mix", site, "G") for site in SITES} <= a.trains
    assert not a.rates, "it trains as adapters do"
    sent = server.round()
    again = server.assignments(range(N))
    assert all(torch.equal(again[k].tensors[slot], sent[k].tensors[slot]) for k in range(N) for slot in routers)
    assert "lambda" not in server.log


# those who have no place


def test_who_has_no_place_holds_everyones_mean_whatever_its_lambda():
    server = Server(tree=TreeCuts(clusters=2))
    server.round((0, 1, 2))
    sent = server.round((0, 1, 2))
    given = server.assignments((3, 5))
    for client in (3, 5):
        for slot in [slot for slot in given[client].tensors if slot.tier in ("cluster", "external")]:
            mean = sum(u.tensors[slot._replace(tier="cluster")] for u in sent.values()) / 3
            torch.testing.assert_close(given[client].tensors[slot], mean)


def test_a_client_met_after_the_warm_up_joins_a_group_and_an_unseen_one_never_does():
    server = Server(tree=TreeCuts(clusters=2))
    server.round((0, 1, 2))
    assert server.state.learnt["labels"][[3, 5]].tolist() == [NEVER, NEVER]
    server.round((1, 3))
    assert server.log["joined"] == {"3": int(server.state.learnt["labels"][3])}
    partner = next(k for k in range(3) if server.state.learnt["labels"][k] == server.state.learnt["labels"][3])
    for depth in range(DEPTHS):
        assert groups_at(server, depth)[3] == groups_at(server, depth)[partner] > 0
    assert server.state.learnt["labels"][5] == NEVER


def test_a_client_without_data_is_no_leaf_of_the_tree_and_in_no_mean():
    server = Server(Population(4, (0, 1, 2, 3), (), (10, 10, 10, 0)), tree=TreeCuts(clusters=1))
    sent = server.round()
    assert server.log["tree_clients"] == [0, 1, 2]
    slot = Slot("cluster", SITES[0], "B")
    expected = sum(sent[k].tensors[slot._replace(tier="local")] for k in range(3)) / 3
    torch.testing.assert_close(server.assignments([3])[3].tensors[slot], expected)


# a whole run


def test_a_run_logs_tree_cuts_silhouettes_and_lambdas_that_move_inside_zero_and_one(tiny_run):
    method = fedsim.FedTreeLoRA(lora_rank=2, warmup_rounds=2, tree=TreeCuts(tau=-1.0))
    result = tiny_run(method=method, rounds=5, data=tiny_data(7), backbone=TinyAttention(depth=4))
    events = events_of(result)
    assert [event["stage"] for event in events] == ["warm-up"] * 2 + ["tree"] * 3 + ["unseen"]
    assert ["cuts" in event for event in events] == [False, True, False, False, False, False]
    assert len(events[1]["cuts"]) == len(events[1]["silhouettes"]) == len(events[1]["groups"]) == 4
    assert result.summary["clusters.count"] == len(set(events[1]["groups"][-1]))
    lambdas = torch.tensor([[event["lambda_by_client"][str(k)] for k in (0, 1, 2, 3, 4, 6)] for event in events[2:5]])
    split = torch.tensor(events[1]["cuts"]) > 1
    assert split.any()
    assert (lambdas[..., ~split] == 1).all()
    assert ((lambdas[..., split] > 0) & (lambdas[..., split] < 1)).all()
    assert (lambdas[0, :, split] - 0.5).abs().mean() > 0.02, "its own rate lets it move within a round"
    assert (lambdas[0] != lambdas[-1])[:, split].all()
    torch.testing.assert_close(torch.tensor(events[4]["lambda"]), lambdas[2].mean(0))


def test_training_changes_cluster_experts_only(tiny_run):
    """The external expert gets no gradient: what the engine returns of a client has none of it."""
    returned = []
    method = fedsim.FedTreeLoRA(lora_rank=2, warmup_rounds=1, tree=TreeCuts(clusters=2))
    real = ClientModule.training_step

    def training_step(module, *arguments):
        returned.append(({s: t for s, t in module.tensors.items() if s.tier == "external"}, dict(module.trained)))
        return real(module, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClientModule, "training_step", training_step)
        tiny_run(method=method, rounds=2, engine="sequential", evaluate_every=2)
    external, trained = returned[-1]
    assert external
    assert all(t.grad is None and not t.requires_grad for t in external.values())
    assert {slot.tier for slot in trained} == {"cluster", "mix"}
    assert all(t.grad is not None for t in trained.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_rounds": -1}, "warmup_rounds is -1"),
        ({"lambda_rate": 0.0}, "lambda_rate 0.0"),
        ({"initial_lambda": 1.0}, r"initial λ is 1.0.*--method.initial-lambda"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_starts(tiny_run, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_run(method=fedsim.FedTreeLoRA(lora_rank=2, **settings))
    assert not (tmp_path / "run").exists()
