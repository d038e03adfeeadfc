"""The README tells the truth: its script runs, its options and files exist."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT
from runs import environment

README = (ROOT / "README.md").read_text()


def library_script() -> str:
    """The README's one script in Python."""
    (script,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    return script


@pytest.mark.slow
def test_the_library_script_runs_as_printed(tmp_path):
    script = library_script()
    assert len(script.splitlines()) <= 40
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"0\.\d+ [0-9a-f]{64}", done.stdout.splitlines()[-1])
    assert (tmp_path / "runs" / "mine" / "result.json").exists()


def test_every_file_of_the_tree_exists_and_every_module_is_in_the_tree():
    tree = README.split("```\nfedsim/\n")[1].split("```")[0]
    inside = [line.split()[0] for line in tree.splitlines() if line.startswith("  ")]
    assert all((ROOT / "fedsim" / name).exists() for name in inside)
    there = {path.name + ("/" if path.is_dir() else "") for path in (ROOT / "fedsim").iterdir()}
    assert there - {"__init__.py", "__pycache__/"} == set(inside)


def test_every_make_target_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_installation_hint_installs_from_the_checkout_and_not_a_namesake_from_the_index():
    texts = [
        *ROOT.glob("*.md"),
        *(
            path
            for top in ("fedsim", "recipes", "benchmarks", "slurm")
            for path in (ROOT / top).rglob("*")
            if path.suffix in (".py", ".md", ".sbatch")
        ),
    ]
    hints = [(path.name, hint) for path in texts for hint in re.findall(r"pip install ([^`\n]*)", path.read_text())]
    assert ("loggers.py", "-e '.[wandb]'") in hints
    assert [hint for hint in hints if re.search(r"\bfedsim\b", hint[1])] == []
    assert 'name = "fedsim-lora"' in (ROOT / "pyproject.toml").read_text()
