"""Where trainable tensors live, how wide they are and how many bytes they take."""

import pytest
import torch

from fedsim.adapters.layout import HEAD_TIER, Layout, Site, Slot, byte_count, fit_rank, is_not_a, pad_rank, parse_slot

QUERY, VALUE = Site("q", "q", 16, 8, 0), Site("v", "v", 16, 8, 0)
HEAD, PLAIN_HEAD = (Site("head", "head", 8, 3, 1, is_head=True, has_bias=bias) for bias in (True, False))


def test_a_slot_reads_back_as_it_was_written():
    slot = Slot("leaf", "blocks.3.attn.qkv.v", "B")
    assert parse_slot(str(slot)) == slot


@pytest.mark.parametrize("text", ["", "root/q", "root/q/A/rows"])
def test_text_that_is_no_slot_is_refused(text):
    with pytest.raises(ValueError, match="tier/site/factor"):
        parse_slot(text)


def test_where_every_a_stays_as_it_is_all_else_is_trained():
    assert "".join(factor for factor in "ABHWb" if is_not_a(Slot("root", "q", factor))) == "BHWb"


def test_slots_come_tier_by_tier_then_site_by_site_with_their_shapes():
    layout = Layout((QUERY, VALUE), ("root", "leaf"), 4)
    pairs = [(tier, site) for tier in ("root", "leaf") for site in ("q", "v")]
    expected = {Slot(*pair, f): shape for pair in pairs for f, shape in (("A", (4, 16)), ("B", (8, 4)))}
    assert layout.shapes == expected
    assert list(layout.shapes) == list(expected)


def test_a_tier_with_a_middle_factor_has_an_h_of_its_lora_rank_squared_at_every_site():
    layout = Layout((QUERY, HEAD), ("root", "leaf"), 4, middle_tiers=("leaf",))
    assert [slot for slot in layout.shapes if slot.factor == "H"] == [Slot("leaf", "q", "H")]
    assert layout.shapes[Slot("leaf", "q", "H")] == (4, 4)
    with pytest.raises(ValueError, match=r"middle_tiers names \['stem'\]; the tiers are \('root', 'leaf'\)"):
        Layout((QUERY,), ("root", "leaf"), 4, middle_tiers=("stem",))


def test_factors_of_a_smaller_lora_rank_are_leading_parts_and_padding_keeps_their_product():
    B, H, A = torch.randn(8, 4), torch.randn(4, 4), torch.randn(4, 16)
    small = [fit_rank(t, factor, 3) for t, factor in ((B, "B"), (H, "H"), (A, "A"))]
    product = B[:, :3] @ H[:3, :3] @ A[:3]
    torch.testing.assert_close(small[0] @ small[1] @ small[2], product)
    padded = [pad_rank(t, factor, 5) for t, factor in zip(small, "BHA", strict=True)]
    assert [t.shape for t in padded] == [(8, 5), (5, 5), (5, 16)]
    torch.testing.assert_close(padded[0] @ padded[1] @ padded[2], product)
    stacked = torch.randn(2, 4, 4)
    assert torch.equal(fit_rank(stacked, "H", 2), stacked[:, :2, :2])
    assert torch.equal(pad_rank(stacked, "H", 6)[:, :4, :4], stacked)


HEADS = {"frozen": [], "global": [HEAD_TIER], "local": [HEAD_TIER], "tier": ["root", "leaf"]}


@pytest.mark.parametrize(("policy", "tiers"), HEADS.items())
def test_the_head_policy_decides_which_tiers_hold_the_classifier(policy, tiers):
    shapes = Layout((QUERY, HEAD), ("root", "leaf"), 4, policy).shapes
    heads = {slot: shape for slot, shape in shapes.items() if slot.site == "head"}
    assert heads == {Slot(tier, "head", f): shape for tier in tiers for f, shape in (("W", (3, 8)), ("b", (3,)))}
    assert {slot.tier for slot in shapes if slot.site == "q"} == {"root", "leaf"}


def test_a_head_without_bias_has_no_bias_slot():
    shapes = Layout((QUERY, PLAIN_HEAD), ("root",), 4, "tier").shapes
    assert Slot("root", "head", "W") in shapes
    assert Slot("root", "head", "b") not in shapes


@pytest.mark.parametrize("rank", [0, -1])
def test_a_lora_rank_below_one_is_refused(rank):
    with pytest.raises(ValueError, match=rf"lora_rank is {rank}; it must be 1 or more \(--method.lora-rank\)"):
        Layout((QUERY,), ("root",), rank)


def test_a_lora_rank_wider_than_a_site_is_refused_by_its_name():
    assert Layout((QUERY,), ("root",), 8)
    with pytest.raises(ValueError, match="lora_rank 9 exceeds the width 8 of site 'q'"):
        Layout((QUERY,), ("root",), 9)


def test_the_head_does_not_limit_the_lora_rank():
    assert Layout((QUERY, HEAD), ("root",), 8, "tier")


def test_all_problems_are_named_at_once():
    with pytest.raises(ValueError, match=r"lora_rank is 0.*no adapter site was found.*must be distinct"):
        Layout((HEAD,), ("root", "root"), 0)


def test_a_tier_may_not_take_the_heads_name():
    with pytest.raises(ValueError, match=f"other than '{HEAD_TIER}'"):
        Layout((QUERY,), ("root", HEAD_TIER), 4)


def test_fitting_a_rank_keeps_leading_rows_of_a_and_columns_of_b_and_all_of_a_head():
    A, B = torch.arange(12.0).view(3, 4), torch.arange(15.0).view(5, 3)
    assert torch.equal(fit_rank(A, "A", 2), A[:2])
    assert torch.equal(fit_rank(B, "B", 2), B[:, :2])
    assert torch.equal(fit_rank(B, "W", 2), B)
    assert torch.equal(fit_rank(B[0], "b", 2), B[0])
    stacked = torch.randn(7, 3, 4)
    assert torch.equal(fit_rank(stacked, "A", 2), stacked[:, :2])


def test_bytes_are_numbers_times_their_size():
    assert byte_count([torch.zeros(8, 16), torch.zeros(3, dtype=torch.float64)]) == 8 * 16 * 4 + 3 * 8
    assert byte_count([]) == 0


def test_a_pair_takes_rank_times_in_plus_out_floats():
    shapes = Layout((QUERY, VALUE), ("root",), 4).shapes
    assert byte_count(torch.zeros(shape) for shape in shapes.values()) == 2 * 4 * (16 + 8) * 4
