"""All clients' rows in one tensor: they read as a list of tensors does, and stand for the same data."""

import pytest
import torch

import fedsim
from fedsim.data.index_tables import IndexTables
from fedsim.report.split import describe_split, label_counts
from fedsim.storage.provenance import fingerprint

LISTED = [torch.tensor([4, 0, 2]), torch.tensor([], dtype=torch.long), torch.tensor([7])]


def test_tables_read_like_the_list_that_they_were_made_of():
    tables = IndexTables.of(LISTED)
    assert len(tables) == 3
    assert all(map(torch.equal, tables, LISTED))
    assert all(map(torch.equal, tables[1:], LISTED[1:]))
    assert torch.equal(tables[-1], LISTED[-1])
    assert tables.sizes.tolist() == [3, 0, 1]
    assert IndexTables.of(tables) is tables
    with pytest.raises(IndexError):
        tables[3]


def test_a_tensor_of_equal_tables_is_one_client_a_row():
    rows = torch.arange(12).view(4, 3)
    assert all(map(torch.equal, IndexTables.of(rows[:, :2]), rows[:, :2]))
    assert len(IndexTables.of(rows[:, :0])) == 4


@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_their_fingerprint_is_that_of_the_list(kind):
    """Runs that were begun with lists go on."""
    listed = [rows.to(kind) for rows in LISTED]
    assert fingerprint([IndexTables.of(listed), 3]) == fingerprint([listed, 3])
    assert fingerprint(IndexTables.of(listed)) != fingerprint(IndexTables.of(listed[::-1]))


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8])
def test_own_tensors_are_split_client_by_client_in_their_order(kind):
    owners = torch.randint(40, (501,), generator=torch.Generator().manual_seed(0)).to(kind)
    data = fedsim.from_tensors(torch.zeros(501, 2), torch.arange(501) % 3, owners, test_fraction=0.3)
    for client in range(int(owners.max()) + 1):
        rows = (owners == client).nonzero().flatten()
        n_train = len(rows) - round(0.3 * len(rows))
        assert torch.equal(data.train[client], rows[:n_train])
        assert torch.equal(data.test[client], rows[n_train:])


def test_labels_are_counted_client_by_client():
    data = fedsim.from_tensors(torch.zeros(9, 2), [0, 1, 2, 0, 1, 2, 2, 2, 0], [0, 0, 0, 0, 2, 2, 2, 2, 2])
    expected = [[int((data.targets[rows] == k).sum()) for k in range(3)] for rows in data.train]
    assert label_counts(data, data.train).tolist() == expected
    assert describe_split(data)["by_client"]["train_sizes"] == [3, 0, 4]
