"""Asynchronous and buffered schedules on simulated devices, and clients that come and go."""

import csv
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import Stopped, TinyAttention, tiny_data

import fedsim
from fedsim.costs.availability import Availability
from fedsim.costs.devices import DeviceProfiles
from fedsim.engines.batched import BatchedEngine
from fedsim.parts.schedule import Schedule
from fedsim.report.page import write_report
from fedsim.run_spec import RunSpec
from fedsim.server.turns import with_schedule
from fedsim.storage.run_folder import load_checkpoint

ALIKE = DeviceProfiles(gflops=1e-6, mbps_down=0.008, mbps_up=0.008)
UNLIKE = replace(ALIKE, gflops_sigma=1.0, mbps_sigma=0.5)
BUFFERED = Schedule(kind="buffered", buffer=2, concurrency=4)


def table(result: fedsim.Result, name: str) -> list[dict[str, str]]:
    with (result.folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", [fedsim.FedIT, fedsim.FedSALoRA, fedsim.FedProx, fedsim.Ditto, fedsim.Local])
def test_equal_devices_and_a_buffer_of_the_cohort_are_rounds_to_the_bit(tiny_run, method):
    for cohort in (None, 3):
        n = cohort or 5
        common = {"method": method(lora_rank=2), "cohort_size": cohort, "devices_profile": ALIKE}
        rounds = tiny_run(f"rounds{n}", **common)
        buffered = tiny_run(f"buffered{n}", **common, schedule=Schedule(kind="buffered", buffer=n, concurrency=n))
        assert buffered.digest == rounds.digest
        for before, after in zip(table(rounds, "metrics.csv"), table(buffered, "metrics.csv"), strict=True):
            assert after.pop("staleness") == "0.0"
            seconds = [float(row.pop("simulated_seconds")) for row in (before, after)]
            assert seconds[0] == pytest.approx(seconds[1])
            assert before == after


class Shift(BatchedEngine):
    """Trains nothing: all that client c trains is 10^−c more than what it received."""

    def local_update(self, plan, blocks):
        received = {a.client: a.tensors for block in blocks for a in block}
        shifted = []
        for update in super().local_update(plan, blocks):
            tensors = {slot: received[update.client][slot] + 10.0**-update.client for slot in update.tensors}
            shifted.append(replace(update, tensors=tensors))
        return shifted


@pytest.mark.parametrize(("kind", "size"), [("buffered", 1), ("buffered", 2), ("buffered", 3), ("async", 1)])
def test_the_server_steps_as_an_event_loop_written_by_hand(tiny_run, monkeypatch, kind, size):
    """All five clients are at work, so who starts when is known; of the run only the seconds of each are used."""
    monkeypatch.setattr("fedsim.engines.batched.BatchedEngine", Shift)
    schedule = Schedule(kind=kind, buffer=size, mixing=0.5, staleness="polynomial:1")
    result = tiny_run(schedule=schedule, devices_profile=UNLIKE, rounds=12)
    costs, steps = table(result, "costs.csv"), table(result, "metrics.csv")
    takes = {client: [float(row["seconds"]) for row in costs if row["client"] == str(client)] for client in range(5)}
    x, versions, staleness = 0.0, [0.0], []
    at_work = {client: (of[0] if of else float("inf"), 0) for client, of in takes.items()}
    for index, step in enumerate(steps):
        arrived = sorted(at_work, key=lambda client: at_work[client])[:size]
        assert sorted(map(str, sorted(arrived))) == [row["client"] for row in costs if row["round"] == step["round"]]
        ages = {client: index - at_work[client][1] for client in arrived}
        moves = [(10.0**-c + (versions[at_work[c][1]] - x) * (kind == "async")) / (1 + age) for c, age in ages.items()]
        x += sum(moves) / size * (0.5 if kind == "async" else 1)
        versions.append(x)
        now = max(at_work[client][0] for client in arrived)
        staleness.append(sum(ages.values()) / size)
        for client in arrived:
            takes[client].pop(0)
            at_work[client] = (now + takes[client][0] if takes[client] else float("inf"), index + 1)
    assert [float(step["staleness"]) for step in steps] == staleness
    assert max(staleness) >= 1
    assert sum(float(step["simulated_seconds"]) for step in steps) == pytest.approx(now)
    _, tensors = load_checkpoint(result.folder)
    held = [rows for name, rows in tensors.items() if name.startswith("bank|") and name.endswith("B|rows")]
    shared = [rows for rows in held if len(rows) == 1]
    assert len(shared) == 4
    torch.testing.assert_close(torch.stack(shared), torch.full_like(torch.stack(shared), x))


@pytest.mark.parametrize(("name", "kept"), [("buffered", 3), ("async", 5)])
def test_a_run_goes_on_with_the_clients_at_work_as_if_it_had_not_stopped(
    tiny_run, tmp_path, stop_after, monkeypatch, name, kept
):
    schedule = BUFFERED if name == "buffered" else Schedule(kind="async", concurrency=4)
    coming = Availability(on_hours=0.2, off_hours=0.02)
    common = {"schedule": schedule, "devices_profile": UNLIKE, "availability": coming, "rounds": 8}
    whole = tiny_run("whole", **common)
    stop_after(kept)
    with pytest.raises(Stopped):
        tiny_run("parts", **common)
    monkeypatch.undo()
    assert len(load_checkpoint(tmp_path / "parts")[1]["schedule|at_work"])
    parts = tiny_run("parts", **common, resume=True)
    assert parts.digest == whole.digest
    for name in ("metrics.csv", "clients.csv", "costs.csv"):
        assert table(parts, name) == table(whole, name)


def test_a_damaged_schedule_in_a_checkpoint_is_refused(tiny_run):
    spec = RunSpec(
        method=fedsim.FedIT(),
        backbone=TinyAttention(),
        data=tiny_data(),
        rounds=3,
        schedule=BUFFERED,
        devices_profile=ALIKE,
    )
    state = spec.state(2, spec.initial_slots())
    row = [0, 1, 0, 5.0, 0, 8, 8, 1, 1.0, 1.0, 1.0]
    good = {"schedule|second": torch.tensor(3.0, dtype=torch.float64), "schedule|at_work": torch.tensor([row]).double()}
    assert with_schedule(state, good).at_work[0].ends == 5
    for place, value in ((0, 9), (1, 2), (2, 17), (3, float("nan"))):
        bad = good["schedule|at_work"].clone()
        bad[0, place] = value
        with pytest.raises(ValueError, match=r"(nothing|none) that a run writes"):
            with_schedule(state, good | {"schedule|at_work": bad})
    with pytest.raises(ValueError, match="simulated time"):
        with_schedule(state, {"schedule|second": good["schedule|second"]})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"devices_profile": DeviceProfiles()}, "--schedule is buffered, which needs simulated devices"),
        ({"devices_profile": replace(ALIKE, deadline=3.0)}, "a deadline belongs to rounds"),
        ({"schedule": replace(BUFFERED, concurrency=6)}, "--schedule.concurrency is 6; 5 clients take part"),
        ({"schedule": replace(BUFFERED, buffer=7)}, "--schedule.buffer is 7; 5 clients take part"),
        ({"method": fedsim.HiLoRA()}, "HiLoRA plans by"),
        ({"method": fedsim.RoLoRA()}, "RoLoRA plans by the round"),
        ({"method": fedsim.FlexLoRA()}, "FlexLoRA merges products of factors"),
        ({"method": fedsim.SCAFFOLD()}, "SCAFFOLD"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tiny_run, tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        tiny_run(**{"schedule": BUFFERED, "devices_profile": ALIKE} | changes)
    assert not (tmp_path / "run").exists()


def test_rounds_wait_until_somebody_is_there_and_drop_who_goes_away(tiny_run, tmp_path):
    """Clients 0 and 1 stay; 2 goes away after a second of its first round; 3 and 4 come in the next day."""
    entry = {"active": [0], "inactive": [86400], "finish_time": 172800}
    behaviour = {str(client): entry for client in (0, 1)}
    behaviour |= {"2": entry | {"inactive": [1]}}
    behaviour |= {str(client): {"active": [86400], "inactive": [172800], "finish_time": 172800} for client in (3, 4, 5)}
    path = tmp_path / "behaviour.json"
    path.write_text(json.dumps(behaviour))
    result = tiny_run(availability=Availability(table=path), devices_profile=ALIKE)
    costs = table(result, "costs.csv")
    assert [row["client"] for row in costs if row["round"] == "1"] == ["0", "1", "2"]
    assert [row["client"] for row in costs if row["round"] == "2"] == ["0", "1"]
    assert [row["dropped"] for row in costs if row["round"] == "1"] == ["0", "0", "1"]
    path.write_text(json.dumps({"all": {"active": [50], "inactive": [100], "finish_time": 1000}}))
    waiting = tiny_run("waiting", availability=Availability(table=path), devices_profile=replace(ALIKE, gflops=1.0))
    seconds = [float(row["simulated_seconds"]) for row in table(waiting, "metrics.csv")]
    assert seconds[0] > 50
    assert seconds[1] < 50


def test_a_round_in_which_everyone_goes_away_changes_nothing(tiny_run, tmp_path):
    path = tmp_path / "behaviour.csv"
    path.write_text("client,active,inactive,finish_time\n0,0,1,1000\n")
    result = tiny_run(availability=Availability(table=path), devices_profile=ALIKE, rounds=2)
    assert {row["dropped"] for row in table(result, "costs.csv")} == {"1"}
    _, tensors = load_checkpoint(result.folder)
    assert not [name for name in tensors if name.startswith("bank|")]
    assert len({row["global.mean"] for row in table(result, "metrics.csv")}) == 1


def test_the_report_shows_schedules_over_simulated_time_and_how_often_clients_took_part(tiny_run, tmp_path):
    common = {"devices_profile": UNLIKE, "rounds": 4}
    rounds, buffered = tiny_run("rounds", **common), tiny_run("buffered", **common, schedule=BUFFERED)
    page = write_report([rounds.folder, buffered.folder], tmp_path / "page.html").read_text()
    taken = Counter(row["client"] for row in table(buffered, "costs.csv"))
    counts = [taken[str(client)] for client in range(5)]
    assert 'id="several-time-' in page
    assert 'id="buffered-participation-' in page
    assert f"updates taken of each of 5 seen clients: {min(counts)} to {max(counts)}" in page
    assert 'id="rounds-participation-' not in page, "all took part in all"
