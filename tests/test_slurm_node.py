"""What every node of a SLURM job starts, and what it says where that cannot be fast. Jobs are in test_slurm.py."""

import importlib.util

import pytest
from conftest import ROOT

JOB = {
    "SLURM_JOB_ID": "40007",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch):
    spec = importlib.util.spec_from_file_location("slurm_node", ROOT / "slurm/node.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("SLURM_GPUS_ON_NODE", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    return module


@pytest.mark.parametrize(
    ("given", "started"),
    [
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64"}, ("cuda", "8")),
        ({"SLURM_CPUS_PER_TASK": "4"}, ("cpu", "4")),
        ({}, ("cpu", "1")),
    ],
)
def test_a_node_starts_a_worker_for_each_gpu_else_for_each_cpu(node, monkeypatch, given, started):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    said = dict(zip(node.options()[::2], node.options()[1::2], strict=True))
    assert (said["--accelerator"], said["--devices"]) == started
    assert (said["--num-nodes"], said["--node-rank"], said["--main-port"]) == ("2", "1", "10007")


def test_workers_that_share_fewer_cores_are_told_of_with_the_option_that_gives_more(node):
    eight = ["--accelerator", "cuda", "--devices", "8", "recipes/quickstart.py"]
    assert node.too_few_cores(eight, 1) == (
        "8 workers share one CPU core on this node, which makes them slow: sbatch --cpus-per-task 8 or more"
    )
    assert "8 workers share 4 CPU cores" in node.too_few_cores(eight, 4)
    assert node.too_few_cores(eight, 8) == ""
    assert node.too_few_cores([*eight, "--devices", "2"], 2) == "", "the second one counts"
    assert node.too_few_cores([*eight, "--devices", "auto"], 1) == ""
