"""Merging adapters inside a group, against dense linear algebra in float64 and against PEFT."""

import numpy as np
import peft
import pytest
import scipy.sparse.linalg
import torch
from torch import nn

from fedsim.adapters.bank import Bank
from fedsim.adapters.layout import Slot
from fedsim.parts.aggregation import (
    leading_singular,
    mean_factors,
    normalised_weights,
    product_norm,
    product_svd,
    relative_change,
    weighted_mean,
)


def factors(n: int, outputs: int, inputs: int, rank: int, seed: int = 0):
    """Clients that agree on a direction and differ by noise, like those that start from one broadcast."""
    random = torch.Generator().manual_seed(seed)
    common_B, common_A = torch.randn(outputs, rank, generator=random), torch.randn(rank, inputs, generator=random)
    B = common_B + 0.3 * torch.randn(n, outputs, rank, generator=random)
    A = common_A + 0.3 * torch.randn(n, rank, inputs, generator=random)
    return B, A


def dense_mean_product(B, A, weights) -> np.ndarray:
    return np.einsum("n,nor,nri->oi", weights.double().numpy(), B.double().numpy(), A.double().numpy())


def best_of_rank(matrix: np.ndarray, rank: int) -> np.ndarray:
    U, S, Vh = np.linalg.svd(matrix, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


def product(merged) -> np.ndarray:
    return merged.B.double().numpy() @ merged.A.double().numpy()


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


SHAPES = {
    "tall_factors": ((5, 48, 40, 4), False),
    "one_client": ((1, 48, 40, 4), False),
    "stack_wider_than_outputs": ((20, 48, 100, 4), True),
    "stack_wider_than_both": ((20, 48, 40, 4), True),
    "stack_far_wider_but_rank_close_to_dimension": ((20, 48, 40, 16), False),
    "rank_equals_dimension": ((6, 16, 16, 16), False),
    "narrow_core_of_many_clients": ((10, 256, 192, 4), True),
}


@pytest.mark.parametrize(("shape", "uses_arpack"), SHAPES.values(), ids=SHAPES)
def test_product_svd_is_the_best_rank_r_approximation_of_the_mean_product(shape, uses_arpack, monkeypatch):
    calls = []
    solver = scipy.sparse.linalg.svds
    monkeypatch.setattr("scipy.sparse.linalg.svds", lambda *args, **kw: calls.append(1) or solver(*args, **kw))
    B, A = factors(*shape)
    weights = normalised_weights(range(1, shape[0] + 1))
    merged = product_svd(B, A, weights)
    assert bool(calls) == uses_arpack
    assert relative_error(product(merged), best_of_rank(dense_mean_product(B, A, weights), shape[3])) < 1e-5


@pytest.mark.parametrize("shape", [shape for shape, _ in SHAPES.values()], ids=SHAPES)
def test_merged_b_has_orthonormal_columns_and_a_orthogonal_rows_in_falling_order(shape):
    B, A = factors(*shape)
    merged = product_svd(B, A, normalised_weights([1] * shape[0]))
    torch.testing.assert_close(merged.B.T @ merged.B, torch.eye(shape[3]), rtol=0, atol=3e-6)
    gram = merged.A.double() @ merged.A.double().T
    singular = gram.diagonal().sqrt()
    assert bool((singular.diff() <= 1e-6 * singular[0]).all())
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-5 * float(gram[0, 0]))


@pytest.mark.parametrize("shape", [shape for shape, _ in SHAPES.values()], ids=SHAPES)
def test_discarded_energy_is_the_share_of_squared_singular_values_beyond_the_rank(shape):
    B, A = factors(*shape)
    weights = normalised_weights([2] * shape[0])
    squares = np.linalg.svd(dense_mean_product(B, A, weights), compute_uv=False) ** 2
    expected = squares[shape[3] :].sum() / squares.sum()
    assert product_svd(B, A, weights).discarded == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("n", [6, 40], ids=["dense", "arpack"])
def test_a_client_with_nearly_all_the_weight_decides_the_result(n):
    B, A = factors(n, 64, 48, 4)
    B[0], A[0] = factors(1, 64, 48, 4, seed=1)
    weights = torch.full((n,), 1e-9, dtype=torch.float64)
    weights[0] = 1 - weights[1:].sum()
    assert relative_error(product(product_svd(B, A, weights)), B[0].double().numpy() @ A[0].double().numpy()) < 1e-5


