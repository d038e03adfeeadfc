"""Fewer clients are evaluated between rounds: the same ones, all of them at the end, and every output says so."""

import json

import pytest
from conftest import Stopped, TinyAttention, tiny_data

import fedsim
from fedsim.report.comparison import notes
from fedsim.report.page import write_report
from fedsim.report.table import discoveries
from fedsim.round import Population
from fedsim.server.cohort import clients_to_evaluate
from fedsim.storage.run_folder import RunFolder


def population(n: int) -> Population:
    return Population(n, tuple(range(1, n)), (0,), (1,) * n)


def test_the_evaluated_clients_are_seen_ones_that_depend_on_the_seed_alone():
    first = clients_to_evaluate(population(1000), 20, 3)
    assert len(set(first)) == 20
    assert list(first) == sorted(first)
    assert 0 not in first
    assert list(clients_to_evaluate(population(1000), 20, 3)) == list(first)
    assert list(clients_to_evaluate(population(1000), 20, 4)) != list(first)
    assert list(clients_to_evaluate(population(6), 20, 3)) == list(clients_to_evaluate(population(6), None, 3))


def test_few_are_evaluated_between_rounds_and_all_at_the_end_to_the_same_bits(tiny_run, tmp_path):
    whole, few = tiny_run("whole", rounds=4), tiny_run("few", rounds=4, evaluate_clients=2)
    assert few.digest == whole.digest
    folder = RunFolder(few.folder)
    rounds, clients = folder.read_table("metrics.csv"), folder.read_table("clients.csv")
    assert [row["evaluated_clients"] for row in rounds] == ["2", "2", "2", "5"]
    evaluated = [[row["client"] for row in clients if row["evaluation"] == "global" and row["round"] == r["round"]]
                 for r in rounds]  # fmt: skip
    assert evaluated[0] == evaluated[1] == evaluated[2]
    assert list(map(len, evaluated)) == [2, 2, 2, 5]
    last = RunFolder(whole.folder).read_table("metrics.csv")[-1]
    assert {name: value for name, value in rounds[-1].items() if name != "evaluated_clients"} == last
    assert few.summary["global.mean"] == whole.summary["global.mean"]
    assert (few.summary["evaluated_clients"], few.summary["global.clients"]) == (2, 5)
    assert few.summary["global.best.clients"] in (2, 5)
    said = "Between rounds 2 clients, drawn once, were evaluated, after the last round all 5"
    assert any(line.startswith(said) for line in discoveries(few))
    assert not any("Between rounds" in line for line in discoveries(whole))
    write_report([few.folder], tmp_path / "page.html")
    assert said in (tmp_path / "page.html").read_text()


def test_a_run_with_few_evaluated_clients_resumes_to_the_same_rows(tiny_run, stop_after, monkeypatch):
    whole = tiny_run("whole", evaluate_clients=2)
    stop_after(2)
    with pytest.raises(Stopped):
        tiny_run("run", evaluate_clients=2)
    monkeypatch.undo()
    again = tiny_run("run", evaluate_clients=2, resume=True)
    for name in ("metrics.csv", "clients.csv"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    with pytest.raises(ValueError, match="evaluate_clients was 2 and is 3"):
        tiny_run("run", evaluate_clients=3, resume=True)


def test_fewer_than_one_are_refused(tiny_run):
    with pytest.raises(ValueError, match=r"evaluate_clients is 0; it must be 1 or more \(--evaluate-clients\)"):
        tiny_run(evaluate_clients=0)


def test_a_comparison_says_how_many_were_evaluated(tmp_path, tiny_run):
    common = {"backbone": TinyAttention(), "rounds": 2, "threads": 1, "out": tmp_path / "c", "evaluate_clients": 2}
    found = fedsim.compare({"fedit": fedsim.FedIT(lora_rank=2)}, lambda seed: tiny_data(), **common)
    assert any("Between rounds 2 clients" in line for line in notes(found))
    cell = next((tmp_path / "c").glob("seed-*/fedit/result.json"))
    assert json.loads(cell.read_text())["evaluated_clients"] == 2
