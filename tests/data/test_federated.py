"""Index tables over one tensor: what a local step sees, and where the tensor is kept."""

import numpy as np
import pytest
import torch

import fedsim
from fedsim.data.federated import pick
from fedsim.data.placement import move_to_device


def tokens() -> fedsim.FederatedData:
    inputs = torch.tensor([[5, 6, 0, 0, 0], [7, 0, 8, 0, 0], [0, 0, 0, 0, 0], [1, 2, 3, 4, 0]], dtype=torch.int32)
    tables = [torch.tensor([0, 1, 2]), torch.tensor([3])]
    return fedsim.FederatedData(
        inputs, torch.arange(4), tables, tables, list("abcd"), transform=lambda x: x, pad_token=0
    )


def test_tokens_are_cut_to_the_longest_sequence_of_the_batch():
    data = tokens()
    assert data.lengths.tolist() == [2, 3, 1, 4], "padding inside counts, and an empty text keeps one place"
    assert data.batch(torch.tensor([0, 1]))[0].tolist() == [[5, 6, 0], [7, 0, 8]]
    assert data.batch(torch.tensor([2]))[0].tolist() == [[0]]
    inputs, targets = data.batch(torch.tensor([3, 0]))
    assert inputs.dtype == torch.int32
    assert (inputs.tolist(), targets.tolist()) == ([[1, 2, 3, 4], [5, 6, 0, 0]], [3, 0])


def test_an_epoch_visits_every_sample_once_and_steps_stop_in_the_middle_of_one():
    data = tokens()
    steps = [rows.tolist() for rows, _ in data.train_steps(0, 2, 5, torch.Generator().manual_seed(1))]
    assert [len(rows) for rows in steps] == [2, 1, 2, 1, 2]
    assert sorted(steps[0] + steps[1]) == sorted(steps[2] + steps[3]) == [0, 1, 2]
    assert list(data.train_steps(0, 2, 0, torch.Generator())) == []


def test_training_batches_are_augmented_with_the_clients_own_draws_and_test_batches_are_not():
    inputs = torch.zeros(6, 1)
    tables = [torch.arange(6)]
    data = fedsim.FederatedData(
        inputs, torch.zeros(6, dtype=torch.long), tables, tables, ["a"], augment=lambda x, draws: x + draws, n_draws=1
    )
    rows, draws = next(data.train_steps(0, 6, 1, torch.Generator().manual_seed(3)))
    assert draws.shape == (6, 1)
    assert torch.equal(data.batch(rows, draws)[0], draws)
    assert not data.batch(rows)[0].any()


def test_on_a_cpu_data_stay_where_they_are():
    data = tokens()
    assert move_to_device(data, torch.device("cpu")) is data


@pytest.mark.parametrize(("n_free", "moves"), [(112, False), (224, True)])
def test_data_move_to_a_gpu_where_they_take_half_of_what_is_free_and_else_stay_mapped(monkeypatch, n_free, moves):
    data, asked = tokens(), []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (n_free, 0))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: asked.append(device) or tensor)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pytest.fail("no second copy in memory"))
    moved = move_to_device(data, torch.device("cuda"))
    assert (moved is data) != moves
    assert bool(asked) == moves


def test_a_gpu_gets_rows_of_host_memory_by_way_of_pinned_memory_without_a_wait(monkeypatch):
    made, sent, empty, to = [], [], torch.empty, torch.Tensor.to

    def pinned(*shape, pin_memory=False, **options):
        made.append(pin_memory)
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *where, **how: sent.append((t, where, how)) or t)
    table, rows, gpu = torch.arange(12).view(4, 3), torch.tensor([2, 0]), torch.device("cuda")
    assert pick(table, rows, gpu).tolist() == [[6, 7, 8], [0, 1, 2]]
    assert made == [True]
    assert [(where, how) for _, where, how in sent] == [((gpu,), {"non_blocking": True})]
    monkeypatch.setattr(torch.Tensor, "to", to)
    assert pick(table, rows, torch.device("cpu")).tolist() == [[6, 7, 8], [0, 1, 2]]


def some(**changes):
    inputs, targets, owners = torch.randn(8, 3), torch.arange(8) % 2, torch.arange(8) // 4
    return {"inputs": inputs, "targets": targets, "client_of_sample": owners} | changes


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.tolist])
def test_arrays_and_lists_make_the_same_data_as_tensors(convert):
    expected, found = fedsim.from_tensors(**some()), fedsim.from_tensors(**{k: convert(v) for k, v in some().items()})
    wide = fedsim.from_tensors(**some(inputs=np.zeros((8, 3)), targets=np.arange(8, dtype=np.int32) % 2))
    assert torch.equal(found.targets, expected.targets)
    assert found.inputs.shape == expected.inputs.shape
    assert all(map(torch.equal, found.rows, expected.rows))
    assert (found.inputs.dtype, wide.inputs.dtype, wide.targets.dtype) == (torch.float32, torch.float32, torch.int64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"client_of_sample": torch.arange(8) - 1}, r"client_of_sample has -1 .*clients are numbered 0, 1, 2"),
        ({"client_of_sample": [0.5] * 8}, r"client_of_sample has 0.5 \(torch.float32\)"),
        ({"client_of_sample": torch.zeros(8, 1)}, r"client_of_sample has the shape \(8, 1\) for 8 inputs"),
        ({"targets": torch.rand(8)}, "targets are torch.float32; they must be whole numbers"),
        ({"targets": []}, "8 inputs have 0 targets"),
        ({"targets": ["cat"] * 8}, "targets are no tensor, and none can be made of them"),
        ({"inputs": [], "targets": [], "client_of_sample": []}, "inputs are empty"),
        ({"inputs": [[1.0], [1.0, 2.0]]}, "inputs are no tensor"),
    ],
)
def test_samples_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        fedsim.from_tensors(**some(**changes))
