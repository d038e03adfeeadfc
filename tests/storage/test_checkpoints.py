"""Checkpoints by change: what files hold together is the state, at about twice its size, whatever is killed or lost."""

import hashlib
import json
import shutil

import pytest
import torch
from conftest import Stopped

import fedsim
from fedsim.storage.checkpoints import SLACK, SPARSE, read_files
from fedsim.storage.run_folder import RunFolder, load_checkpoint
from fedsim.storage.wire import digest_of, pack, structure_of

SHAPE = (3, 50)


class Server:
    """A state that changes a little every round, and what a run writes of it."""

    def __init__(self, n_rows: int = 400, shape: tuple[int, ...] = SHAPE):
        self.random = torch.Generator().manual_seed(0)
        self.rows, self.rounds = torch.randn(n_rows, *shape, generator=self.random), torch.full((n_rows,), -1)
        self.seen, self.labels = torch.full((SPARSE,), -1), torch.zeros(SPARSE, dtype=torch.long)
        self.others: dict[str, torch.Tensor] = {}

    def written(self, round_index: int, groups: torch.Tensor) -> dict[str, torch.Tensor]:
        """Train these rows in the round before `round_index`; return what the checkpoint is given."""
        self.rows[groups] = torch.randn(len(groups), *self.rows.shape[1:], generator=self.random)
        self.rounds[groups] = round_index - 1
        self.seen[groups] = round_index - 1
        return self.plain() | self.table(groups)

    def plain(self) -> dict[str, torch.Tensor]:
        return {"last_seen": self.seen, "learnt|labels": self.labels, **self.others}

    def table(self, groups: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = {"rows": self.rows[groups], "groups": groups, "rounds": self.rounds[groups]}
        return {f"bank|a/b/A|{part}": t for part, t in parts.items()} | {
            "bank|a/b/A|width": torch.tensor(len(self.rows))
        }

    def whole(self) -> dict[str, torch.Tensor]:
        return self.plain() | self.table((self.rounds >= 0).nonzero().flatten())

    def some(self, n: int) -> torch.Tensor:
        return torch.randperm(len(self.rows), generator=self.random)[:n].sort().values


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", {})


def reopened(folder: RunFolder) -> RunFolder:
    return RunFolder(folder.path, load_checkpoint(folder.path)[0], read_files(folder.path))


def on_disk(folder: RunFolder) -> int:
    return sum(path.stat().st_size for path in (folder.path / "checkpoints").iterdir())


def test_what_files_hold_together_is_the_state_through_every_resume(folder):
    server = Server()
    for round_index in range(1, 60):
        server.labels[round_index * 7] = round_index
        folder.save_checkpoint(round_index, server.written(round_index, server.some(10)))
        found, tensors = load_checkpoint(folder.path)
        assert found == round_index
        assert digest_of(tensors) == digest_of(server.whole())
        folder = reopened(folder) if round_index % 7 == 0 else folder


def test_a_round_writes_what_it_changed_and_files_stay_at_about_twice_the_state(folder):
    server, sizes = Server(), []
    row = 4 * SHAPE[0] * SHAPE[1]
    folder.save_checkpoint(1, server.written(1, torch.arange(400)))
    for round_index in range(2, 200):
        folder.save_checkpoint(round_index, server.written(round_index, server.some(10)))
        sizes.append((folder.path / "checkpoints" / f"round-{round_index:06d}.safetensors").stat().st_size)
    assert sorted(sizes)[len(sizes) // 2] < 2 * 10 * row, "of 400 rows 10 are new, and some are written again"
    assert sum(sizes) < 3 * len(sizes) * 10 * row
    state = 400 * row + 2 * 8 * SPARSE
    assert on_disk(folder) < 2.3 * state + 2 * SLACK
    assert not (folder.path / "checkpoints" / "round-000001.json").exists(), "no file stays for ever"


def test_where_all_changes_every_round_the_last_two_files_are_all_there_is(folder):
    server = Server(200)
    for round_index in range(1, 6):
        folder.save_checkpoint(round_index, server.written(round_index, torch.arange(200)))
    there = sorted(path.stem for path in (folder.path / "checkpoints").glob("*.json"))
    assert there[-1] == "round-000005"
    assert on_disk(folder) < 3 * 200 * 4 * SHAPE[0] * SHAPE[1]


def test_without_the_newest_checkpoint_a_run_goes_on_from_the_one_before(folder):
    server, states = Server(), {}
    for round_index in range(1, 80):
        folder.save_checkpoint(round_index, server.written(round_index, server.some(40)))
        states[round_index] = digest_of(server.whole())
        before = folder.path.with_name("before")
        shutil.copytree(folder.path, before)
        for path in (before / "checkpoints").glob(f"round-{round_index:06d}.*"):
            path.unlink()
        found, tensors = load_checkpoint(before)
        assert found == round_index - 1
        assert found == 0 or digest_of(tensors) == states[found]
        shutil.rmtree(before)


def test_what_is_learnt_no_more_is_gone(folder):
    server = Server()
    server.others = {"learnt|stage": torch.tensor(1)}
    folder.save_checkpoint(1, server.written(1, server.some(300)))
    server.others = {}
    folder.save_checkpoint(2, server.written(2, server.some(3)))
    assert "learnt|stage" not in load_checkpoint(folder.path)[1]
    server.others = {"learnt|stage": torch.tensor(3)}
    reopened(folder).save_checkpoint(3, server.written(3, server.some(3)))
    assert digest_of(load_checkpoint(folder.path)[1]) == digest_of(server.whole())


def test_a_table_whose_rows_become_wider_is_the_new_one(folder):
    server, wide = Server(1), Server(1, (3, 60))
    folder.save_checkpoint(1, server.written(1, torch.tensor([0])))
    folder.save_checkpoint(2, wide.written(2, torch.tensor([0])))
    assert digest_of(load_checkpoint(folder.path)[1]) == digest_of(wide.whole())


@pytest.fixture
def chained(folder):
    server = Server()
    folder.save_checkpoint(1, server.written(1, torch.arange(400)))
    for round_index in range(2, 7):
        folder.save_checkpoint(round_index, server.written(round_index, server.some(10)))
    return folder.path


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.parametrize("link", [1, 4])
def test_a_removed_link_is_one_message_that_names_it(chained, link, kind):
    (chained / "checkpoints" / f"round-{link:06d}.{kind}").unlink()
    said = rf"round-00000{link}.safetensors' is damaged: .*No such file.* round-000006 goes on from it: put back a copy"
    with pytest.raises(ValueError, match=said):
        load_checkpoint(chained)


def test_a_link_of_another_run_or_a_damaged_one_is_named(chained, tmp_path):
    other, server = RunFolder.create(tmp_path / "other", {}), Server(401)
    for round_index in range(1, 5):
        other.save_checkpoint(round_index, server.written(round_index, server.some(5)))
    for kind in ("json", "safetensors"):
        shutil.copy(other.path / "checkpoints" / f"round-000004.{kind}", chained / "checkpoints")
    with pytest.raises(ValueError, match=r"round-000004.safetensors' is damaged: it is not the one from which"):
        load_checkpoint(chained)
    (chained / "checkpoints" / "round-000004.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"round-000004.safetensors' is damaged: its 1 bytes .* round-000006 goes on"):
        load_checkpoint(chained)


def test_a_run_that_lacks_a_link_says_so_before_anything_starts(tiny_run, tmp_path):
    common = {"method": fedsim.Local(lora_rank=2), "cohort_size": 2}
    folder = tiny_run(rounds=8, **common).folder
    stems = sorted(path.stem for path in (folder / "checkpoints").glob("*.json"))
    assert len(stems) > 2, "there is a chain"
    before = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    (folder / "checkpoints" / f"{stems[-2]}.safetensors").unlink()
    with pytest.raises(ValueError, match=f"{stems[-2]}.safetensors' is damaged"):
        tiny_run(rounds=9, resume=True, **common)
    assert {path.name: path.read_bytes() for path in folder.glob("*.csv")} == before


def test_a_checkpoint_of_an_earlier_version_holds_all_and_goes_on(tiny_run, stop_after, monkeypatch):
    """Its manifest names no other file."""
    whole = tiny_run("whole", cohort_size=2, method=fedsim.Local(lora_rank=2), rounds=5)
    stop_after(3)
    with pytest.raises(Stopped):
        tiny_run("old", cohort_size=2, method=fedsim.Local(lora_rank=2), rounds=5)
    monkeypatch.undo()
    out = whole.folder.parent / "old" / "checkpoints"
    _, tensors = load_checkpoint(out.parent)
    payload = pack(tensors)
    manifest = json.loads((out / "round-000003.json").read_text())
    shutil.rmtree(out)
    out.mkdir()
    (out / "round-000003.safetensors").write_bytes(payload)
    old = {name: manifest[name] for name in ("round_index", "run")} | {"inside": structure_of(tensors)}
    (out / "round-000003.json").write_text(json.dumps(old | {"sha256": hashlib.sha256(payload).hexdigest()}))
    again = tiny_run("old", cohort_size=2, method=fedsim.Local(lora_rank=2), rounds=5, resume=True)
    assert again.digest == whole.digest
