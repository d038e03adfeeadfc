"""A whole run on a tiny federation: what is written, what travels, what stays the same."""

import csv
import dataclasses
import json

import pytest
import torch
from conftest import TinyAttention, tiny_data

import fedsim
from fedsim.distributed.messages import pack_updates
from fedsim.distributed.workers import Workers
from fedsim.engines.sequential import SequentialEngine
from fedsim.server import aggregator
from fedsim.storage.run_folder import load_checkpoint
from fedsim.storage.wire import pack


def rows(folder, table):
    with (folder / table).open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_run_folder_holds_what_the_readme_says(tiny_run):
    result = tiny_run(method=fedsim.HiLoRA(lora_rank=2), rounds=4)
    names = {path.name for path in result.folder.iterdir()}
    assert {
        "recipe.json",
        "metrics.csv",
        "clients.csv",
        "timing.csv",
        "events.jsonl",
        "checkpoints",
        "result.json",
    } <= names
    assert list((result.folder / "tensorboard").glob("events.out.tfevents.*"))
    recorded = json.loads((result.folder / "result.json").read_text())
    assert recorded["digest"] == result.digest
    wanted = ("personal.mean", "personal.p10", "personal.worst", "personal.std", "global.mean", "seconds")
    assert all(isinstance(recorded[key], float) for key in wanted)
    assert all(0 <= recorded[key] <= 1 for key in ("unseen.untuned.mean", "unseen.tuned.mean"))
    assert json.loads((result.folder / "recipe.json").read_text())["environment"]["versions"]["torch"]
    assert [row["round"] for row in rows(result.folder, "metrics.csv")] == ["1", "2", "3", "4"]
    evaluations = {(row["evaluation"], row["client"]) for row in rows(result.folder, "clients.csv")}
    assert {
        ("global", "0"),
        ("personal", "4"),
        ("unseen.untuned", "5"),
        ("unseen.tuned", "5"),
    } <= evaluations


def test_the_last_two_checkpoints_can_be_had(tiny_run):
    folder, whole = tiny_run(rounds=4).folder, tiny_run("other", rounds=3)
    assert load_checkpoint(folder)[0] == 4
    for kind in ("json", "safetensors"):
        (folder / "checkpoints" / f"round-000004.{kind}").unlink()
    round_index, tensors = load_checkpoint(folder)
    assert round_index == 3
    held = load_checkpoint(whole.folder)[1]
    assert all(torch.equal(tensors[name], held[name]) for name in held if name.startswith("bank|"))


def test_two_runs_with_one_seed_are_the_same_and_another_seed_is_not(tiny_run):
    first, again, other = tiny_run("a"), tiny_run("b"), tiny_run("c", seed=1)
    assert first.digest == again.digest != other.digest
    for table in ("metrics.csv", "clients.csv"):
        assert (first.folder / table).read_bytes() == (again.folder / table).read_bytes()


def test_summary_is_the_mean_over_the_rows_of_the_last_round(tiny_run):
    result = tiny_run()
    last = [r for r in rows(result.folder, "clients.csv") if r["round"] == "3" and r["evaluation"] == "global"]
    assert len(last) == 5
    assert result.summary["global.mean"] == pytest.approx(sum(float(r["accuracy"]) for r in last) / 5)
    assert result.summary["global.worst"] == min(float(r["accuracy"]) for r in last)


def test_bytes_are_counted_from_the_slots_that_travel(tiny_run):
    # 2 blocks x (q, v) x (A 2x12 + B 12x2) = 192 numbers; head W 3x12 + b 3 = 39; 5 clients, 3 rounds, 4 bytes
    result = tiny_run()
    assert result.summary["bytes.up"] == 5 * 3 * 231 * 4
    assert result.summary["bytes.down"] == 5 * 2 * 231 * 4  # the first round starts from the seed
    assert tiny_run("local", method=fedsim.Local(lora_rank=2)).summary["bytes.up"] == 0
    frozen = tiny_run("frozen", method=fedsim.FedIT(lora_rank=2, head_policy="frozen"))
    assert frozen.summary["bytes.up"] == 5 * 3 * 192 * 4


def test_hilora_sends_each_finished_tier_once(tiny_run):
    method = fedsim.HiLoRA(lora_rank=2, root_share=0.34, cluster_share=0.33, tolerance=0.0)
    result = tiny_run(method=method, rounds=6)
    table = rows(result.folder, "metrics.csv")
    assert [row["stage"] for row in table] == ["root"] * 2 + ["cluster"] * 2 + ["leaf"] * 2
    down = [int(row["bytes.down"]) for row in table]
    tier = 5 * 231 * 4
    assert down == [0, tier, tier, tier, tier, 0]
    assert [int(row["bytes.up"]) for row in table] == [tier] * 4 + [0, 0]


