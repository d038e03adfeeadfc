"""The threads of a worker: what bits depend on must not follow from the number of workers."""

import json
import socket

import pytest
import torch
from conftest import ROOT
from runs import QUICKSTART, SMALL, environment, fabric, run

from fedsim.distributed import launch
from fedsim.distributed.launch import set_threads
from fedsim.distributed.signals import STANDALONE


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("workers", ["1", "4"])
def test_on_a_cpu_a_worker_takes_one_thread_however_many_workers_and_cores_there_are(monkeypatch, workers):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", workers)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    torch.set_num_threads(2)
    set_threads(None, torch.device("cpu"))
    assert torch.get_num_threads() == 1


def test_on_a_gpu_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    set_threads(None, torch.device("cuda"))
    assert torch.get_num_threads() == 3


def test_threads_that_are_named_are_taken():
    set_threads(2, torch.device("cpu"))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("threads", [0, -1, 17, 9999])
def test_threads_with_which_nothing_would_move_are_refused_before_anything_starts(tiny_run, monkeypatch, threads):
    monkeypatch.setattr("fedsim.distributed.launch.cores", lambda: 2)
    monkeypatch.setattr("fedsim.simulation.launch", lambda: pytest.fail("processes have started"))
    allowed = r"it must lie in 1 … 16, 8 for each of the 2 cores here \(--threads\)"
    with pytest.raises(ValueError, match=rf"threads is {threads}; {allowed}"):
        tiny_run(threads=threads)
    launch.check_threads(16)


@pytest.mark.parametrize(("cores", "threads", "said"), [(4, None, 1), (4, 1, 0), (1, None, 0)])
def test_one_worker_says_once_how_to_use_further_cores(tiny_run, monkeypatch, capsys, cores, threads, said):
    launch._say_how_to_use_cores.cache_clear()
    monkeypatch.setattr("fedsim.distributed.launch.cores", lambda: cores)
    for name in ("one", "two"):
        tiny_run(name, rounds=1, threads=threads)
    assert capsys.readouterr().err.count("same bits: fabric run … --devices 4. More threads give other bits") == said


def test_several_workers_and_gpus_say_nothing(monkeypatch, capsys):
    launch._say_how_to_use_cores.cache_clear()
    monkeypatch.setattr("fedsim.distributed.launch.cores", lambda: 4)
    set_threads(None, torch.device("cpu"), is_alone=False)
    set_threads(None, torch.device("cuda"), is_alone=True)
    assert not capsys.readouterr().err


def test_the_threads_in_use_are_recorded_and_kept_when_a_run_in_python_is_resumed(tiny_run, monkeypatch):
    """As on a GPU's machine, where the default follows from the cores."""
    folder = tiny_run(rounds=1, threads=None).folder
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["environment"]["threads"] == 1
    recipe["environment"]["threads"] = 3
    (folder / "recipe.json").write_text(json.dumps(recipe))
    tiny_run(rounds=1, threads=None, resume=True)
    assert torch.get_num_threads() == 3
    with pytest.raises(ValueError, match=r"threads was None and is 2"):
        tiny_run(rounds=1, threads=2, resume=True)


def test_several_launches_on_one_machine_take_a_free_port_each(tmp_path):
    """As `make run` starts them; a second launch beside another would find its port in use."""
    script = tmp_path / "script.py"
    script.write_text("import os\nprint('port', os.environ['MASTER_PORT'])")
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run([*fabric(1, str(script)), "--main-port", str(port)], variables=environment() | {STANDALONE: "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] not in ("port 29400", f"port {port}")
    assert f"{STANDALONE}=1 $(BIN)/fabric run" in (ROOT / "Makefile").read_text()


@pytest.mark.slow
def test_bits_do_not_depend_on_the_number_of_workers_where_nobody_speaks_of_threads(tmp_path):
    """Neither --threads nor OMP_NUM_THREADS, which the launcher sets for several workers only."""
    own = {name: value for name, value in environment().items() if name != "OMP_NUM_THREADS"}
    digests = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        options = (*SMALL[:-2], "--rounds", 2, "--methods", "fedit", "--out", out)
        done = run(fabric(workers, QUICKSTART, *options), variables=own)
        assert done.returncode == 0, done.stdout + done.stderr
        digests.append(json.loads((out / "result.json").read_text())["digest"])
    assert digests[0] == digests[1]
