"""A full disk, and a folder that two runs want: one message, and nothing that was finished is lost."""

import contextlib
import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import fedsim
from fedsim.errors import Fault
from fedsim.report import figures
from fedsim.storage import run_folder
from fedsim.storage.disk import DiskFull, FolderInUse, only_writer, writing
from fedsim.storage.run_folder import RunFolder, load_checkpoint


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "fedsim-test", disk], capture_output=True)
    if mount.returncode:
        pytest.skip(f"mounting is not allowed here: {mount.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with (disk / "filler").open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def rows(folder: Path) -> list[bytes]:
    return [(folder / table).read_bytes() for table in ("metrics.csv", "clients.csv")]


def test_a_disk_that_is_full_in_a_checkpoint_is_named_and_loses_nothing(tiny_run, small_disk, monkeypatch):
    real = run_folder.RunFolder.save_checkpoint

    def save(self, round_index, tensors):
        if round_index == 2:
            fill(small_disk)
        real(self, round_index, tensors)

    whole, out = tiny_run("whole"), small_disk / "run"
    monkeypatch.setattr(run_folder.RunFolder, "save_checkpoint", save)
    with pytest.raises(DiskFull, match=r"The disk is full: '.*round-000002.safetensors' .*\(0.0 MiB.* with --resume"):
        tiny_run(out=out)
    monkeypatch.undo()
    assert load_checkpoint(out)[0] == 1
    (small_disk / "filler").unlink()
    assert tiny_run(out=out, resume=True).digest == whole.digest
    assert rows(out) == rows(whole.folder)


def fill_before_write(disk: Path, monkeypatch, number: int) -> None:
    """Fill the disk before the run's write of this number, counted from 0, of whatever file."""
    count = 0

    def filling(real):
        def write(*arguments):
            nonlocal count
            if count == number:
                fill(disk)
            count += 1
            real(*arguments)

        return write

    for name in ("append", "write_atomically"):
        monkeypatch.setattr(run_folder, name, filling(getattr(run_folder, name)))


def ends_and_goes_on(tiny_run, disk: Path, whole: fedsim.Result, number: int) -> bool:
    """Run with the disk full from a write on; free it, resume, compare. Returns whether the run had to end."""
    out, ended = disk / "run", False
    with pytest.MonkeyPatch.context() as patch:
        fill_before_write(disk, patch, number)
        try:
            tiny_run(out=out)
        except DiskFull:
            ended = True
    assert not list(out.rglob(".*.partial")), "half a file would take the space that is missing"
    done, is_begun = load_checkpoint(out)[0], (out / "recipe.json").exists()
    if ended and is_begun:
        with contextlib.suppress(DiskFull):  # still full: trying costs nothing
            tiny_run(out=out, resume=True)
        assert load_checkpoint(out)[0] >= done
    (disk / "filler").unlink(missing_ok=True)
    assert tiny_run(out=out, resume=is_begun).digest == whole.digest
    assert rows(out) == rows(whole.folder)
    return ended


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_write_loses_nothing(tiny_run, small_disk):
    whole, ended = tiny_run("whole"), 0
    for number in range(28):
        ended += ends_and_goes_on(tiny_run, small_disk, whole, number)
        shutil.rmtree(small_disk / "run")
    assert ended >= 10


def test_two_runs_do_not_write_to_one_folder(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("fedsim.storage.disk.LOCK_WAIT", 0.1)
    whole = tiny_run(rounds=1)
    before = rows(whole.folder)
    with only_writer(whole.folder), pytest.raises(FolderInUse, match=r"Another run is still writing to '.*run'"):
        tiny_run(rounds=1, resume=True)
    assert rows(whole.folder) == before
    assert tiny_run(rounds=1, resume=True).digest == whole.digest


def test_a_run_that_went_on_while_another_waited_for_its_folder_is_not_overwritten(tiny_run, tmp_path, monkeypatch):
    whole = tiny_run(rounds=3)
    before = rows(whole.folder)
    before_last = shutil.copytree(whole.folder, tmp_path / "before the last round")
    (before_last / "checkpoints" / "round-000003.json").unlink()
    stale = load_checkpoint(before_last)
    assert stale[0] == 2
    monkeypatch.setattr("fedsim.records.resume.load_checkpoint", lambda folder: stale)
    with pytest.raises(FolderInUse):
        tiny_run(rounds=3, resume=True)
    assert rows(whole.folder) == before
    assert load_checkpoint(whole.folder)[0] == 3


def no_lock(*given):
    raise OSError(errno.ENOSYS, "no locks here")


def test_a_folder_of_a_killed_run_is_free_also_where_its_file_system_has_no_locks(tmp_path, monkeypatch, capsys):
    for _ in range(3):
        with only_writer(tmp_path / "run"):
            pass
        monkeypatch.setattr("fcntl.flock", no_lock)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    said = capsys.readouterr().err
    assert said.count(f"No lock can be had in '{tmp_path}' (no locks here). Let one run write to a folder") == 1, said


def test_where_there_are_no_locks_a_run_notices_the_checkpoint_that_another_has_written(tiny_run, monkeypatch):
    monkeypatch.setattr("fcntl.flock", no_lock)
    whole, save, rounds = tiny_run("whole", rounds=3), RunFolder.save_checkpoint, []

    def meet_another(folder, round_index, tensors):
        save(folder, round_index, tensors)
        if not rounds and round_index == 2:
            rounds.append(round_index)
            assert tiny_run(rounds=3, resume=True).digest == whole.digest

    monkeypatch.setattr(RunFolder, "save_checkpoint", meet_another)
    with pytest.raises(FolderInUse, match="Another run is still writing"):
        tiny_run(rounds=3)
    assert rows(whole.folder.parent / "run") == rows(whole.folder), "the other's rows are there once"


def test_a_place_that_can_hold_no_folder_is_refused_before_anything_starts(tiny_run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("something else")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"cannot be kept in '.*': '.*file' is no folder \(--out\)"):
            tiny_run(out=out)
    monkeypatch.setattr("os.access", lambda *given: False)
    with pytest.raises(ValueError, match=r"may not be written to \(--out\)"):
        tiny_run(out=tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("", r"out is the current folder, or empty; name a folder for the run, such as runs/first \(--out\)"),
        (".", "out is the current folder"),
        ("a" * 300, r"cannot be kept in 'aaa.*': File name too long \(--out\)"),
        ("a/" * 2100, "File name too long"),
        ("others", r"'others' holds other files, \['mine.txt'\]; choose another one, or none yet \(--out\)"),
        ("a\0b", "null byte"),
    ],
)
def test_a_folder_that_is_none_of_the_runs_own_is_refused_and_nothing_is_written(
    tiny_run, tmp_path, monkeypatch, out, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match=message):
        tiny_run(out=out)
    assert [path.name for path in tmp_path.rglob("*")] == ["others", "mine.txt"]


def test_a_folder_with_what_a_killed_start_and_its_job_left_is_taken(tiny_run, tmp_path):
    for name in ("checkpoints", "logs"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / ".recipe.json.partial").write_text("{")
    assert tiny_run(rounds=1).folder == tmp_path / "run"


def test_a_folder_that_cannot_be_made_after_all_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", lambda *given, **options: os.mkdir("/proc/nothing"))
    with (
        pytest.raises(Fault, match=r"The run folder '.*new' cannot be made: .* \(--out\)"),
        only_writer(tmp_path / "new"),
    ):
        pass


def test_a_full_disk_is_named_where_not_even_the_folder_could_be_made(tmp_path):
    missing = tmp_path / "a" / "b" / "c"
    with pytest.raises(DiskFull, match=r"'.*c' could not be written \([\d.]+ MiB are free there\)"), writing(missing):
        raise OSError(errno.ENOSPC, "full")


def test_figures_are_whole_or_not_there(tiny_run, tmp_path, monkeypatch):
    """A cell of a comparison whose figures could not be drawn is not finished."""
    monkeypatch.setenv("FEDSIM_FIGURES", "1")
    method = fedsim.FedRA(lora_rank=2, capabilities=fedsim.Capabilities(values=(1, 2)))
    with monkeypatch.context() as patch:
        patch.setitem(figures.DRAWN, "allocations", lambda events: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny_run(method=method)
    out = next(tmp_path.glob("*/recipe.json")).parent
    assert not (out / "result.json").exists()
    result = tiny_run(method=method, resume=True)
    assert result.folder == out
    assert (out / "allocations.svg").exists()
