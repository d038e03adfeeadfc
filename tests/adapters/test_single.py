"""All tiers of a client as one change of each linear map, against dense sums."""

import pytest
import torch

from fedsim.adapters.layout import Site, Slot
from fedsim.adapters.single import LowRankChange, head_changes, joined, single_adapter

Q = Site("q", "qkv", 4, 4, 0, rows=(0, 4))
V = Site("v", "qkv", 4, 4, 0, rows=(8, 12))
HEAD, OTHER = Site("head", "head", 4, 3, 1, is_head=True), Site("out", "out", 4, 2, 1, is_head=True)


def made(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_slices_of_a_fused_map_and_tiers_with_their_scales_become_one_change():
    tensors = {
        Slot(tier, site, factor): made(4, rank) if factor == "B" else made(rank, 4)
        for tier, rank in (("root", 1), ("leaf", 2))
        for site in "qv"
        for factor in "AB"
    }
    (change,) = single_adapter([Q, V, HEAD], {"qkv": 12}, tensors, {"root": 2.0, "leaf": 0.5}).values()
    expected = torch.zeros(12, 4)
    for site in (Q, V):
        for tier, scale in (("root", 2.0), ("leaf", 0.5)):
            product = tensors[Slot(tier, site.name, "B")] @ tensors[Slot(tier, site.name, "A")]
            expected[slice(*site.rows)] += scale * product
    torch.testing.assert_close(change.product(), expected)


def test_a_middle_factor_is_taken_into_b():
    tensors = {Slot(tier, "q", f): made(*s) for tier in "xy" for f, s in (("A", (2, 4)), ("B", (4, 2)))}
    H = tensors[Slot("y", "q", "H")] = made(2, 2)
    (change,) = single_adapter([Q], {"qkv": 12}, tensors, {"x": 2.0, "y": 0.5}).values()
    expected = 2 * made(4, 2) @ made(2, 4) + 0.5 * made(4, 2) @ H @ made(2, 4)
    torch.testing.assert_close(change.product()[:4], expected)


def test_maps_without_adapters_and_classifiers_have_no_change():
    tensors = {
        Slot("root", "q", "A"): made(1, 4),
        Slot("root", "q", "B"): made(4, 1),
        Slot("root", "head", "W"): made(3, 4),
    }
    assert single_adapter([Q, V, HEAD], {"qkv": 12}, tensors, {"root": 1.0}).keys() == {"qkv"}
    assert single_adapter([HEAD, Site("k", "k", 4, 4, 0)], {"head": 3, "k": 4}, tensors, {"root": 1.0}) == {}


def test_a_classifiers_change_is_the_sum_over_tiers_of_its_own_weights_and_biases():
    tensors = {Slot("root", "head", "W"): made(3, 4), Slot("leaf", "head", "W"): made(3, 4) + 1}
    tensors |= {Slot("root", "head", "b"): made(3), Slot("leaf", "head", "b"): made(3) + 1}
    tensors |= {Slot("root", "out", "W"): made(2, 4), Slot("root", "q", "B"): made(4, 1)}
    changes = head_changes([Q, HEAD, OTHER, Site("none", "none", 4, 3, 1, is_head=True)], tensors)
    assert changes.keys() == {"head", "out"}
    torch.testing.assert_close(changes["head"].weight, 2 * made(3, 4) + 1)
    torch.testing.assert_close(changes["head"].bias, 2 * made(3) + 1)
    torch.testing.assert_close(changes["out"].weight, made(2, 4))
    assert changes["out"].bias is None


@pytest.mark.parametrize(("n_in", "n_out"), [(3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("ranks", [(1, 1), (2, 2), (3, 4)])
def test_a_sum_of_changes_has_no_more_directions_than_the_map_is_wide(n_in, n_out, ranks):
    changes = [LowRankChange(made(rank, n_in), made(n_out, rank)) for rank in ranks]
    found = joined(changes)
    torch.testing.assert_close(found.product(), sum(change.product() for change in changes), rtol=1e-5, atol=1e-5)
    assert len(found.A) == found.B.shape[1] == min(sum(ranks), n_in, n_out)


def test_directions_that_are_zero_go_but_one_stays():
    A, B = made(3, 4), made(4, 3)
    A[0], B[:, 2] = 0, 0
    found = joined([LowRankChange(A, B)])
    assert torch.equal(found.A, A[1:2])
    assert torch.equal(found.B, B[:, 1:2])
    assert len(joined([LowRankChange(torch.zeros(2, 4), B[:, :2])]).A) == 1
