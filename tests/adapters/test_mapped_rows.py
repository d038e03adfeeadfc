"""Rows in a file: they read as a tensor's do, and cost neither memory nor space before they are written."""

import errno
import os

import pytest
import torch
from conftest import Stopped

import fedsim
from fedsim.adapters.bank import Bank
from fedsim.adapters.layout import Slot
from fedsim.adapters.mapped_rows import MappedRows
from fedsim.storage.disk import DiskFull
from fedsim.storage.wire import digest_of

SLOT = Slot("leaf", "q", "B")


def test_rows_read_and_write_as_those_of_a_tensor(tmp_path):
    rows, expected = MappedRows(tmp_path, 50, torch.Size((3, 5))), torch.zeros(50, 3, 5)
    values = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([7, 0, 49, 20])
    rows[places] = expected[places] = values
    rows[3] = expected[3] = values[0]
    for groups in (places, torch.arange(50), torch.tensor([], dtype=torch.long), torch.tensor([3, 3])):
        assert torch.equal(rows[groups], expected[groups])
    assert torch.equal(rows[49], expected[49])
    rows[places].fill_(9.0)
    assert torch.equal(rows[places], values), "what was read is the reader's own"
    rows.widen(80)
    assert (len(rows), rows.shape) == (80, torch.Size((80, 3, 5)))
    assert torch.equal(rows[torch.arange(50)], expected)
    assert not list(tmp_path.iterdir()), "the file has no name that a kill could leave"


def test_a_million_rows_take_no_space_before_they_are_written(tmp_path):
    rows = MappedRows(tmp_path, 10**6, torch.Size((64, 64)))  # 16 GB if all were there
    rows[999_999] = torch.ones(64, 64)
    assert float(rows[torch.tensor([999_999, 5])].sum()) == 64 * 64
    assert os.fstat(rows.file).st_blocks * 512 < 2**20


def test_a_bank_with_a_folder_holds_the_bits_of_one_in_memory(tmp_path):
    random = torch.Generator().manual_seed(0)
    banks = [Bank({SLOT: torch.ones(2, 3)}), Bank({SLOT: torch.ones(2, 3)}, folder=tmp_path)]
    for round_index, n_groups in enumerate((1, 4, 4, 9)):
        copies = {group: torch.randn(2, 3, generator=random) for group in range(round_index % 2, n_groups, 2)}
        for bank in banks:
            bank.write(SLOT, copies, n_groups, round_index)
        everyone = torch.arange(-1, 12)
        assert torch.equal(banks[0].read(SLOT, everyone), banks[1].read(SLOT, everyone))
        changes = [bank.changes() for bank in banks]
        assert digest_of(changes[0]) == digest_of(changes[1])
        assert changes[0][f"{SLOT}|groups"].tolist() == sorted(copies)
        assert not banks[0].changes()
    assert isinstance(banks[1].rows[SLOT], MappedRows)
    assert digest_of(banks[0].state_tensors()) == digest_of(banks[1].state_parts())
    again = Bank({SLOT: torch.ones(2, 3)}, folder=tmp_path)
    again.load_state_tensors(banks[0].state_tensors())
    assert digest_of(again.state_tensors()) == digest_of(banks[0].state_tensors())
    assert not again.changes(), "what was restored is in the checkpoint already"


METHODS = {
    "local": fedsim.Local(lora_rank=2),
    "fedsalora": fedsim.FedSALoRA(lora_rank=2),
    "hilora": fedsim.HiLoRA(lora_rank=2),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_run_ends_in_the_same_bits_with_its_copies_on_disk_and_goes_on_with_either(
    tiny_run, stop_after, monkeypatch, name
):
    common = {"method": METHODS[name], "rounds": 5, "cohort_size": 3}
    whole = tiny_run("whole", **common)
    assert tiny_run("disk", bank="disk", **common).digest == whole.digest
    for first, second in (("disk", "memory"), ("memory", "disk")):
        stop_after(3)
        with pytest.raises(Stopped):
            tiny_run(first, bank=first, out=whole.folder.parent / f"from-{first}", **common)
        monkeypatch.undo()
        again = tiny_run(bank=second, out=whole.folder.parent / f"from-{first}", resume=True, **common)
        assert again.digest == whole.digest
        for table in ("metrics.csv", "clients.csv"):
            assert (again.folder / table).read_bytes() == (whole.folder / table).read_bytes()


def test_a_disk_that_is_full_while_copies_are_written_is_one_message(tiny_run, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    common = {"method": fedsim.Local(lora_rank=2), "bank": "disk"}
    whole = tiny_run("whole", **common)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(DiskFull, match=r"The disk is full: '.*run' could not be written .* with --resume"):
            tiny_run("run", **common)
    assert tiny_run("run", resume=True, **common).digest == whole.digest
