"""The threads of a worker: what bits depend on must not follow from the number of workers."""

import pytest
import torch

from fedsim.launch import set_threads


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
