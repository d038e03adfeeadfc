"""Clients whose numbers are no longer finite: the run stops and names them, or sets their updates aside."""

import json
import math

import pytest
import torch
from conftest import TinyAttention, tiny_data
from runs import called_by_script, fabric, run

import fedsim
from fedsim.adapters.layout import Slot
from fedsim.data.task import Classification
from fedsim.parts.fisher import FisherAllocation
from fedsim.parts.tree import TreeCuts
from fedsim.round import ClientError, ClientUpdate
from fedsim.run_spec import population_of
from fedsim.server import turns
from fedsim.server.cohort import sample_cohort
from fedsim.server.divergence import diverged, merge_second_pass
from fedsim.storage.run_folder import RunFolder, load_checkpoint, read_recipe

SICK = 2
ENGINES = ("batched", "sequential")


def sick_data(*sick: int, n_clients: int = 6, unseen: tuple[int, ...] = (5,)) -> fedsim.FederatedData:
    """The tiny federation, in which one input of these clients is infinite."""
    data = tiny_data(n_clients, unseen=unseen)
    for client in sick:
        data.inputs[data.train[client][0]] = torch.inf
    return data


def first_round_of_the_sick(rounds: int = 8) -> int:
    population = population_of(tiny_data())
    return next(r for r in range(rounds) if SICK in sample_cohort(population, 2, 0, r))


def rows(result, table="metrics.csv"):
    return RunFolder(result.folder).read_table(table)


@pytest.mark.parametrize("engine", ENGINES)
def test_by_default_the_run_stops_and_names_client_round_and_stage(tiny_run, tmp_path, engine):
    at = first_round_of_the_sick()
    assert at > 0, "there must be finished rounds to keep"
    common = {"data": sick_data(SICK), "engine": engine, "cohort_size": 2, "rounds": 8}
    message = rf"client {SICK} failed in round {at + 1}, stage 'train': its training loss is nan.*--on-nan skip"
    with pytest.raises(ClientError, match=message):
        tiny_run("stopped", **common)
    assert load_checkpoint(tmp_path / "stopped")[0] == at, "the round before is kept"
    assert len(RunFolder(tmp_path / "stopped").read_table("metrics.csv")) == at
    whole = tiny_run("whole", on_nan="skip", **common)
    resumed = tiny_run("stopped", on_nan="skip", resume=True, **common)
    assert resumed.digest == whole.digest
    assert (resumed.folder / "clients.csv").read_bytes() == (whole.folder / "clients.csv").read_bytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_too_large_a_learning_rate_is_such_a_failure(tiny_run, engine):
    local = fedsim.LocalTraining(batch_size=4, learning_rate=1e30, epochs=3)
    with pytest.raises(ClientError, match=r"client 0 failed in round 1, .* So did 4 more clients: 1, 2, 3, 4"):
        tiny_run(local=local, engine=engine)


CAPABLE = fedsim.Capabilities(values=(1, 2))
METHODS = {
    "fedit": fedsim.FedIT(lora_rank=2),
    "local": fedsim.Local(lora_rank=2),
    "hilora": fedsim.HiLoRA(lora_rank=2),
    "fedtreelora": fedsim.FedTreeLoRA(lora_rank=2, warmup_rounds=1, tree=TreeCuts(tau=-1.0)),
    "ilora": fedsim.ILoRA(ranks=fedsim.LoraRanks(values=(1, 2))),
    "flora": fedsim.FLoRA(ranks=fedsim.LoraRanks(values=(1, 2))),
    "hetlora": fedsim.HetLoRA(ranks=fedsim.LoraRanks(values=(1, 2))),
    "straggler": fedsim.Straggler(lora_rank=2, capabilities=CAPABLE),
    "clustered_fedavg": fedsim.ClusteredFedAvg(lora_rank=2, n_clusters=2),
    "feddpa": fedsim.FedDPA(lora_rank=2, variant="T"),
    "fedalt": fedsim.FedALT(lora_rank=2),
    "fedlease": fedsim.FedLEASE(lora_rank=2, warmup_rounds=1),
    "fdlora": fedsim.FDLoRA(lora_rank=2, personal_share=0.3, fusion_share=0.3, sync_period=1),
}


QUICK = "hilora"


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [QUICK, *map(slow, sorted(METHODS.keys() - {QUICK}))])
def test_setting_an_update_aside_is_as_if_its_client_had_not_been_sampled(tiny_run, monkeypatch, name):
    """In the sequential engine to the bit: copies, private tiers, control variates, clusters, ranks."""
    common = {"method": METHODS[name], "engine": "sequential", "rounds": 4, "on_nan": "skip"}
    aside = tiny_run("aside", data=sick_data(SICK), **common)
    real = turns.sample_cohort
    monkeypatch.setattr(turns, "sample_cohort", lambda *a, **more: [c for c in real(*a, **more) if c != SICK])
    without = tiny_run("without", data=sick_data(SICK), **common)
    assert aside.digest == without.digest
    assert [(row["clients"], row["diverged_clients"]) for row in rows(aside)] == [("5", "1")] * 4
    assert [row["diverged_clients"] for row in rows(without)] == ["0"] * 4
    assert [row["train_loss"] for row in rows(aside)] == [row["train_loss"] for row in rows(without)]
    events = RunFolder(aside.folder).read_events()
    assert [event["diverged_clients"] for event in events if "diverged_clients" in event and event["round"] < 5] == [
        [SICK]
    ] * 4


