"""The built wheel holds all of fedsim and works where there is no checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from runs import environment
from test_readme import library_script

WITHOUT_CHECKOUT = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
PLACE = "\nprint(fedsim.__file__)"


def succeed(*command: object, cwd: Path) -> str:
    """Run a command that must succeed without the checkout, and return what it printed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=WITHOUT_CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built of a copy: what an earlier build left in the checkout would get into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "fedsim", source / "fedsim", ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check")
    succeed(*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", out, source, cwd=out)
    (built,) = out.glob("fedsim_lora-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_fedsim_and_its_licence_and_nothing_else(wheel):
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fedsim").rglob("*") if path.is_file()}
    expected = {name for name in expected if "__pycache__" not in name}
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == expected
    assert any(name.endswith("/LICENSE") for name in names)


@pytest.mark.slow
def test_the_library_script_runs_from_the_wheel_without_the_checkout(wheel, tmp_path):
    scratch, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    succeed(sys.executable, "-m", "venv", "--without-pip", scratch, cwd=elsewhere)
    python, own = scratch / "bin" / "python", next(scratch.glob("lib/python*/site-packages"))
    succeed(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python),
        *("install", "--no-index", "--no-deps", wheel),
        cwd=elsewhere,
    )
    # The present packages come behind, by a path alone: .pth files there, an editable fedsim's, are not read.
    (own / "present.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    *printed, place = succeed(python, "-c", library_script() + PLACE, cwd=elsewhere).splitlines()
    assert Path(place) == own / "fedsim" / "__init__.py"
    assert len(printed[-1].split()[1]) == 64  # the digest
    assert (elsewhere / "runs" / "mine" / "result.json").exists()
