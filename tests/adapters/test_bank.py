"""The bank: who holds which copy, and what it costs."""

import os
import sys

import pytest
import torch

from fedsim.adapters.bank import NEVER, Bank
from fedsim.adapters.layout import Slot

SLOT, OTHER = Slot("leaf", "q", "B"), Slot("root", "q", "A")


@pytest.fixture
def bank() -> Bank:
    return Bank({SLOT: torch.full((2, 3), 7.0), OTHER: torch.zeros(4)})


def copy(value: float) -> torch.Tensor:
    return torch.full((2, 3), value)


def groups(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.long)


def test_a_row_that_was_never_written_reads_as_the_initial_value(bank):
    assert torch.equal(bank.read(SLOT, groups(0, 5)), torch.full((2, 2, 3), 7.0))
    bank.write(SLOT, {1: copy(1)}, 3, 0)
    assert bank.read(SLOT, groups(2, 1, 0))[:, 0, 0].tolist() == [7, 1, 7]


def test_a_group_beyond_the_stack_and_a_client_without_group_read_as_the_initial_value(bank):
    bank.write(SLOT, {1: copy(1)}, 3, 4)
    bank.write(SLOT, {2: copy(2)}, 3, 5)
    assert bank.read(SLOT, groups(NEVER, 1, 3, 99))[:, 0, 0].tolist() == [7, 1, 7, 7]
    assert bank.written_in(SLOT, groups(NEVER, 1, 3, 99)).tolist() == [NEVER, 4, NEVER, NEVER]


def test_the_last_group_is_not_what_a_client_without_group_reads(bank):
    bank.write(SLOT, {2: copy(1)}, 3, 0)
    assert bank.read(SLOT, groups(NEVER))[0, 0, 0] == 7


def test_reading_no_group_gives_an_empty_stack(bank):
    assert bank.read(SLOT, groups()).shape == (0, 2, 3)
    bank.write(SLOT, {0: copy(1)}, 1, 0)
    assert bank.read(SLOT, groups()).shape == (0, 2, 3)


def test_a_copy_read_is_the_readers_own(bank):
    bank.write(SLOT, {0: copy(1)}, 2, 0)
    bank.read(SLOT, groups(0, 1)).fill_(100)
    assert bank.read(SLOT, groups(0, 1))[:, 0, 0].tolist() == [1, 7]


def test_a_copy_written_does_not_change_with_the_writers_tensor(bank):
    value = copy(1)
    bank.write(SLOT, {0: value}, 1, 0)
    value.fill_(100)
    assert bank.read(SLOT, groups(0))[0, 0, 0] == 1


def test_the_round_of_the_last_writing_is_kept_for_every_row(bank):
    assert bank.written_in(SLOT, groups(0, 1)).tolist() == [NEVER, NEVER]
    bank.write(SLOT, {0: copy(1), 2: copy(2)}, 3, 0)
    bank.write(SLOT, {2: copy(3)}, 3, 5)
    assert bank.written_in(SLOT, groups(0, 1, 2)).tolist() == [0, NEVER, 5]
    assert bank.read(SLOT, groups(2))[0, 0, 0] == 3
    assert bank.written_in(OTHER, groups(0)).tolist() == [NEVER]


def test_widening_keeps_what_was_written_and_never_narrows(bank):
    bank.write(SLOT, {1: copy(1)}, 2, 3)
    bank.write(SLOT, {6: copy(6)}, 7, 4)
    bank.write(SLOT, {0: copy(2)}, 1, 5)
    assert bank.read(SLOT, torch.arange(7))[:, 0, 0].tolist() == [2, 1, 7, 7, 7, 7, 6]
    assert bank.written_in(SLOT, torch.arange(7)).tolist() == [5, 3, NEVER, NEVER, NEVER, NEVER, 4]


def test_state_round_trips_with_written_rows_only(bank):
    bank.write(SLOT, {1: copy(1), 4: copy(4)}, 6, 2)
    tensors = bank.state_tensors()
    assert {tuple(t.shape) for name, t in tensors.items() if name.endswith("|rows")} == {(2, 2, 3)}
    restored = Bank(bank.initial)
    restored.write(OTHER, {0: torch.ones(4)}, 1, 0)  # goes: a restored bank holds the checkpoint and nothing else
    restored.load_state_tensors(tensors)
    everyone = torch.arange(-1, 7)
    for slot in (SLOT, OTHER):
        assert torch.equal(restored.read(slot, everyone), bank.read(slot, everyone))
        assert torch.equal(restored.written_in(slot, everyone), bank.written_in(slot, everyone))
    again = restored.state_tensors()
    assert list(again) == list(tensors)
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_an_empty_bank_round_trips(bank):
    restored = Bank(bank.initial)
    restored.load_state_tensors(bank.state_tensors())
    assert not restored.rows


def test_a_checkpoint_of_another_run_is_refused(bank):
    foreign = Bank({SLOT._replace(site="elsewhere"): torch.zeros(2, 3)})
    foreign.write(SLOT._replace(site="elsewhere"), {0: copy(1)}, 1, 0)
    with pytest.raises(ValueError, match=r"slot 'leaf/elsewhere/B' \(2, 3\), which this run has not"):
        bank.load_state_tensors(foreign.state_tensors())
    tall = Bank({SLOT: torch.zeros(4, 3)})
    tall.write(SLOT, {0: torch.zeros(4, 3)}, 1, 0)
    with pytest.raises(ValueError, match=r"slot 'leaf/q/B' \(4, 3\), which this run has not"):
        bank.load_state_tensors(tall.state_tensors())


def resident_bytes() -> int:
    """Bytes of this process in memory, from Linux's accounting."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_private_slot_of_a_thousand_clients_costs_nothing_until_they_write():
    shape, n_clients = (256, 1024), 1000  # 1 MiB a copy, 1 GiB if all were there
    bank = Bank({SLOT: torch.zeros(shape)})
    bank.read(SLOT, torch.tensor([3]))
    before = resident_bytes()
    bank.write(SLOT, {3: torch.ones(shape), 700: torch.ones(shape)}, n_clients, 0)
    assert resident_bytes() - before < 16 * 2**20
    assert sum(t.numel() for t in bank.state_tensors().values()) < 3 * 2**18


def test_the_only_copy_of_a_slot_may_change_its_lora_rank_and_comes_back_from_a_checkpoint(bank):
    wide = torch.arange(10.0).view(2, 5)
    bank.write(SLOT, {0: copy(1)}, 1, 3)
    bank.write(SLOT, {0: wide}, 1, 4)
    assert torch.equal(bank.read(SLOT, groups(0, 0))[1], wide)
    again = Bank(bank.initial)
    again.load_state_tensors(bank.state_tensors())
    assert torch.equal(again.read(SLOT, groups(0))[0], wide)
