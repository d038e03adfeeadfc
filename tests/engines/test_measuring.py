"""What is measured at the received model, by clients or a proxy: Fisher scores against autograd of `torch.func`."""

import csv
import json
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import tiny_data
from lightning.fabric import Fabric
from test_engines_agree import CLIENTS, LAYOUT, SIZES, assignments, backbone, federation, low_ranks
from torch.func import functional_call, grad, vmap

import fedsim
from fedsim.engines.batched import BatchedEngine
from fedsim.engines.sequential import SequentialEngine
from fedsim.models.client_module import ClientModule
from fedsim.plan import Measure, Plan, merge_groups
from fedsim.round import Outcome, Population

PLAN = Plan(population=Population(CLIENTS, (0, 1, 2, 3), (4, 5), SIZES))
FISHER = replace(PLAN, measure=Measure("fisher"))


def engine(kind, **options):
    module = ClientModule(backbone(), LAYOUT.sites)
    options |= {"block_size": 3} if kind is BatchedEngine else {}
    return kind(Fabric(accelerator="cpu", devices=1), module, federation(), 7, **options)


def measured(kind, plan, **changes):
    updates = engine(kind).measure(plan, [assignments(**changes)])
    assert all(not update.tensors and not update.logs for update in updates)
    return {update.client: update.measured for update in updates}


def expected_fisher(client: int, of_logits) -> dict:
    """The mean of squared per-sample gradients of `of_logits`, with ΔW = B A written into a plain copy of the model."""
    net, data = backbone(), federation()
    for block in net.blocks:
        block.attn.fused_attn = False  # which vmap does not know
    tensors = assignments()[client].tensors
    names = {site.name: f"{site.module}.weight" for site in LAYOUT.sites}
    frozen = {name: value.detach() for name, value in net.named_parameters()}

    def objective(own, image, target):
        weights = dict(frozen)
        for site in LAYOUT.sites:
            for tier in LAYOUT.tiers:
                get = {factor: own[tier, site.name, factor] for _, s, factor in own if s == site.name}
                change = get["W"] if site.is_head else get["B"] @ get["A"]
                if site.rows:
                    start, stop = site.rows
                    outputs = len(weights[names[site.name]])
                    change = torch.cat((change.new_zeros(start, site.in_features), change))
                    change = torch.cat((change, change.new_zeros(outputs - stop, site.in_features)))
                weights[names[site.name]] = weights[names[site.name]] + change
                if site.is_head:
                    weights[f"{site.module}.bias"] = weights[f"{site.module}.bias"] + get["b"]
        return of_logits(functional_call(net, weights, (image[None],))[0], target)

    images, targets = data.batch(data.train[client])
    gradients = vmap(grad(objective), in_dims=(None, 0, 0))({tuple(s): t for s, t in tensors.items()}, images, targets)
    return {key: gradient.square().mean(0) for key, gradient in gradients.items() if key[2] in ("A", "B")}


def log_likelihood(logits, target):
    return logits.log_softmax(-1).gather(0, target[None])[0]


def raw_logit(logits, target):
    return logits.gather(0, target[None])[0]


@pytest.mark.parametrize("kind", [SequentialEngine, BatchedEngine])
@pytest.mark.parametrize(("measures", "of_logits"), [("fisher", log_likelihood), ("fisher_logit", raw_logit)])
def test_fisher_scores_are_the_mean_squared_gradients_of_single_samples(kind, measures, of_logits):
    found = measured(kind, replace(PLAN, measure=Measure(measures)))
    for client in (0, 1, 3):
        expected = expected_fisher(client, of_logits)
        assert {tuple(slot) for slot in found[client]} == expected.keys(), "adapters, and no head"
        for slot, value in found[client].items():
            torch.testing.assert_close(value, expected[slot], rtol=1e-5, atol=1e-5 * float(expected[slot].max()))


