"""Results must not depend on the number of workers: the same bits with 1, 2 and 3, through the real launcher."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import lightning.fabric
import pytest
import torch.distributed as dist
from conftest import ROOT, TinyAttention, tiny_data
from runs import QUICKSTART, SMALL, called_by_script, environment, fabric, finished, load, python, run

import fedsim
from fedsim.costs.availability import Availability
from fedsim.costs.devices import DeviceProfiles
from fedsim.distributed import launch
from fedsim.distributed.workers import Workers
from fedsim.errors import Fault
from fedsim.parts.downlink import Downlink
from fedsim.parts.privacy import Privacy
from fedsim.parts.schedule import Schedule
from fedsim.parts.tree import TreeCuts
from fedsim.parts.uplink import Uplink
from fedsim.run_spec import RunSpec
from fedsim.server.aggregator import Aggregator
from fedsim.server.workload import Workload
from fedsim.storage.run_folder import RunFolder

OPTIONS = (*SMALL, "--rounds", 4, "--cohort-size", 5, "--block-size", 2)


def rows(path):
    """A table without the one column that is about workers."""
    return [{**row, "utilisation": ""} for row in RunFolder(path.parent).read_table(path.name)]


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    return out, finished(fabric(1, QUICKSTART, *OPTIONS, "--out", out), out)


def assert_same_tables(ours: Path, theirs: Path, workers: int) -> None:
    """The same rows but for the share of workers that are busy, which lies between one and all."""
    for table in ("metrics.csv", "clients.csv", "costs.csv"):
        assert rows(ours / table) == rows(theirs / table)
    busy = [float(row["utilisation"]) for row in RunFolder(ours).read_table("metrics.csv")]
    assert all(1 <= share <= workers for share in busy)
    assert max(busy) > 1, "five clients cannot be dealt evenly"


def test_hilora_ends_in_the_same_bits_with_two_workers_and_in_this_process(monkeypatch, tmp_path):
    here, out, options = tmp_path / "here", tmp_path / "two", (*OPTIONS, "--methods", "hilora")
    monkeypatch.setattr(sys, "argv", [QUICKSTART, *map(str, options), "--out", str(here)])
    quickstart = load("quickstart.py")
    fedsim.cli(quickstart.Quickstart, quickstart.main)
    result = finished(fabric(2, QUICKSTART, *options, "--out", out), out)
    assert result["digest"] == json.loads((here / "result.json").read_text())["digest"]
    assert_same_tables(out, here, 2)


@pytest.mark.slow
def test_all_methods_end_in_the_same_bits_with_three_workers(one_worker, tmp_path):
    reference, expected = one_worker
    out = tmp_path / "run"
    result = finished(fabric(3, QUICKSTART, *OPTIONS, "--cells", "together", "--out", out), out)
    assert result["digest"] == expected["digest"]
    for method in ("local", "fedit", "hilora"):
        assert_same_tables(out / "seed-0" / method, reference / "seed-0" / method, 3)


@pytest.mark.slow
def test_two_machines_end_in_the_same_bits_as_one(one_worker, tmp_path):
    """Two launchers on the loopback, as on machines of their own: the second never sees the run folder."""
    reference, expected = one_worker
    outs = [tmp_path / f"machine-{machine}" for machine in (0, 1)]
    launchers = [
        subprocess.Popen(
            fabric(1, QUICKSTART, "--num-nodes", 2, "--node-rank", machine, *OPTIONS, "--out", out),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for machine, out in enumerate(outs)
    ]
    said = [launcher.communicate(timeout=600)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], "".join(said)
    assert said[0].splitlines()[-1] == f"digest {expected['digest']}"
    assert not outs[1].exists()
    for method in ("local", "fedit", "hilora"):
        for table in ("metrics.csv", "clients.csv"):
            assert rows(outs[0] / "seed-0" / method / table) == rows(reference / "seed-0" / method / table)


def grow_a_tree(out: Path) -> fedsim.Result | None:
    """A tree of clients whose devices are uneven, so that some miss a round's deadline."""
    return fedsim.simulate(
        method=fedsim.FedTreeLoRA(lora_rank=2, warmup_rounds=2, tree=TreeCuts(tau=-1.0)),
        backbone=TinyAttention(),
        data=tiny_data(9),
        rounds=5,
        cohort_size=5,
        block_size=2,
        threads=1,
        out=out,
        devices_profile=DeviceProfiles(gflops=1e-6, gflops_sigma=0.5, mbps_down=0.01, mbps_up=0.01, deadline=35),
    )