@pytest.mark.parametrize("n", [6, 40], ids=["dense", "arpack"])
def test_a_zero_weight_leaves_a_client_out(n):
    B, A = factors(n, 64, 48, 4)
    B[0] *= 1e6
    without = product_svd(B[1:], A[1:], normalised_weights([1] * (n - 1)))
    weighed = product_svd(B, A, normalised_weights([0] + [1] * (n - 1)))
    assert relative_error(product(weighed), product(without)) < 1e-5


@pytest.mark.parametrize("n", [1, 6, 40])
def test_an_update_of_zero_stays_zero_with_an_orthonormal_b(n):
    _, A = factors(n, 64, 48, 4)
    merged = product_svd(torch.zeros(n, 64, 4), A, normalised_weights([1] * n))
    assert merged.discarded == 0
    assert not merged.A.any()
    torch.testing.assert_close(merged.B.T @ merged.B, torch.eye(4))


def test_a_core_of_lower_rank_than_the_adapter_is_recovered():
    B, A = factors(1, 64, 48, 1)
    B, A = B.expand(40, -1, 4), A.expand(40, 4, -1)
    merged = product_svd(B, A, normalised_weights([1] * 40))
    assert relative_error(product(merged), 4 * B[0, :, :1].double().numpy() @ A[0, :1].double().numpy()) < 1e-5
    torch.testing.assert_close(merged.B.T @ merged.B, torch.eye(4), rtol=0, atol=3e-6)


@pytest.mark.parametrize("n", [6, 40], ids=["dense", "arpack"])
def test_tiny_updates_do_not_underflow(n):
    B, A = factors(n, 64, 48, 4)
    weights = normalised_weights([1] * n)
    tiny, plain = product_svd(1e-12 * B, 1e-8 * A, weights), product_svd(B, A, weights)
    assert relative_error(1e20 * product(tiny), product(plain)) < 1e-5
    assert tiny.discarded == pytest.approx(plain.discarded, abs=2e-6)


@pytest.mark.parametrize("n", [6, 40], ids=["dense", "arpack"])
def test_signs_are_fixed_so_the_largest_entry_of_every_column_is_positive(n):
    B, A = factors(n, 64, 48, 4)
    weights = normalised_weights([1] * n)
    merged = product_svd(B, A, weights)
    assert bool((merged.B.gather(0, merged.B.abs().argmax(0, keepdim=True)) > 0).all())
    again = product_svd(B, A, weights)
    assert torch.equal(merged.B, again.B)
    assert torch.equal(merged.A, again.A)
    flipped = product_svd(-B, -A, weights)
    torch.testing.assert_close(flipped.B, merged.B, rtol=0, atol=1e-5)


def test_the_basis_of_each_client_does_not_matter_only_its_product():
    B, A = factors(12, 64, 48, 4)
    weights = normalised_weights(range(1, 13))
    rotations = torch.linalg.qr(torch.randn(12, 4, 4, generator=torch.Generator().manual_seed(3)))[0]
    rotated = product_svd(B @ rotations, rotations.mT @ A, weights)
    torch.testing.assert_close(rotated.B, product_svd(B, A, weights).B, rtol=0, atol=2e-5)


