"""Runs recipes as a user does: through `fabric run` or plain `python`, in processes of their own."""

import importlib.util
import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

from conftest import ROOT

FABRIC = str(Path(sys.executable).parent / "fabric")
QUICKSTART = "recipes/quickstart.py"
SMALL = (
    "--data.clients-per-style", "2", "--data.train-per-client", "12", "--data.test-per-client", "8",
    "--data.alpha", "10", "--local.epochs", "1", "--threads", "1",
)  # fmt: skip


def load(name: str) -> ModuleType:
    """A recipe as a module."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name.removesuffix('.py')}", ROOT / "recipes" / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def called_by_script(function: Callable[[Path], object], script: Path) -> str:
    """Write a script that calls a function of a test file with the folder that is its argument; return its path."""
    module = inspect.getmodule(function)
    here = [str(ROOT / "tests"), str(Path(module.__file__).parent)]
    script.write_text(
        f"import sys\nfrom pathlib import Path\nsys.path[:0] = {here}\n"
        f"import {module.__name__} as tests\ntests.{function.__name__}(Path(sys.argv[1]))\n"
    )
    return str(script)


def environment() -> dict[str, str]:
    """This process's environment without what `fabric run` adds, so that runs can be nested."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LT_", "TORCHELASTIC"))}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def python(recipe: str, *options: object) -> list[str]:
    """The command for one worker."""
    return [sys.executable, recipe, *map(str, options)]


def fabric(workers: int, recipe: str, *options: object) -> list[str]:
    """The command for several workers; the port is free for this process."""
    port = 20000 + os.getpid() % 20000
    launcher = [FABRIC, "run", recipe, "--accelerator", "cpu", "--devices", str(workers), "--main-port", str(port)]
    return [*launcher, *map(str, options)]


def run(
    command: list[str], timeout: float = 300, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command from the project's root and return what it printed."""
    return subprocess.run(
        command, cwd=ROOT, env=variables or environment(), capture_output=True, text=True, timeout=timeout
    )


def finished(command: list[str], out: Path, timeout: float = 300) -> dict[str, object]:
    """Run a command that must succeed; return result.json, whose digest must be the last line printed."""
    done = run(command, timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((out / "result.json").read_text())
    assert done.stdout.splitlines()[-1] == f"digest {result['digest']}"
    return result


def worker_of(launcher: subprocess.Popen, index: int) -> int:
    """The process id of a worker of this launch, 0 where it does not run."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                is_ours = int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == launcher.pid  # its parent
                variables = (entry / "environ").read_bytes().split(b"\0") if is_ours else []
            except OSError:  # it has just ended
                continue
            if f"RANK={index}".encode() in variables:
                return int(entry.name)
    return 0


def kill_all(launcher: subprocess.Popen) -> None:
    """kill -9 the launcher and its workers, each of which is a session of its own, all at once."""
    if launcher.poll() is None:
        for process in [launcher.pid, *(worker for worker in map(partial(worker_of, launcher), range(2)) if worker)]:
            os.kill(process, signal.SIGKILL)
        launcher.wait()
