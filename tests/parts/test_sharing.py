"""Who shares what."""

import pytest
import torch

from fedsim.adapters.bank import NEVER
from fedsim.adapters.layout import HEAD_TIER, Slot
from fedsim.parts.sharing import alone, everyone, is_private, one_copy, share_all, ungrouped, with_head
from fedsim.round import Population

POPULATION = Population(4, (0, 1, 2), (3,), (5, 5, 5, 5))
ADAPTER, HEAD = Slot("adapter", "q", "B"), Slot(HEAD_TIER, "head", "W")
CLUSTERS = torch.tensor([0, 1, 0, NEVER])


def test_everyone_holds_one_copy_unseen_clients_included():
    assert everyone(POPULATION).tolist() == [0, 0, 0, 0]
    assert share_all(ADAPTER, POPULATION).tolist() == [0, 0, 0, 0]


def test_alone_every_client_is_its_own_group():
    assert alone(POPULATION).tolist() == [0, 1, 2, 3]


def test_an_ungrouped_client_holds_no_copy():
    assert ungrouped(POPULATION).tolist() == [NEVER] * 4


@pytest.mark.parametrize(
    ("groups", "expected"), [([0, 1, 2], True), ([0, 0, 1], False), ([0, 2, 1], False), ([0], True), ([NEVER], False)]
)
def test_groups_are_private_only_when_client_and_group_coincide(groups, expected):
    assert is_private(torch.tensor(groups)) is expected


@pytest.mark.parametrize("policy", ["frozen", "global", "tier", "local"])
def test_the_head_policy_leaves_adapters_alone(policy):
    assert torch.equal(with_head(policy, ADAPTER, CLUSTERS, POPULATION), CLUSTERS)


def test_a_global_head_is_everyones_and_a_local_one_each_clients_own():
    assert torch.equal(with_head("global", HEAD, CLUSTERS, POPULATION), everyone(POPULATION))
    assert torch.equal(with_head("local", HEAD, CLUSTERS, POPULATION), alone(POPULATION))


def test_one_copy_for_all_but_a_head_of_ones_own():
    for policy in ("frozen", "global", "tier", "local"):
        assert torch.equal(one_copy(policy, ADAPTER, POPULATION), everyone(POPULATION))
    assert torch.equal(one_copy("local", HEAD, POPULATION), alone(POPULATION))
    assert torch.equal(one_copy("global", HEAD, POPULATION), everyone(POPULATION))