def test_leading_singular_takes_the_same_triplets_with_arpack_and_densely():
    core = torch.randn(64, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U, S, V = leading_singular(core, 5)
    all_U, all_S, all_Vh = np.linalg.svd(core.numpy())
    np.testing.assert_allclose(S.numpy(), all_S[:5], rtol=1e-10)
    np.testing.assert_allclose((U @ V.T).numpy(), all_U[:, :5] @ all_Vh[:5], atol=1e-8)


def test_product_svd_is_peft_add_weighted_adapter_with_combination_type_svd():
    """PEFT puts the scaling α/R into what it merges (how often depends on its version); α = R makes it 1, as here."""
    n, rank = 5, 4
    B, A = factors(n, 24, 32, rank)
    weights = normalised_weights([10, 20, 30, 5, 35])
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj"])
    model = peft.get_peft_model(nn.ModuleDict({"q_proj": nn.Linear(32, 24)}), config, adapter_name="0")
    for client in range(n):
        if client:
            model.add_adapter(str(client), config)
        layer = model.base_model.model["q_proj"]
        layer.lora_A[str(client)].weight.data = A[client].clone()
        layer.lora_B[str(client)].weight.data = B[client].clone()
    names = [str(client) for client in range(n)]
    model.add_weighted_adapter(names, weights.tolist(), "merged", combination_type="svd", svd_rank=rank)
    expected = layer.get_delta_weight("merged").double().numpy()
    assert relative_error(product(product_svd(B, A, weights)), expected) < 1e-5


def test_mean_factors_averages_a_and_b_each_on_its_own():
    B, A = factors(3, 8, 6, 2)
    merged = mean_factors(B, A, normalised_weights([1, 1, 2]))
    torch.testing.assert_close(merged.B, 0.25 * B[0] + 0.25 * B[1] + 0.5 * B[2])
    torch.testing.assert_close(merged.A, 0.25 * A[0] + 0.25 * A[1] + 0.5 * A[2])
    assert merged.discarded == 0


def test_the_product_of_mean_factors_is_not_the_mean_product():
    B, A = torch.tensor([[[1.0]], [[-1.0]]]), torch.tensor([[[1.0]], [[-1.0]]])
    weights = normalised_weights([1, 1])
    assert product(mean_factors(B, A, weights)).item() == 0
    assert product(product_svd(B, A, weights)).item() == pytest.approx(1)


def test_weighted_mean_keeps_type_and_shape():
    values = torch.tensor([[[1.0, 2.0]], [[5.0, 6.0]]])
    mean = weighted_mean(values, normalised_weights([3, 1]))
    torch.testing.assert_close(mean, torch.tensor([[2.0, 3.0]]))
    assert mean.dtype == values.dtype


def test_product_norm_is_the_squared_frobenius_norm_of_every_product():
    B, A = factors(7, 24, 32, 4)
    torch.testing.assert_close(product_norm(B, A), torch.linalg.matrix_norm(B @ A).square(), rtol=1e-5, atol=0)


def test_relative_change_counts_all_sites_and_groups_as_one_matrix():
    sites, groups, rank = ("first", "second"), (0, 2), 3
    before, after = [factors(4, 10, 12, rank, seed=seed) for seed in (1, 2)]
    bank = Bank({Slot("root", site, f): torch.zeros(s) for site in sites for f, s in (("A", (3, 12)), ("B", (10, 3)))})
    copies, difference, size = {}, 0.0, 0.0
    for s, site in enumerate(sites):
        for g, group in enumerate(groups):
            (old_B, old_A), (new_B, new_A) = [(B[2 * s + g], A[2 * s + g]) for B, A in (before, after)]
            for factor, old, new in (("B", old_B, new_B), ("A", old_A, new_A)):
                bank.write(Slot("root", site, factor), {group: old}, 3, 0)
                copies.setdefault(Slot("root", site, factor), {})[group] = new
            difference += float(((new_B @ new_A - old_B @ old_A).double() ** 2).sum())
            size += float(((old_B @ old_A).double() ** 2).sum())
    assert relative_change(bank, copies) == pytest.approx((difference / size) ** 0.5, rel=1e-5)


def test_relative_change_is_infinite_from_zero_and_zero_for_the_same_product_in_another_basis():
    B, A = (part[0] for part in factors(1, 10, 12, 3))
    slot_B, slot_A = Slot("root", "q", "B"), Slot("root", "q", "A")
    bank = Bank({slot_B: torch.zeros(10, 3), slot_A: torch.zeros(3, 12)})
    assert relative_change(bank, {slot_B: {0: B}, slot_A: {0: A}}) == float("inf")
    bank.write(slot_B, {0: B}, 1, 0)
    bank.write(slot_A, {0: A}, 1, 0)
    assert relative_change(bank, {slot_B: {0: 2 * B}, slot_A: {0: A / 2}}) < 1e-6


def test_weights_are_shares_of_samples_and_equal_when_nobody_has_one():
    torch.testing.assert_close(normalised_weights([1, 3]), torch.tensor([0.25, 0.75], dtype=torch.float64))
    torch.testing.assert_close(normalised_weights([0, 0]), torch.tensor([0.5, 0.5], dtype=torch.float64))