def train_otherwise(out: Path) -> fedsim.Comparison | None:
    """One method for each thing that few do: a second training, a router, an outer step, corrections, a residual.

    What is sent is encoded, and what is not is kept back; what is received is sparse.
    """
    methods = {
        "feddpa": fedsim.FedDPA(lora_rank=2),
        "fedlease": fedsim.FedLEASE(lora_rank=2, warmup_rounds=1),
        "fdlora": fedsim.FDLoRA(lora_rank=2, personal_share=0.3, fusion_share=0.3, sync_period=1),
        "ditto": fedsim.Ditto(lora_rank=2),
        "scaffold": fedsim.SCAFFOLD(lora_rank=2),
        "fedmomentum": fedsim.FedMomentum(ranks=fedsim.LoraRanks(values=(1, 2))),
    }
    common = {"backbone": TinyAttention(), "rounds": 3, "cohort_size": 5}
    common |= {"uplink": Uplink(top_k=0.5, bits=8, feedback=True), "downlink": Downlink(top_k=0.5)}
    return fedsim.compare(methods, lambda seed: tiny_data(9), block_size=2, threads=1, out=out, **common)


Done = TypeVar("Done")


def by_two_and_by_one(function: Callable[[Path], Done], folder: Path) -> Done:
    """Call a function with `folder`/two in two workers, then with `folder`/one here; return what it returns here."""
    done = run(fabric(2, called_by_script(function, folder / "script.py"), folder / "two"))
    assert done.returncode == 0, done.stdout + done.stderr
    return function(folder / "one")


def train_privately(out: Path) -> fedsim.Result | None:
    """Clipped, noised and encoded: by the server, with Poisson cohorts and unequal depths, and by the clients."""
    common = {"backbone": TinyAttention(), "data": tiny_data(9), "rounds": 3, "block_size": 2, "threads": 1}
    common |= {"cohort_size": 3, "cohort_sampling": "poisson", "uplink": Uplink(top_k=0.5, bits=8)}
    deep = fedsim.FedRA(lora_rank=2, capabilities=fedsim.Capabilities(values=(1, 2)))
    central, local = (Privacy(clip=0.1, noise_multiplier=0.5, local=is_local) for is_local in (False, True))
    fedsim.simulate(method=deep, privacy=central, out=out / "central", **common)
    samples = fedsim.LocalTraining(batch_size=4, sample_clip=0.5, sample_noise=1.0, sample_batches="poisson")
    fedsim.simulate(method=fedsim.FedTreeLoRA(lora_rank=2), local=samples, out=out / "samples", **common)
    return fedsim.simulate(method=fedsim.FedRotLoRA(lora_rank=2), privacy=local, out=out / "local", **common)


@pytest.mark.slow
def test_clipping_and_noise_are_the_same_bits_with_several_workers(tmp_path):
    by_two_and_by_one(train_privately, tmp_path)
    for name, key in {"central": "epsilon", "local": "epsilon", "samples": "sample_epsilon"}.items():
        one, two = (json.loads((tmp_path / n / name / "result.json").read_text()) for n in ("one", "two"))
        assert one["digest"] == two["digest"], name
        assert one[key] == two[key] > 0


def step_as_clients_arrive(out: Path) -> fedsim.Result | None:
    """Clients that come and go, of whom four are at work at a time and two make a step; and rounds with such."""
    common = {"backbone": TinyAttention(), "data": tiny_data(9), "rounds": 8, "block_size": 2, "threads": 1}
    common["devices_profile"] = DeviceProfiles(gflops=1e-6, gflops_sigma=0.5, mbps_down=0.01, mbps_up=0.01)
    common["availability"] = Availability(on_hours=0.02, off_hours=0.02)
    buffered = Schedule(kind="buffered", buffer=2, concurrency=4)
    fedsim.simulate(method=fedsim.FedSALoRA(lora_rank=2), schedule=buffered, out=out / "buffered", **common)
    covering = fedsim.FedRA(lora_rank=2, capabilities=fedsim.Capabilities(values=(1, 2)))
    return fedsim.simulate(method=covering, cohort_size=4, out=out / "rounds", **common)


@pytest.mark.slow
def test_who_arrives_when_is_the_same_with_several_workers(tmp_path):
    by_two_and_by_one(step_as_clients_arrive, tmp_path)
    for name in ("buffered", "rounds"):
        one, two = (tmp_path / workers / name for workers in ("one", "two"))
        digests = [json.loads((folder / "result.json").read_text())["digest"] for folder in (one, two)]
        assert digests[0] == digests[1]
        for table in ("clients.csv", "costs.csv"):
            assert (two / table).read_bytes() == (one / table).read_bytes()
        assert "1" in {row["dropped"] for row in rows(one / "costs.csv")}


@pytest.mark.slow
def test_what_few_methods_do_is_the_same_bits_with_several_workers(tmp_path):
    one = by_two_and_by_one(train_otherwise, tmp_path)
    assert one is not None
    for name, (result,) in one.results.items():
        other = tmp_path / "two" / "seed-0" / name / "result.json"
        assert json.loads(other.read_text())["digest"] == result.digest, name


