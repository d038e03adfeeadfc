"""What only the batched engine does: blocks, their size, running out of memory, finding the culprit."""

import json
import math
import re
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from conftest import TinyAttention, tiny_data
from lightning.fabric import Fabric
from test_engines_agree import (
    CASES,
    CLIENTS,
    LAYOUT,
    SIZES,
    assert_same,
    assignments,
    backbone,
    both_engines,
    federation,
    overlap_too,
)

import fedsim
from fedsim.engines.batched import BatchedEngine
from fedsim.engines.block_size import clients_that_fit, cpu_block_size, measured_block_size, trial_assignment
from fedsim.engines.sequential import SequentialEngine
from fedsim.models.client_module import ClientModule, is_out_of_memory
from fedsim.plan import Plan
from fedsim.round import ClientError, Population
from fedsim.storage.run_folder import load_checkpoint

PLAN = Plan(population=Population(CLIENTS, tuple(range(CLIENTS)), (), SIZES))


def engine(kind=BatchedEngine, precision="32-true", is_compiled=False, mixing=None, **options):
    module = ClientModule(backbone(), LAYOUT.sites, is_compiled, mixing)
    options = {"block_size": CLIENTS} | options if kind is BatchedEngine else options
    return kind(Fabric(accelerator="cpu", devices=1, precision=precision), module, federation(), 7, **options)


def by_client(updates):
    return {update.client: update for update in updates}


# numbers that are not finite


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("name", [name for name in CASES if name != "nothing trained"])
def test_a_client_that_is_not_finite_leaves_the_others_of_its_block_alone(name, is_static):
    """Whatever makes it so, in whatever clients may differ: masks, padding, clipping, mixing, corrections."""
    case = dict(CASES[name])
    batched = engine(mixing=case.pop("mixing", None), is_static=is_static)
    plan, sick, block = replace(PLAN, objective=overlap_too), 2, assignments(**case)
    expected = by_client(batched.local_update(plan, [block]))
    nan = {slot: torch.full_like(tensor, torch.nan) for slot, tensor in block[sick].tensors.items()}
    block[sick] = replace(block[sick], tensors=nan)
    found = by_client(batched.local_update(plan, [block]))
    assert not math.isfinite(found.pop(sick).logs.get("train_loss", math.nan))
    del expected[sick]
    assert_same(found, expected)


# memory


def little_memory(monkeypatch, fits: int) -> list[int]:
    """Let passes with more than `fits` clients run out of memory after their backward pass; return what was tried."""
    real, tried = ClientModule.training_step, []

    def training_step(self, batch, batch_index=0):
        tried.append(len(self.rows.sizes))
        losses = real(self, batch, batch_index)
        if tried[-1] > fits:
            losses.sum().backward()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return losses

    monkeypatch.setattr(ClientModule, "training_step", training_step)
    return tried


@pytest.mark.parametrize(("fits", "halvings"), [(4, [5]), (2, [5]), (1, [5, 2])])
@pytest.mark.parametrize("name", ["uneven data", "everything"])
def test_out_of_memory_halves_the_pass_and_does_the_same_step_again(monkeypatch, name, fits, halvings):
    (expected, _), _ = both_engines(CASES[name], 1)
    tried = little_memory(monkeypatch, fits)
    case = dict(CASES[name])
    batched = engine(mixing=case.pop("mixing", None))
    with pytest.warns(UserWarning, match="Out of memory with . clients in one pass; from here on") as caught:
        updates = batched.local_update(replace(PLAN, objective=overlap_too), [assignments(**case)])
    assert_same(by_client(updates), expected)
    assert [size for size in tried if size > fits] == halvings, "five of the six have data"
    assert len(caught) == len(halvings), "one warning for each, and the smaller pass is kept"
    assert batched.block_size == CLIENTS, "blocks stay as they were dealt"


CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError(CUBLAS), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"), False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("out of resource: shared memory, Required: 262144, Hardware limit: 232448"), False),
    ],
)
def test_whoever_says_that_memory_ran_out_is_understood(error, is_memory):
    assert is_out_of_memory(error) == is_memory


def test_a_pass_is_halved_when_a_library_runs_out_of_memory(monkeypatch):
    tried, real = [], ClientModule.training_step

    def training_step(self, batch, batch_index=0):
        tried.append(len(self.rows.sizes))
        if tried[-1] > 3:
            raise RuntimeError(CUBLAS)
        return real(self, batch, batch_index)

    monkeypatch.setattr(ClientModule, "training_step", training_step)
    with pytest.warns(UserWarning, match="Out of memory with 5 clients in one pass"):
        engine().local_update(PLAN, [assignments()])
    assert tried[:2] == [5, 2]


