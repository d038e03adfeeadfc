"""Objectives against torch's own losses and against arithmetic by hand."""

import pytest
import torch
import torch.nn.functional as F

from fedsim.adapters.layout import Slot
from fedsim.options import IGNORED
from fedsim.parts.objectives import column_overlap, cross_entropy, label_logit, proximal, tier_overlap


def test_cross_entropy_is_torchs_mean_for_one_client():
    logits, targets = torch.randn(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
    torch.testing.assert_close(cross_entropy(logits, targets, {}, {}), F.cross_entropy(logits, targets))


def test_cross_entropy_of_stacked_clients_is_one_loss_each():
    logits, targets = torch.randn(3, 6, 4), torch.randint(4, (3, 6))
    losses = cross_entropy(logits, targets, {}, {})
    expected = torch.stack([F.cross_entropy(one, target) for one, target in zip(logits, targets, strict=True)])
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_the_logit_of_the_label_is_a_mean_over_the_samples_that_are_there(shape):
    logits, targets = torch.randn(*shape, 4, 5), torch.randint(5, (*shape, 4))
    targets[..., 2] = IGNORED
    one = logits.reshape(-1, 4, 5), targets.reshape(-1, 4)
    expected = [sum(row[i, t[i]] for i in (0, 1, 3)) / 3 for row, t in zip(*one, strict=True)]
    torch.testing.assert_close(label_logit(logits, targets, {}, {}).reshape(-1), torch.stack(expected))


def test_the_proximal_term_is_half_mu_times_the_squared_distance_of_each_client():
    logits, targets = torch.randn(3, 6, 4), torch.randint(4, (3, 6))
    received = {Slot("adapter", "q", "A"): torch.randn(3, 2, 5), Slot("head", "head", "b"): torch.randn(3, 4)}
    tensors = {
        slot: value + torch.tensor([0.0, 1.0, 2.0]).view(3, *[1] * (value.ndim - 1)) for slot, value in received.items()
    }
    found = proximal(0.5, logits, targets, tensors, received)
    expected = cross_entropy(logits, targets, {}, {}) + 0.25 * torch.tensor([0.0, 14.0, 4 * 14.0])
    torch.testing.assert_close(found, expected)
    one = [{slot: value[1] for slot, value in held.items()} for held in (tensors, received)]
    torch.testing.assert_close(proximal(0.5, logits[1], targets[1], *one), expected[1])


def test_overlap_of_columns_is_zero_when_orthogonal_and_the_number_of_columns_when_equal_and_orthonormal():
    columns = torch.eye(6)
    assert column_overlap(columns[:, :2], columns[:, 2:4]) == 0
    assert column_overlap(columns[:, :2], columns[:, :2]) == 2
    assert column_overlap(columns[:, :2], 3 * columns[:, 1:3]) == 9


def test_tier_overlap_sums_the_sites_that_carry_both_tiers():
    columns = torch.eye(6)
    tensors = {
        Slot("root", "q", "B"): columns[:, :2],
        Slot("leaf", "q", "B"): 2 * columns[:, 1:3],
        Slot("root", "v", "B"): columns[:, :2],
        Slot("leaf", "v", "B"): columns[:, :2],
        Slot("leaf", "v", "A"): torch.full((2, 6), 100.0),
        Slot("cluster", "v", "B"): torch.full((6, 2), 100.0),
        Slot("leaf", "only", "B"): torch.full((6, 2), 100.0),
    }
    assert tier_overlap(tensors, "root", "leaf") == 4 + 2


def test_tier_overlap_moves_only_the_trained_tier_and_keeps_stacked_clients_apart():
    frozen = torch.randn(3, 6, 2)
    trained = torch.randn(3, 6, 2, requires_grad=True)
    tensors = {Slot("root", "q", "B"): frozen, Slot("leaf", "q", "B"): trained}
    overlap = tier_overlap(tensors, "root", "leaf")
    assert overlap.shape == (3,)
    (gradient,) = torch.autograd.grad(overlap.sum(), trained)
    torch.testing.assert_close(gradient, 2 * frozen @ frozen.mT @ trained.detach())


def test_tier_overlap_refuses_tiers_that_never_meet():
    with pytest.raises(ValueError, match="both the tiers 'root' and 'leaf'"):
        tier_overlap({Slot("leaf", "q", "B"): torch.ones(2, 2)}, "root", "leaf")