@pytest.mark.parametrize("measures", ["gradient", "fisher", "fisher_logit"])
def test_both_engines_measure_alike_whatever_clients_train(measures):
    changes = {
        "tensors": low_ranks,
        "trains": lambda client, a: frozenset(s for s in a.tensors if f"blocks.{client % 2}" in s.site),
    }
    plan = replace(PLAN, measure=Measure(measures))
    one, other = measured(SequentialEngine, plan, **changes), measured(BatchedEngine, plan, **changes)
    assert [bool(one[client]) for client in range(CLIENTS)] == [True] * 4 + [False] * 2, "only those that train"
    for client, reference in one.items():
        assert other[client].keys() == reference.keys()
        for slot, value in reference.items():
            torch.testing.assert_close(other[client][slot], value, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", [SequentialEngine, BatchedEngine])
def test_measuring_before_training_is_measuring_alone(kind):
    alone, trained = measured(kind, FISHER), engine(kind).local_update(FISHER, [assignments()])
    for update in trained:
        assert update.measured.keys() == alone[update.client].keys()
        assert all(torch.equal(value, alone[update.client][slot]) for slot, value in update.measured.items())
    plain = {update.client: update for update in engine(kind).local_update(PLAN, [assignments()])}
    for update in trained:
        assert all(torch.equal(t, plain[update.client].tensors[slot]) for slot, t in update.tensors.items())


@pytest.mark.parametrize("kind", [SequentialEngine, BatchedEngine])
def test_a_client_that_trains_no_adapter_measures_nothing(kind):
    heads_only = {"trains": lambda client, a: frozenset(s for s in a.tensors if s.factor in ("W", "b"))}
    assert not any(measured(kind, FISHER, **heads_only).values())


# the proxy client, through a whole run


@dataclass(frozen=True, kw_only=True)
class Scored:
    """FedAvg in which the server scores depths on its own data every other round."""

    lora_rank: int = 2
    lora_alpha: float | None = 6.0
    scaled_factor: str | None = "A"
    head_policy: str = "local"
    measures: str = "fisher"
    tiers = ("adapter",)

    def plan(self, state, population):
        return Plan(
            population=population,
            measure=Measure(self.measures, "proxy") if self.measures and state.round_index % 2 == 0 else None,
            lora_ranks=[1] * population.n_participants,
            allocations=[frozenset({0})] * population.n_participants,
            server_update=self._server_update,
        )

    def _server_update(self, state, plan, updates):
        merged = merge_groups(plan, updates)
        (asked,) = [u for u in updates if u.client == plan.population.proxy] or [None]
        if asked is None:
            return merged
        assert not asked.tensors
        assert not any(update.measured for update in updates if update is not asked)
        scores = {str(slot): [value.sum().item(), *value.shape] for slot, value in asked.measured.items()}
        return Outcome(merged.tensors, log={**merged.log, "n": asked.n_samples, "scores": scores})


def run(tiny_run, name, with_proxy=True, **changes):
    data = fedsim.with_proxy(tiny_data(), torch.tensor([0, 20, 40])) if with_proxy else tiny_data()
    return tiny_run(name, **({"method": Scored(), "data": data, "rounds": 4, "cohort_size": 2} | changes))


def events(result):
    return [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]


def test_the_proxy_measures_when_it_is_asked_at_full_rank_and_every_depth(tiny_run):
    found = {engine: events(run(tiny_run, engine, engine=engine)) for engine in ("sequential", "batched")}
    for event, other in zip(*found.values(), strict=True):
        assert ("scores" in event) == (event["round"] in (1, 3))
        if "scores" in event:
            assert event["n"] == 3
            assert len(event["scores"]) == 8, "A and B of query and value, at both depths"
            for slot, (score, *shape) in event["scores"].items():
                assert shape == ([2, 12] if slot.endswith("/A") else [12, 2])
                assert score == pytest.approx(other["scores"][slot][0], rel=1e-4, abs=1e-12)


def test_squares_of_gradients_are_in_the_units_in_which_the_server_merges(tiny_run):
    """With A folded the server holds 3 A, and so a third of the gradient: a ninth of its square. B is as it was."""
    folded, bare = (
        events(run(tiny_run, str(scaled_factor), method=Scored(scaled_factor=scaled_factor), rounds=1))
        for scaled_factor in ("A", None)
    )
    for slot, (score, *_) in bare[0]["scores"].items():
        times = 9 if slot.endswith("/A") else 1
        assert folded[0]["scores"][slot][0] * times == pytest.approx(score, rel=1e-4, abs=1e-12)


def test_the_proxy_is_in_no_table_costs_no_bytes_and_changes_no_clients_training(tiny_run):
    asked, silent = run(tiny_run, "asked"), run(tiny_run, "silent", method=Scored(measures=None))
    assert asked.digest == silent.digest
    tables = []
    for result in (asked, silent):
        with (result.folder / "clients.csv").open(newline="") as file:
            assert {row["client"] for row in csv.DictReader(file)} == {"0", "1", "2", "3", "4", "5"}
        tables.append((result.folder / "metrics.csv").read_text())
    assert tables[0] == tables[1]


def test_a_method_that_needs_the_servers_data_says_so_where_there_are_none(tiny_run):
    with pytest.raises(ValueError, match=r"server's own data and there are none \(--data.proxy-samples\)"):
        run(tiny_run, "none", with_proxy=False)


def test_ranks_by_client_are_the_same_with_and_without_a_proxy(tiny_run):
    ranks = fedsim.LoraRanks(values=(1, 2, 3, 1, 2, 3), assign="list")
    data = fedsim.with_proxy(tiny_data(), torch.tensor([0]))
    for method in (fedsim.FlexLoRA(ranks=ranks), fedsim.HetLoRA(ranks=ranks), fedsim.ILoRA(ranks=ranks)):
        assert tiny_run(type(method).__name__, method=method, data=data, rounds=1).digest


def test_what_clients_measure_costs_as_much_again_upwards(tiny_run):
    @dataclass(frozen=True, kw_only=True)
    class ByClients(Scored):
        def plan(self, state, population):
            return Plan(
                population=population,
                measure=self.measures and Measure(self.measures),
                trains=lambda slot: slot.factor == "B",
            )

    plain, both = (tiny_run(f"{m}", method=ByClients(measures=m), rounds=1) for m in (None, "fisher"))
    assert both.summary["bytes.up"] == 2 * plain.summary["bytes.up"] > 0
