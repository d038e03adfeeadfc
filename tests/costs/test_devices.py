"""Bytes, steps and simulated time of every client, by hand arithmetic, and what a deadline does."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TinyAttention, tiny_data
from engines.test_engines_agree import METHODS

import fedsim
from fedsim.costs.accounting import account_round
from fedsim.costs.devices import ClientCost, Clock, DeviceProfiles, Seconds, read_table
from fedsim.costs.step_cost import Piece, Profile
from fedsim.experiments.dry_run import estimate
from fedsim.round import Outcome
from fedsim.run_spec import RunSpec
from fedsim.server import turns

LOCAL = fedsim.LocalTraining(batch_size=4, learning_rate=1e-2)
SLOW = DeviceProfiles(gflops=1e-6, mbps_down=0.008, mbps_up=0.004)
"""1000 FLOP, 1000 bytes down and 500 bytes up a second."""
ADAPTERS, HEAD = 2 * 2 * (2 * 12 + 12 * 2), 3 * 12 + 3
"""Numbers of a client's adapters of LoRA rank 2 at q and v of two blocks, and of its head."""


def table(result: fedsim.Result, name: str) -> list[dict[str, str]]:
    with (result.folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def uneven() -> fedsim.FederatedData:
    """Clients 0 to 4 with 4, 8, 12, 16 and 20 samples."""
    data = tiny_data(5, 20, unseen=())
    return replace(data, train=[rows[: 4 * (client + 1)] for client, rows in enumerate(whole_rows(data))])


def whole_rows(data: fedsim.FederatedData) -> list[torch.Tensor]:
    return [torch.arange(20) + 20 * client for client in range(data.n_clients)]


def flops_of_a_sample(depths: int, blocks: int = 2) -> int:
    """Of TinyAttention(12) with adapters of rank 2, its last `depths` blocks and the head in training."""
    frozen, one = blocks * 2 * 2 * 12 * 12 + 2 * 12 * 3, 2 * 2 * (12 + 12)
    forward = frozen + blocks * 2 * one + 2 * 12 * 3
    return forward + backward_of_a_sample(depths, one)


def backward_of_a_sample(depths: int, one: int) -> int:
    """Through the head (its change too), then the trained blocks; inputs of the lowest one need no gradient."""
    head = 2 * 12 * 3 * 2 + 2 * 12 * 3
    passed = (depths - 1) * (2 * 2 * 12 * 12 + 2 * 2 * one)
    return head + passed + 2 * 2 * 2 * (12 + 12 + 12)


def test_every_client_has_a_row_a_round_and_the_rows_sum_up_to_the_rounds(tiny_run):
    result = tiny_run(data=uneven(), cohort_size=3)
    rows = table(result, "costs.csv")
    assert list(rows[0]) == ["round", "client", "bytes_down", "bytes_up", "local_steps"]
    assert {row["bytes_up"] for row in rows} == {str(4 * (ADAPTERS + HEAD))}
    assert all(int(row["local_steps"]) == int(row["client"]) + 1 for row in rows)
    for round_row in table(result, "metrics.csv"):
        of_round = [row for row in rows if row["round"] == round_row["round"]]
        assert len(of_round) == 3
        for way in ("up", "down"):
            assert sum(int(row[f"bytes_{way}"]) for row in of_round) == int(round_row[f"bytes.{way}"])
        assert "simulated_seconds" not in round_row


def test_a_clients_bytes_are_those_of_its_own_lora_rank_and_layers(tiny_run):
    ranks = tiny_run("ranks", method=fedsim.FlexLoRA(ranks=fedsim.LoraRanks(values=(1, 3), assign="cycle")), rounds=1)
    sent = [int(row["bytes_up"]) for row in table(ranks, "costs.csv")]
    assert sent == [4 * (ADAPTERS // 2 * (1, 3)[client % 2] + HEAD) for client in range(5)]
    some = fedsim.Exclusive(lora_rank=2, capabilities=fedsim.Capabilities(values=(1, 2), assign="cycle"))
    rows = table(tiny_run("layers", method=some, rounds=1), "costs.csv")
    assert [row["bytes_up"] == "0" for row in rows] == [True, False, True, False, True]
    assert [row["local_steps"] == "0" for row in rows] == [True, False, True, False, True]


def test_a_classifier_that_is_forgotten_is_not_sent(tiny_run):
    some = fedsim.Capabilities(values=(1, 2), assign="cycle")
    method = fedsim.FedHeLLo(lora_rank=2, capabilities=some, strategy="gd", head_policy="local", forget_heads=True)
    rows = table(tiny_run(method=method), "costs.csv")
    assert {row["bytes_up"] for row in rows} == {str(4 * ADAPTERS // 2), str(4 * ADAPTERS)}


def test_who_missed_a_round_is_sent_all_that_was_added_until_then(tiny_run, monkeypatch):
    cohorts = [[0, 1], [0, 2]]
    monkeypatch.setattr(turns, "sample_cohort", lambda population, size, seed, index, **rest: cohorts[index])
    method = fedsim.FLoRA(ranks=fedsim.LoraRanks(values=(2,)))
    rows = table(tiny_run(method=method, rounds=2, cohort_size=2), "costs.csv")
    stack, fresh = 2 * 4 * ADAPTERS, 4 * (ADAPTERS + HEAD)
    assert [int(row["bytes_down"]) for row in rows] == [stack, stack, fresh + stack, fresh + stack + stack]


def test_bytes_and_flops_become_seconds(tiny_run):
    result = tiny_run(data=uneven(), local=LOCAL, devices_profile=SLOW, rounds=2)
    rows, whole = table(result, "costs.csv"), 4 * (ADAPTERS + HEAD)
    for row in rows:
        down = whole / 1000 if row["round"] == "2" else 0
        compute, up = 4 * (int(row["client"]) + 1) * flops_of_a_sample(2) / 1000, whole / 500
        found = [float(row[f"seconds_{part}"]) for part in ("down", "compute", "up")]
        assert found == pytest.approx([down, compute, up])
        assert float(row["seconds"]) == pytest.approx(down + compute + up)
        assert row["dropped"] == "0"
    slowest = [max(float(row["seconds"]) for row in rows if row["round"] == index) for index in "12"]
    assert [float(row["simulated_seconds"]) for row in table(result, "metrics.csv")] == slowest
    assert result.summary["simulated_seconds"] == pytest.approx(sum(slowest))
    assert result.summary["dropped"] == 0


def test_a_client_that_trains_fewer_layers_is_faster(tiny_run):
    method = fedsim.DepthFedIT(lora_rank=2, capabilities=fedsim.Capabilities(values=(1, 2), assign="cycle"))
    rows = table(tiny_run(method=method, local=LOCAL, rounds=1, devices_profile=SLOW), "costs.csv")
    expected = [12 * flops_of_a_sample(1 + client % 2) / 1000 for client in range(5)]
    assert [float(row["seconds_compute"]) for row in rows] == pytest.approx(expected)


def test_devices_are_log_normal_and_a_function_of_seed_and_client():
    profile = Profile((), {0: Piece(100, 0, 0)}, {}, {}, 0, 0)
    uneven = DeviceProfiles(gflops=2, gflops_sigma=0.5, mbps_down=8, mbps_up=4, mbps_sigma=1.0)
    clock = uneven.clock(profile, seed=3)
    devices = [clock.device(client) for client in range(2000)]
    assert devices[7] == uneven.clock(profile, seed=3).device(7) != uneven.clock(profile, seed=4).device(7)
    for values, median, sigma in (([d.flops for d in devices], 2e9, 0.5), ([d.down for d in devices], 1e6, 1.0)):
        logs = torch.tensor(values, dtype=torch.double).log()
        assert logs.median().exp().item() == pytest.approx(median, rel=0.08)
        assert logs.std().item() == pytest.approx(sigma, rel=0.05)
    assert all(d.up == pytest.approx(d.down / 2) for d in devices)
    alike = {replace(uneven, gflops_sigma=None, mbps_sigma=None).clock(profile, 0).device(c) for c in range(9)}
    assert alike == {(2e9, 1e6, 5e5)}


def test_a_table_in_fedscales_format_gives_devices_in_its_order(tmp_path):
    (tmp_path / "t.csv").write_text("id,computation,communication\n1,50,8000\n2,25,80\n")
    entries = {"1": {"computation": 50, "communication": 8000.0}, "2": {"computation": 25, "communication": 80}}
    (tmp_path / "t.json").write_text(json.dumps(entries))
    profile = Profile((), {0: Piece(900, 0, 0)}, {}, {}, 100, 0)
    for name in ("t.csv", "t.json"):
        clock = DeviceProfiles(table=tmp_path / name).clock(profile, 0)
        assert clock.device(0) == (1000 / 0.05, 1e6, 1e6)
        assert clock.device(1) == clock.device(3) == (1000 / 0.025, 1e4, 1e4)


WRONG = {
    "t.pkl": (b"\x80\x04}.", "no .csv or .json .* Pickles are not loaded"),
    "t.csv": (b"a,b\n1,2\n", "device 1, has computation None, communication None; both must be positive"),
    "u.csv": (b"computation,communication\n10,20\n-1,20\n", "device 2, has computation '-1'"),
    "v.csv": (b"computation,communication\n", "holds no device"),
    "t.json": (b"{", "cannot be read"),
    "u.json": (b'{"1": 3}', "device 1, has computation None"),
    "missing.csv": (None, "cannot be read: .*No such file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_table_that_cannot_be_used_is_one_message_before_anything_is_written(tiny_run, tmp_path, name):
    content, message = WRONG[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        tiny_run(devices_profile=DeviceProfiles(table=tmp_path / name))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gflops": 1.0}, "gflops needs devices; give mbps_down, mbps_up too, or a table"),
        ({"deadline": 3.0}, "deadline needs devices; give gflops, mbps_down, mbps_up too, or a table"),
        ({"mbps_sigma": 1.0}, "mbps_sigma needs devices"),
        ({"gflops": 0.0, "mbps_down": 1.0, "mbps_up": 1.0}, "gflops is 0.0; it must be positive"),
        ({"gflops": 1.0, "mbps_down": 1.0, "mbps_up": 1.0, "gflops_sigma": -1.0}, "gflops_sigma is -1.0; .* 0 or more"),
        ({"table": Path("t.csv"), "gflops": 1.0}, "table and gflops are given; .* table or from medians"),
        ({"table": Path("t.csv"), "deadline": float("nan")}, r"deadline is nan; .* \(--devices-profile"),
    ],
)
def test_a_profile_that_says_too_little_or_too_much_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DeviceProfiles(**options)


# deadlines


def cost(client: int, *seconds: float, steps: int = 1, bytes_up: int = 10) -> ClientCost:
    return ClientCost(client, 100, bytes_up, steps, Seconds(*seconds))


def clock(deadline: float | None) -> Clock:
    profile = Profile((), {0: Piece(100, 0, 0)}, {}, {}, 0, 0)
    return replace(SLOW, deadline=deadline).clock(profile, 0)


def test_a_round_waits_for_the_slowest_or_until_the_deadline():
    costs = [cost(0, 1, 1, 1), cost(1, 2, 2, 1), cost(2, 4, 0, 2)]
    assert clock(None).round_seconds(clock(None).on_time(costs)) == 6
    assert clock(6.0).round_seconds(clock(6.0).on_time(costs)) == 6
    assert not any(c.is_dropped for c in clock(6.0).on_time(costs)), "who is ready at the deadline is in time"
    found = clock(5.5).on_time(costs)
    assert [c.is_dropped for c in found] == [False, False, True]
    assert [c.bytes_up for c in found] == [10, 10, 0]
    assert clock(5.5).round_seconds(found) == 5.5
    sent = Outcome(stack_bytes=2000)  # to all in time, at the end: 2 s
    rows, log = account_round(found, sent, clock(5.5))
    assert log == {"bytes.up": 20, "bytes.down": 3 * 100 + 2 * 2000, "simulated_seconds": 7.5, "dropped": 1}
    assert [row.bytes_down for row in rows] == [2100, 2100, 100]
    assert [row.seconds.down for row in rows] == [3, 4, 4]


def test_a_round_in_which_nobody_who_trains_is_in_time_waits_for_the_fastest_of_them():
    idle, fast, slow = cost(0, 0, 0, 1, steps=0), cost(1, 0, 7, 1), cost(2, 0, 8, 1)
    found = clock(2.0).on_time([idle, fast, slow])
    assert [c.is_dropped for c in found] == [False, False, True]
    assert clock(2.0).round_seconds(found) == 8


def test_who_misses_the_deadline_is_not_trained_and_the_run_is_that_without_it(tiny_run, monkeypatch):
    seconds = [4 * (client + 1) * flops_of_a_sample(2) / 1000 for client in range(5)]
    deadline = (seconds[3] + seconds[4]) / 2 + 4 * (ADAPTERS + HEAD) * (1 / 1000 + 1 / 500)
    common = {"data": uneven(), "local": LOCAL, "rounds": 3, "evaluate_every": 3}
    dropped = tiny_run("dropped", devices_profile=replace(SLOW, deadline=deadline), **common)
    real = turns.sample_cohort
    monkeypatch.setattr(turns, "sample_cohort", lambda *a, **more: [c for c in real(*a, **more) if c != 4])
    assert dropped.digest == tiny_run("without", **common).digest
    rows = table(dropped, "costs.csv")
    assert [row["dropped"] for row in rows] == [*"00001"] * 3
    assert {row["bytes_up"] for row in rows if row["client"] == "4"} == {"0"}
    metrics = table(dropped, "metrics.csv")
    assert [float(row["simulated_seconds"]) for row in metrics] == [deadline] * 3
    assert [(row["clients"], row["dropped"]) for row in metrics] == [("4", "1")] * 3
    trained = {row["client"] for row in table(dropped, "clients.csv") if row["evaluation"] == "personal"}
    assert trained == {"0", "1", "2", "3"}
    assert dropped.summary["dropped"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_on_where_clients_drop_out(tiny_run, name):
    """As fast as the fastest: every client draws a device, and most miss the deadline."""
    data = fedsim.with_proxy(tiny_data(7, 20), torch.arange(0, 60, 7))
    odd = replace(SLOW, gflops_sigma=1.0, mbps_sigma=0.5, deadline=15.0)
    result = tiny_run(method=METHODS[name], data=data, rounds=4, evaluate_every=4, devices_profile=odd)
    dropped = [int(row["dropped"]) for row in table(result, "metrics.csv")]
    assert sum(dropped) < 4 * 6
    assert sum(dropped) or name == "exclusive", "whose only client that trains anything is waited for"
    assert all(row["clients"] != "0" for row in table(result, "metrics.csv"))


def test_a_dry_run_knows_who_drops_out(tiny_run):
    setting = {"data": uneven(), "local": LOCAL, "rounds": 3, "devices_profile": replace(SLOW, deadline=60.0)}
    result = tiny_run(**setting)
    found = estimate(RunSpec(method=fedsim.FedIT(lora_rank=2), backbone=TinyAttention(), **setting))
    assert result.summary["dropped"] > 0
    assert (found.up, found.down) == (result.summary["bytes.up"], result.summary["bytes.down"])


def test_the_table_is_read_as_it_is_printed(tmp_path):
    (tmp_path / "t.csv").write_text("computation,communication\n162.0,5648.109619499134\n")
    assert read_table(tmp_path / "t.csv") == [(162.0, 5648.109619499134)]