def test_what_a_client_set_aside_was_measured_at_is_shown(tiny_run):
    result = tiny_run(data=sick_data(SICK), on_nan="skip")
    table = [row for row in rows(result, "clients.csv") if row["round"] == "3"]
    trained = {row["client"]: row for row in table if row["evaluation"] == "personal"}
    assert math.isnan(float(trained[str(SICK)]["loss"]))
    assert float(trained[str(SICK)]["accuracy"]) == 0, "answers that are no numbers are wrong"
    held = {row["client"]: row for row in table if row["evaluation"] == "global"}
    assert all(math.isfinite(float(row["loss"])) for row in held.values()), "all hold what the sound ones made"
    assert all(math.isfinite(float(row["train_loss"])) for row in rows(result))


@pytest.mark.parametrize(
    ("name", "engine"),
    [*((QUICK, engine) for engine in ENGINES), *(slow(name, ENGINES[0]) for name in sorted(METHODS.keys() - {QUICK}))],
)
def test_a_round_whose_updates_are_all_set_aside_leaves_the_state_as_it_was(tiny_run, name, engine):
    common = {"method": METHODS[name], "engine": engine, "data": sick_data(0, 1, 2, 3, 4), "rounds": 4}
    result = tiny_run(on_nan="skip", **common)
    assert [row["diverged_clients"] for row in rows(result)] == ["5"] * 4
    assert [row["train_loss"] for row in rows(result)] == ["nan"] * 4
    _, tensors = load_checkpoint(result.folder)
    assert {name for name in tensors if not name.startswith("holders|")} == {"last_seen", "block_size", "horizon"}
    assert tensors["last_seen"].tolist() == [-1] * 6


def test_a_sick_newcomer_stops_the_run_or_is_counted(tiny_run, tmp_path):
    common = {"method": METHODS["hilora"], "data": sick_data(4, 5, unseen=(4, 5)), "rounds": 4}
    with pytest.raises(ClientError, match=r"client 4 failed in round 5, stage 'probe'.*So did 1 more client: 5"):
        tiny_run("stopped", **common)
    assert load_checkpoint(tmp_path / "stopped")[0] == 4, "no finished round is lost"
    result = tiny_run("stopped", resume=True, on_nan="skip", **common)
    assert read_recipe(result.folder)["on_nan"] == "skip", "so that the next --resume goes on like this one"
    (met,) = [event for event in RunFolder(result.folder).read_events() if event["stage"] == "unseen"]
    assert met["diverged_clients"] == [4, 5]
    assert met["routed"] == {}, "nobody is placed by numbers that are not finite"
    tuned = [row for row in rows(result, "clients.csv") if row["evaluation"] == "unseen.tuned"]
    assert [float(row["accuracy"]) for row in tuned] == [0, 0]


def test_a_sick_proxy_does_not_score_layers(tiny_run):
    data = fedsim.with_proxy(sick_data(0), tiny_data().train[0])  # the sick rows are now the server's
    method = fedsim.FedHeLLo(lora_rank=2, capabilities=CAPABLE, fim=FisherAllocation(warmup_rounds=1, period=1))
    with pytest.raises(ClientError, match=rf"client {data.proxy} failed in round \d, .*what it measured is not finite"):
        tiny_run("stopped", method=method, data=data)
    result = tiny_run("aside", method=method, data=data, on_nan="skip")
    told = [event for event in RunFolder(result.folder).read_events() if "diverged_clients" in event]
    assert told
    assert all(event["diverged_clients"] == [data.proxy] for event in told)
    assert all("fisher_scores" not in event for event in told)


def test_a_second_training_in_the_round_counts_too():
    sound = ClientUpdate(0, 1, {Slot("a", "s", "A"): torch.ones(1)}, {"train_loss": 1.0})
    lost = ClientUpdate(0, 1, {Slot("b", "s", "A"): torch.ones(1)}, {"train_loss": math.inf})
    assert not diverged([merge_second_pass(sound, sound)])
    assert "its training loss is inf" in diverged([merge_second_pass(sound, lost)])[0]
    assert "its training loss is inf" in diverged([merge_second_pass(lost, sound)])[0]


def test_a_value_in_the_update_counts_even_where_the_loss_is_a_number():
    slot = Slot("a", "s", "A")
    update = ClientUpdate(3, 1, {slot: torch.tensor([1.0, torch.nan])}, {"train_loss": 1.0})
    assert diverged([update]) == {3: f"its '{slot}' is not finite"}


def test_an_answer_that_is_no_number_is_wrong():
    logits = torch.tensor([[torch.nan, torch.nan], [torch.inf, 0.0], [1.0, 0.0]])
    scores = Classification().score(lambda inputs: logits, logits, torch.tensor([0, 0, 0]))
    assert scores[:, 0].tolist() == [0, 0, 1]


def test_a_policy_that_is_not_known_is_refused(tiny_run):
    with pytest.raises(ValueError, match=r"on_nan is 'ignore'; it must be stop or skip \(--on-nan\)"):
        tiny_run(on_nan="ignore")


@pytest.mark.slow
def test_setting_aside_does_not_depend_on_the_number_of_workers(tmp_path):
    done = run(fabric(2, called_by_script(set_two_aside, tmp_path / "script.py"), tmp_path / "two"))
    assert done.returncode == 0, done.stdout + done.stderr
    one = set_two_aside(tmp_path / "one")
    assert json.loads((tmp_path / "two" / "result.json").read_text())["digest"] == one.digest
    assert (tmp_path / "two" / "clients.csv").read_bytes() == (tmp_path / "one" / "clients.csv").read_bytes()


def set_two_aside(out):
    return fedsim.simulate(
        method=METHODS["hilora"],
        backbone=TinyAttention(),
        data=sick_data(1, 6, n_clients=9, unseen=(8,)),
        rounds=4,
        cohort_size=5,
        block_size=2,
        threads=1,
        on_nan="skip",
        out=out,
    )
