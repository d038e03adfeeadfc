"""Tables that are read row by row, and clients.csv in a compact form."""

import pyarrow.parquet as pq
import pytest

from fedsim.storage.run_folder import RunFolder
from fedsim.storage.tables import compact, lines_up_to


def rows(n: int, round_index: int) -> list[dict[str, object]]:
    names = {"stage": "train", "evaluation": "global", "domain": ""}
    return [{"round": round_index, "client": k, **names, "accuracy": 1 if k < 3 else k / n, "train_samples": 4}
            for k in range(n)]  # fmt: skip


def test_a_large_table_of_clients_is_there_as_parquet_with_the_same_rows(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {})
    for round_index in range(1, 4):
        folder.append("clients.csv", rows(50, round_index))
    compact(folder.path / "clients.csv")
    assert not (folder.path / "clients.parquet").exists(), "it is small"
    compact(folder.path / "clients.csv", least=0)
    found, expected = pq.read_table(folder.path / "clients.parquet").to_pylist(), folder.read_table("clients.csv")
    assert len(found) == 150
    assert [row["client"] for row in found] == [int(row["client"]) for row in expected]
    assert [row["accuracy"] for row in found] == [float(row["accuracy"]) for row in expected]
    assert {row["domain"] for row in found} == {""}
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "checkpoints", "clients.csv", "clients.parquet", "recipe.json"
    ]  # fmt: skip


def test_a_run_that_goes_on_has_no_compact_table_before_its_end(tiny_run, monkeypatch):
    monkeypatch.setattr("fedsim.storage.tables.COMPACT", 0)
    folder = tiny_run(rounds=2).folder
    (folder / "clients.parquet").write_bytes(b"of the shorter run")
    tiny_run(rounds=3, resume=True)
    assert not (folder / "clients.parquet").exists()


def test_rows_of_rounds_to_come_are_cut_off_and_earlier_ones_behind_them_are_damage(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {})
    for round_index in range(1, 4):
        folder.append("clients.csv", rows(2, round_index))
    path = folder.path / "clients.csv"
    whole = path.read_bytes()
    kept = lines_up_to(folder.path, 0)
    assert whole[: kept[path]].decode().splitlines() == whole.decode().splitlines()[:1]
    folder.append("clients.csv", rows(1, 1))
    for table in ("metrics.csv", "costs.csv", "timing.csv"):
        folder.append(table, [{"round": 1}, {"round": 2}])
    (folder.path / "events.jsonl").write_text('{"round": 1}\n{"round": 2}\n')
    with pytest.raises(
        ValueError, match=r"clients.csv' is damaged in line 8: it is of round 1, behind rows of rounds after 2"
    ):
        lines_up_to(folder.path, 2)
