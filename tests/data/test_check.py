"""A folder is compared with its SHA256SUMS, written by coreutils, and what is wrong is named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.data.check import main, problems_of

DATA = os.environ.get("FEDSIM_DATA")
FILES = {
    "train.parquet": b"PAR1" + bytes(1000) + b"PAR1",
    "deep/a b.txt": b"text",
    "x.npz": b"numbers",
    "y.bin": b"1",
    "z.bin": b"0",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    sums = subprocess.run(
        ["sha256sum", *(f"./{name}" for name in FILES)], cwd=tmp_path, capture_output=True, check=True
    )
    (tmp_path / "SHA256SUMS").write_bytes(sums.stdout)
    return tmp_path


def test_a_whole_folder_has_no_problems(folder: Path, capsys: pytest.CaptureFixture):
    assert problems_of(folder) == []
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out == "all 5 files are as SHA256SUMS says\n"


def test_damaged_partial_missing_and_unfinished_files_are_named(folder: Path, capsys: pytest.CaptureFixture):
    (folder / "train.parquet").write_bytes(FILES["train.parquet"][:500])
    (folder / "deep" / "a b.txt").write_bytes(b"tent")
    (folder / "x.npz").unlink()
    (folder / "y.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (folder / "z.bin").write_bytes(b"")
    (folder / "more.parquet.incomplete").write_bytes(b"PAR1")
    assert problems_of(folder) == [
        "train.parquet: cut short after 500 bytes; fetch it again",
        "deep/a b.txt: damaged: its 4 bytes have another checksum; fetch it again",
        "x.npz: missing",
        "y.bin: a pointer of Git LFS in place of the file; `git lfs pull` gets it",
        "z.bin: empty",
        "more.parquet.incomplete: what a download left unfinished",
    ]
    assert main([str(folder)]) == 1
    assert capsys.readouterr().out.endswith("6 problems\n")


def test_a_folder_without_a_manifest_or_with_a_wrong_one_is_refused(folder: Path, capsys: pytest.CaptureFixture):
    (folder / "SHA256SUMS").write_text("no checksum\n")
    assert main([str(folder)]) == 2
    assert "line 1, is 'no checksum'" in capsys.readouterr().err
    (folder / "SHA256SUMS").unlink()
    assert main([str(folder)]) == 2
    assert "has no SHA256SUMS" in capsys.readouterr().err
    assert main([]) == 2


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="FEDSIM_DATA does not name a folder of data sets")
def test_the_real_folder_is_whole_from_the_command_line():
    done = subprocess.run([sys.executable, "-m", "fedsim.data.check", DATA], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