def test_a_round_has_two_exchanges_and_what_travels_grows_with_the_cohort_only(tiny_run, monkeypatch):
    sizes: list[tuple[str, int]] = []
    scatter, collect = Workers.scatter_tensors, aggregator.Aggregator.collect

    def counted_scatter(self, of_worker):
        sizes.extend(("scatter", len(pack(tensors))) for tensors in of_worker)
        return scatter(self, of_worker)

    def counted_collect(self, plan, updates):
        sizes.append(("collect", len(pack_updates(updates))))
        return collect(self, plan, updates)

    monkeypatch.setattr(Workers, "scatter_tensors", counted_scatter)
    monkeypatch.setattr(aggregator.Aggregator, "collect", counted_collect)
    common = {"method": fedsim.Local(lora_rank=2), "rounds": 4, "cohort_size": 2, "evaluate_every": 9}
    tiny_run("small", data=tiny_data(unseen=()), **common)
    small = sizes[:8]
    sizes.clear()
    tiny_run("large", data=tiny_data(n_clients=60, unseen=()), **common)
    large = sizes[:8]
    assert [name for name, _ in small] == ["scatter", "collect"] * 4
    assert [name for name, _ in large] == ["scatter", "collect"] * 4
    assert max(size for _, size in large) <= max(size for _, size in small) + 64


def test_partial_participation_trains_the_sampled_clients_only(tiny_run):
    result = tiny_run(cohort_size=2, rounds=5)
    table = rows(result.folder, "clients.csv")
    for number in range(1, 6):
        trained = {r["client"] for r in table if r["round"] == str(number) and r["evaluation"] == "personal"}
        assert len(trained) == 2
    assert len({r["client"] for r in table if r["evaluation"] == "personal"}) > 2


def test_hilora_places_clients_that_missed_the_root_stage(tiny_run):
    method = fedsim.HiLoRA(lora_rank=2, root_share=0.3, cluster_share=0.5, tolerance=0.0)
    result = tiny_run(method=method, rounds=10, cohort_size=3, data=tiny_data(n_clients=12, unseen=(11,)))
    events = [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]
    clustered = next(event for event in events if "labels" in event)
    assert len(clustered["clients"]) < 11
    assert result.summary["clusters.count"] >= 1


def test_a_user_may_simulate_twice_with_one_backbone(tiny_run):
    backbone = TinyAttention()
    first = tiny_run("first", backbone=backbone)
    assert tiny_run("second", backbone=backbone).digest == first.digest


@pytest.mark.parametrize("policy", ["frozen", "global", "tier", "local"])
@pytest.mark.parametrize("method", [fedsim.FedIT, fedsim.Local, fedsim.HiLoRA])
def test_every_method_runs_under_every_head_policy(tiny_run, method, policy):
    result = tiny_run(method=method(lora_rank=2, head_policy=policy), rounds=4)
    assert result.summary["rounds"] == 4
    assert torch.isfinite(torch.tensor(result.summary["unseen.tuned.mean"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cohort_size": 6}, r"cohort_size is 6; it must lie in 1 … 5.*--cohort-size"),
        ({"rounds": 0}, "rounds is 0"),
        ({"method": fedsim.FedIT(lora_rank=0)}, r"lora_rank is 0; it must be 1 or more.*--method.lora-rank"),
        ({"method": fedsim.FedIT(lora_rank=99)}, "lora_rank 99 exceeds the width 12"),
        ({"backbone": TinyAttention(n_classes=7)}, "classifier has 7 outputs and the data have 3 classes"),
        ({"sites": "nothing"}, "matches none of the backbone's linear maps, whose names are"),
        ({"sites": "("}, "is no regular expression"),
        ({"head": "tail"}, "no linear map at its classifier's path 'tail'"),
    ],
)
def test_bad_input_is_one_clear_message_and_writes_nothing(tiny_run, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_run("bad", **changes)
    assert not (tmp_path / "bad").exists()


def test_an_existing_run_is_never_overwritten(tiny_run):
    first = tiny_run("run")
    before = (first.folder / "metrics.csv").read_bytes()
    with pytest.raises(ValueError, match="already holds a run"):
        tiny_run("run")
    assert (first.folder / "metrics.csv").read_bytes() == before


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnequalRanks:
    """A method of one's own: FedAvg in which clients have LoRA ranks 1, 2 and 3, merged by zero-padding."""

    lora_rank: int = 3
    lora_alpha: float | None = 3.0
    head_policy: str = "frozen"
    tiers = ("adapter",)

    def plan(self, state, population):
        return fedsim.Plan(population=population, lora_ranks=[1 + client % 3 for client in range(population.n_clients)])


def test_clients_may_have_unequal_lora_ranks(tiny_run, monkeypatch):
    seen = {}
    real = SequentialEngine._train

    def train(self, plan, assignment):
        update = real(self, plan, assignment)
        (site,) = {slot.site for slot in update.tensors if slot.site.startswith("blocks.0.q")}
        shapes = {slot.factor: tuple(t.shape) for slot, t in update.tensors.items() if slot.site == site}
        seen[assignment.client] = (shapes, assignment.scales["adapter"])
        return update

    monkeypatch.setattr(SequentialEngine, "_train", train)
    result = tiny_run(method=UnequalRanks(), engine="sequential")
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]
    for client, (shapes, scale) in seen.items():
        rank = 1 + client % 3
        assert shapes == {"A": (rank, 12), "B": (12, rank)}
        assert scale == pytest.approx(3.0 / rank)
    ranks = [1 + client % 3 for client in range(5)]
    assert result.summary["bytes.up"] == 3 * sum(ranks) * 4 * 24 * 4  # rounds, ranks, sites, I + O, bytes