@pytest.mark.slow
def test_a_tree_and_what_hangs_on_it_are_the_same_bits_with_several_workers(tmp_path):
    one = by_two_and_by_one(grow_a_tree, tmp_path)
    assert one is not None
    assert json.loads((tmp_path / "two" / "result.json").read_text())["digest"] == one.digest
    assert one.summary["dropped"] > 0
    for table in ("clients.csv", "costs.csv"):
        assert (tmp_path / "two" / table).read_bytes() == (tmp_path / "one" / table).read_bytes()


def test_each_worker_is_sent_what_its_own_clients_start_from(monkeypatch):
    spec = RunSpec(method=fedsim.Local(lora_rank=2), backbone=TinyAttention(), data=tiny_data(), rounds=1)
    initial, sent = spec.initial_slots(), []
    workload = Workload(spec.method, spec.population, spec.layout, initial, spec.local)
    aggregator = Aggregator(workload, Workers(count=2))
    state = spec.state(0, initial)
    for slot, value in initial.items():
        state.bank.write(slot, {client: value + client for client in range(5)}, 6, 0)
    monkeypatch.setattr(Workers, "scatter_tensors", lambda self, of_worker: sent.extend(of_worker) or of_worker[0])
    dispatch = aggregator.dispatch(state, [0, 1, 2, 4])
    mine = {assignment.client for block in dispatch.blocks for assignment in block}
    assert len(mine) == 2
    for own, share in zip((mine, {0, 1, 2, 4} - mine), sent, strict=True):
        assert share["clients"].tolist() == [0, 1, 2, 4]
        assert share.keys() - {"clients", "cohort", "is_new"} == {
            f"{slot}|{client}" for slot in initial for client in own
        }


def test_workers_on_gpus_need_no_nccl(monkeypatch):
    done = []
    monkeypatch.setattr(launch.dist, "init_process_group", done.append)
    monkeypatch.setattr(lightning.fabric, "Fabric", lambda: done.append("fabric"))
    monkeypatch.setenv("LT_CLI_USED", "1")
    for n_workers in ("1", "2"):
        monkeypatch.setenv("WORLD_SIZE", n_workers)
        launch.launch.__wrapped__()
    assert done == ["fabric", "gloo", "fabric"], "Fabric takes the group that is there"


UNSEEDED = """
import sys, torch, fedsim
sys.path.insert(0, {tests!r})
from conftest import TinyAttention
data = fedsim.from_tensors(torch.randn(90, 12), torch.arange(90) % 3, torch.arange(90) // 10)
try:
    fedsim.simulate(method=fedsim.FedIT(lora_rank=2), backbone=TinyAttention(), data=data, rounds=1, out=sys.argv[1])
except fedsim.errors.Fault as fault:
    print(f"echo {{fault.is_echo}}: {{fault}}")
"""


def test_a_worker_with_other_weights_or_labels_is_named(monkeypatch):
    loaded = {"backbone": "a", "targets": "b"}
    others = [loaded, loaded | {"targets": "c"}, loaded, {"backbone": "d", "targets": "e"}]
    monkeypatch.setattr(Workers, "gather", lambda self, payload: [json.dumps(each).encode() for each in others])
    with pytest.raises(Fault, match=r"worker 1 has other targets; worker 3 has other backbone and targets\."):
        Workers().check_same(loaded)
    del others[3], others[1]
    Workers().check_same(loaded)


@pytest.mark.slow
def test_workers_that_have_loaded_other_data_are_named_before_anything_is_written(tmp_path):
    """A script that draws its data without a seed gives every worker data of its own."""
    script = tmp_path / "script.py"
    script.write_text(UNSEEDED.format(tests=str(ROOT / "tests")))
    done = run(fabric(2, str(script), tmp_path / "run"))
    for echo in (False, True):
        said = f"echo {echo}: Not every worker has loaded what worker 0 has: worker 1 has another inputs."
        assert said.replace("another", "other") in done.stdout, done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


def test_all_runs_of_a_process_share_one_group_which_nothing_would_give_back():
    groups = []
    for _ in range(2):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            groups.append([Workers.from_environment().group for _ in range(3)])
        finally:
            dist.destroy_process_group()
    (first, *rest), (later, *_) = groups
    assert all(group is first for group in rest)
    assert later is not first, "another process group needs a group of its own"


ENDS = """
import atexit
import os

import torch.distributed as dist

from fedsim.distributed.workers import Workers


def threads():
    return len(os.listdir("/proc/self/task"))


dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
dist.destroy_process_group()
before = threads()
atexit.register(lambda: print(dist.is_initialized(), threads() - before))
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
assert Workers.from_environment().group is not None and threads() > before
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_groups_and_their_threads_end_before_python_does(tmp_path):
    (tmp_path / "script.py").write_text(ENDS)
    done = run(python(tmp_path / "script.py"))
    assert done.stdout.split() == ["False", "0"], done.stdout + done.stderr