def test_a_client_that_does_not_fit_alone_is_named():
    batched = engine()

    def training_step(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    batched.module.training_step = training_step
    message = r"client 0 failed in round 2.*out of memory"
    with pytest.warns(UserWarning, match="Out of memory"), pytest.raises(ClientError, match=message):
        batched.local_update(PLAN, [assignments()])


@pytest.mark.parametrize(
    ("available", "one", "two", "fits"), [(1000, 60, 70, 80), (100, 60, 110, 1), (1000, 100, 100, 751)]
)
def test_clients_that_fit_follow_from_two_measurements(available, one, two, fits):
    """85 % of 1000 bytes less 50 that do not depend on clients, at 10 a client, are 80 clients."""
    assert clients_that_fit(available, one, two) == fits


def test_the_trial_step_runs_with_any_number_of_copies_of_a_client():
    trial = trial_assignment(PLAN, 0, assignments()[0].tensors, fedsim.LocalTraining())
    updates = engine().local_update(PLAN, [[trial] * 2])
    assert [update.client for update in updates] == [0, 0]
    assert updates[0].tensors.keys() == trial.tensors.keys()


@pytest.fixture
def fake_gpu(monkeypatch):
    """A device of 1000 bytes on which one client peaks at 60 and two at 70."""
    peaks = iter([60, 70])
    answers = {"max_memory_allocated": lambda _: next(peaks), "memory_allocated": lambda _: 40}
    answers |= {"mem_get_info": lambda _: (960, 1000), "empty_cache": lambda: None}
    for name, answer in (answers | {"reset_peak_memory_stats": lambda _: None}).items():
        monkeypatch.setattr(torch.cuda, name, answer)


def test_on_a_gpu_the_block_size_is_what_fits_by_a_trial(fake_gpu):
    trial = trial_assignment(PLAN, 0, assignments()[0].tensors, fedsim.LocalTraining())
    assert measured_block_size(engine(block_size=1), PLAN, trial) == 80


def test_the_trial_is_shown_the_longest_text_of_all_and_one_batch_of_it(fake_gpu, monkeypatch):
    batched, shapes = engine(block_size=1), []
    inputs = torch.zeros(len(batched.data.inputs), 5, dtype=torch.int32)
    for row in range(len(inputs)):
        inputs[row, : 1 + row % 4] = 1
    whole = batched.data = replace(batched.data, inputs=inputs, transform=lambda x: x, pad_token=0)

    def local_update(plan, blocks):
        shapes.extend(batched.data.batch(rows)[0].shape for rows in (batched.data.train[1], batched.data.test[1]))

    monkeypatch.setattr(batched, "local_update", local_update)
    trial = trial_assignment(PLAN, 1, assignments()[1].tensors, fedsim.LocalTraining(batch_size=2))
    measured_block_size(batched, PLAN, trial)
    assert [shape[1] for shape in shapes] == [4] * 4
    assert [shape[0] for shape in shapes] == [2, min(4, whole.test_size(1))] * 2
    assert batched.data is whole


def test_on_a_gpu_where_two_clients_do_not_fit_one_trains_at_a_time(fake_gpu, monkeypatch):
    little_memory(monkeypatch, fits=1)
    trial = trial_assignment(PLAN, 0, assignments()[0].tensors, fedsim.LocalTraining())
    with pytest.warns(UserWarning, match="Out of memory with 2 clients"):
        assert measured_block_size(engine(block_size=1), PLAN, trial) == 1


@pytest.mark.parametrize(
    ("batch_size", "n_cohort", "block_size"),
    [(8, 64, 16), (8, 16, 15), (15, 10, 8), (25, 19, 5), (25, 5, 4), (32, 10, 3), (128, 7, 1), (500, 7, 1), (16, 1, 1)],
)
def test_on_a_cpu_a_pass_has_about_128_samples_and_blocks_suit_two_workers(batch_size, n_cohort, block_size):
    assert cpu_block_size(fedsim.LocalTraining(batch_size=batch_size), n_cohort) == block_size


def test_a_resumed_run_keeps_the_block_size_that_was_measured(tiny_run, tmp_path, monkeypatch):
    sizes = []
    real = BatchedEngine.__init__
    monkeypatch.setattr(BatchedEngine, "__init__", lambda self, *a, **k: sizes.append(a[4]) or real(self, *a, **k))
    monkeypatch.setattr("fedsim.simulation.cpu_block_size", lambda *given: 3)  # as if it had been measured
    whole = tiny_run("whole", rounds=2)
    shutil.copytree(whole.folder, tmp_path / "half")
    newest = json.loads((tmp_path / "half/checkpoints/round-000002.json").read_text())
    assert newest["round_index"] == 2
    for path in (tmp_path / "half/checkpoints").glob("round-000002*"):
        path.unlink()
    monkeypatch.setattr("fedsim.simulation.cpu_block_size", lambda *given: 1)
    resumed = tiny_run("half", rounds=2, resume=True)
    assert sizes == [3, 3]
    assert resumed.digest == whole.digest


# failures


def test_the_client_whose_fault_it_is_is_found(monkeypatch):
    batched = engine()
    real = batched.data.train_steps

    def train_steps(client, *rest):
        if client == 3:
            raise RuntimeError("its disk is on fire")
        return real(client, *rest)

    monkeypatch.setattr(type(batched.data), "train_steps", lambda self, *a: train_steps(*a))
    with pytest.raises(ClientError, match="client 3 failed in round 2, stage 'train': its disk is on fire") as caught:
        batched.local_update(PLAN, [assignments()])
    assert caught.value.clients == (3,)


def test_clients_that_only_fail_together_are_all_named():
    made = assignments()
    made[1] = replace(made[1], local=replace(made[1].local, optimizer="sgd"))
    message = re.escape(f"clients {list(range(CLIENTS))} together failed in round 2, stage 'train'") + ".*optimizer"
    with pytest.raises(ClientError, match=message):
        engine().local_update(PLAN, [made])


def test_the_assignment_is_left_untouched():
    made = assignments()
    before = [{slot: tensor.clone() for slot, tensor in a.tensors.items()} for a in made]
    engine().local_update(PLAN, [made])
    for assignment, tensors in zip(made, before, strict=True):
        for slot, tensor in tensors.items():
            assert torch.equal(assignment.tensors[slot], tensor)
            assert not assignment.tensors[slot].requires_grad


# precision and compilation


@pytest.mark.parametrize("name", ["uneven data", "gates", "routers"])
@pytest.mark.parametrize("kind", [SequentialEngine, BatchedEngine])
def test_under_bf16_adapters_stay_in_fp32_and_come_out_nearly_as_in_fp32(kind, name):
    case = dict(CASES[name])
    mixing = case.pop("mixing", None)
    full = by_client(engine(kind, mixing=mixing).local_update(PLAN, [assignments(**case)]))
    mixed = by_client(engine(kind, "bf16-mixed", mixing=mixing).local_update(PLAN, [assignments(**case)]))
    start = {a.client: a.tensors for a in assignments(**case)}
    for client in (0, 2, 5):
        assert {tensor.dtype for tensor in mixed[client].tensors.values()} == {torch.float32}
        moved = torch.cat([(t - start[client][s]).flatten() for s, t in full[client].tensors.items()])
        apart = torch.cat([(mixed[client].tensors[s] - t).flatten() for s, t in full[client].tensors.items()])
        assert 0 < apart.norm() < 0.5 * moved.norm()
        assert mixed[client].logs["train_loss"] == pytest.approx(full[client].logs["train_loss"], rel=0.02)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true", "64-true"])
def test_a_precision_without_fp32_adapters_is_refused_before_anything_starts(
    tiny_run, tmp_path, monkeypatch, precision
):
    monkeypatch.setenv("LT_PRECISION", precision)
    message = rf"precision is {precision}.*32-true, bf16-mixed.*--precision"
    with pytest.raises(ValueError, match=message):
        tiny_run("refused")
    common = {"backbone": TinyAttention(), "rounds": 1}
    with pytest.raises(ValueError, match=message):
        fedsim.compare({"fedit": fedsim.FedIT()}, lambda seed: tiny_data(), out=tmp_path / "refused", **common)
    assert not (tmp_path / "refused").exists()


def test_when_compilation_fails_there_is_one_warning_and_the_same_result(monkeypatch):
    def compile(module):
        def call(*arguments):
            raise RuntimeError("no C++ compiler\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", compile)
    compiled = engine(is_compiled=True)
    with pytest.warns(UserWarning, match=r"torch.compile failed \(no C\+\+ compiler\); the run goes on") as caught:
        updates = compiled.local_update(PLAN, [assignments()])
    assert len(caught) == 1
    assert_same(by_client(updates), by_client(engine().local_update(PLAN, [assignments()])), tolerance=1e-7)


@pytest.mark.slow
def test_a_compiled_backbone_gives_the_same_result():
    made = [assignment for assignment in assignments() if SIZES[assignment.client] == 16]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        warnings.filterwarnings("error", "torch.compile failed")
        updates = engine(is_compiled=True).local_update(PLAN, [made])
    assert_same(by_client(updates), by_client(engine().local_update(PLAN, [made])))


def test_the_block_size_reaches_the_engine_and_the_run_folder_notes_the_machine(tiny_run):
    result = tiny_run(block_size=2, rounds=1)
    assert int(load_checkpoint(result.folder)[1]["block_size"]) == 2
    metrics = fedsim.storage.run_folder.RunFolder(result.folder).read_table("metrics.csv")
    assert metrics[0]["utilisation"] == "1.0", "one worker is always as busy as the mean"
    environment = json.loads((result.folder / "recipe.json").read_text())["environment"]
    assert (environment["workers"], environment["device"], environment["precision"]) == (1, "cpu", "32-true")
    with pytest.raises(ValueError, match=r"block_size is 0.*--block-size"):
        fedsim.simulate(
            method=fedsim.FedIT(), backbone=TinyAttention(), data=tiny_data(), rounds=1, out="x", block_size=0
        )
