"""What a group holds and what its outsiders do: means in loops, places of those who come late."""

import pytest
import torch

from fedsim.adapters.bank import NEVER, Bank
from fedsim.adapters.layout import Slot
from fedsim.parts.experts import inside_and_outside, last_uploads, rename_tiers, with_latecomers
from fedsim.round import ClientUpdate, Population

A, B = Slot("cluster", "q", "A"), Slot("cluster", "q", "B")


@pytest.mark.parametrize("groups", [[1, 2, 1, 3, 2, 1], [1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6], [1, 0, 2, 0, 2, 1]])
def test_both_means_are_those_of_members_and_of_all_others_each_client_alike(groups):
    values = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0))
    inside, outside = inside_and_outside(values, torch.tensor(groups), max(groups) + 1)
    for group in set(groups) - {0}:
        members = [k for k in range(6) if groups[k] == group]
        others = [k for k in range(6) if groups[k] != group]
        torch.testing.assert_close(inside[group], sum(values[k] for k in members) / len(members))
        assert (group in outside) == bool(others)
        if others:
            torch.testing.assert_close(outside[group], sum(values[k] for k in others) / len(others))
    for means in (inside, outside):
        torch.testing.assert_close(means[0], values.mean(0))


def test_a_group_of_which_nobody_took_part_keeps_its_mean_but_not_its_outsiders():
    values = torch.tensor([[1.0], [3.0]])
    inside, outside = inside_and_outside(values, torch.tensor([1, 3]), 4)
    assert {group: value.item() for group, value in inside.items()} == {0: 2, 1: 1, 3: 3}
    assert {group: value.item() for group, value in outside.items()} == {0: 2, 1: 3, 2: 2, 3: 1}


def test_a_latecomer_joins_the_group_whose_experts_are_nearest_and_its_ancestors():
    bank = Bank({B: torch.zeros(2, 1)})
    bank.write(B, {1: torch.tensor([[1.0], [0]]), 2: torch.tensor([[0], [1.0]]), 3: torch.tensor([[-1.0], [0]])}, 4, 0)
    deep, shallow = torch.tensor([1, 2, 3, 0, 0]), torch.tensor([1, 2, 2, 0, 0])
    learnt = {"groups.0": shallow, "groups.1": deep, "labels": torch.tensor([0, 1, 2, NEVER, NEVER])}
    late = [ClientUpdate(3, 5, {B: torch.tensor([[-0.6], [0.5]])}), ClientUpdate(0, 5, {B: torch.zeros(2, 1)})]
    joined, log = with_latecomers(bank, learnt, late, lambda slot: deep, "frobenius")
    assert joined["groups.1"].tolist() == [1, 2, 3, 3, 0]
    assert joined["groups.0"].tolist() == [1, 2, 2, 2, 0]
    assert joined["labels"].tolist() == [0, 1, 2, 2, NEVER]
    assert log == {"joined": {"3": 2}}
    assert learnt["groups.1"].tolist() == [1, 2, 3, 0, 0], "what was learnt before is not touched"


def test_those_absent_count_with_what_they_last_uploaded_and_those_never_met_not_at_all():
    places = {slot._replace(tier="local"): torch.zeros(1) for slot in (A, B)}
    bank, population = Bank(dict(places)), Population(5, (0, 1, 2, 3), (4,), (4, 4, 0, 4, 4))
    for slot in places:
        bank.write(slot, {1: torch.tensor([1.0]), 2: torch.tensor([2.0]), 4: torch.tensor([4.0])}, 5, 0)
    found = last_uploads(bank, [ClientUpdate(0, 4, {A: torch.zeros(1), B: torch.zeros(1)})], "local", population)
    assert [update.client for update in found] == [0, 1], "3 was never met, 2 has no data, 4 is unseen"
    assert found[1].tensors == {A: torch.tensor([1.0]), B: torch.tensor([1.0])}
    assert found[1].n_samples == 4


def test_tiers_are_renamed_and_others_left_out():
    update = ClientUpdate(0, 1, {B: torch.zeros(1), Slot("mix", "depth.0", "gate"): torch.ones(())})
    assert list(rename_tiers(update, {"cluster": "local"}).tensors) == [B._replace(tier="local")]
