"""Index tables over one tensor: what a local step sees, and where the tensor is kept."""

import pytest
import torch

import fedsim
from fedsim.data.placement import nearest_place, placed


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


@pytest.mark.parametrize(
    ("n_bytes", "place"), [(40, "device"), (50, "device"), (60, "pinned"), (500, "pinned"), (501, "mapped")]
)
def test_data_are_kept_as_near_to_the_device_as_they_fit(n_bytes, place):
    assert nearest_place(n_bytes, free_device=100, free_host=1000) == place


def test_on_a_cpu_data_stay_where_they_are():
    data = tokens()
    assert placed(data, torch.device("cpu")) is data
