"""DP-SGD in both engines: against loops over samples, dense formulas, and what one sample can move."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_batched import PLAN, by_client, engine, little_memory
from test_engines_agree import CASES, LAYOUT, SIZES, assert_same, assignments, federation, local, overlap_too
from test_sequential import A, B, TwoByTwo

import fedsim
from fedsim.adapters.layout import Layout
from fedsim.engines.batched import BatchedEngine
from fedsim.engines.samples import SampleNoise
from fedsim.engines.sequential import SequentialEngine
from fedsim.engines.stack import Stack
from fedsim.models.client_module import ClientModule
from fedsim.models.sites import find_sites
from fedsim.plan import Plan
from fedsim.randomness import generator
from fedsim.round import Assignment, ClientError, Population

CPU = torch.device("cpu")
ENGINES = [SequentialEngine, BatchedEngine]
SGD = {"optimizer": "sgd", "learning_rate": 1.0, "momentum": 0.0}


def steps_of(kind, of_local, data=None, case=None, plan=PLAN, client=0):
    """What a client moves by, as one vector, in one step of SGD at rate 1: minus its gradient."""
    made = assignments(**(case or {}))[client]
    made = replace(made, steps=1, local=fedsim.LocalTraining(**{**SGD, "batch_size": 16} | of_local))
    one = engine(kind)
    one.data = data or one.data
    (update,) = one.local_update(plan, [[made]])
    return torch.cat([(update.tensors[slot] - made.tensors[slot]).flatten() for slot in update.tensors])


def alone(row):
    """The federation in which the first client has one sample."""
    data = federation()
    return replace(data, augment=None, n_draws=0, train=[row.view(1), *list(data.train)[1:]])


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, objective=overlap_too)], ids=["cross-entropy", "with penalties"])
def test_a_step_is_the_mean_of_samples_gradients_each_clipped_over_all_tensors_together(kind, plan):
    """The gradients are found by plain steps on each sample by itself."""
    whole = replace(federation(), augment=None, n_draws=0)
    each = torch.stack([-steps_of(SequentialEngine, {}, alone(row), plan=plan) for row in whole.train[0]])
    norms = each.norm(dim=1)
    clip = float(norms.median())
    assert norms.min() < clip < norms.max()
    expected = (each * (clip / norms).clamp(max=1).unsqueeze(1)).mean(0)
    found = -steps_of(kind, {"sample_clip": clip, "sample_noise": 0.0}, whole, plan=plan)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_two_steps_are_those_of_dense_formulas(kind, optimizer):
    """logits = x + B A x: dB = g (A x)ᵀ and dA = Bᵀ g xᵀ of each sample, g = softmax − label."""
    random = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(5, 2, generator=random), torch.tensor([0, 1, 1, 0, 1])
    rows, backbone = [torch.arange(5)], TwoByTwo()
    data = fedsim.FederatedData(inputs, targets, rows, rows, ["0", "1"])
    module = ClientModule(backbone, Layout(find_sites(backbone, "q_proj"), ("adapter",), 1).sites)
    plan = Plan(population=Population(1, (0,), (), (5,)))
    start = {A: torch.randn(1, 2, generator=random), B: torch.randn(2, 1, generator=random)}
    clip, sigma, rate = 0.4, 1.5, 0.1
    options = fedsim.LocalTraining(
        batch_size=5, optimizer=optimizer, learning_rate=rate, momentum=0.5, sample_clip=clip, sample_noise=sigma
    )
    fabric = engine().fabric
    one = kind(fabric, module, data, 3, **({"block_size": 1} if kind is BatchedEngine else {}))
    (update,) = one.local_update(plan, [[Assignment(0, 2, start, frozenset(start), {}, 2, options)]])

    noise = generator(3, "sample noise train", 2, 0)
    a, b = start[A].clone(), start[B].clone()
    moments = [torch.zeros(4), torch.zeros(4)]
    for step in (1, 2):
        g = (inputs + inputs @ a.T @ b.T).softmax(1) - F.one_hot(targets, 2)
        of_a = torch.stack([(b.T @ g[i].view(2, 1)) @ inputs[i].view(1, 2) for i in range(5)]).flatten(1)
        of_b = torch.stack([g[i].view(2, 1) @ (a @ inputs[i].view(2, 1)).T for i in range(5)]).flatten(1)
        each = torch.cat([of_a, of_b], dim=1)
        factors = (clip / each.norm(dim=1)).clamp(max=1)
        assert factors.min() < 1
        gradient = ((each * factors.unsqueeze(1)).sum(0) + sigma * clip * torch.randn(4, generator=noise)) / 5
        if optimizer == "sgd":
            moments[0] = gradient + 0.5 * moments[0]
            moved = -rate * moments[0]
        else:
            moments = [0.9 * moments[0] + 0.1 * gradient, 0.999 * moments[1] + 0.001 * gradient.square()]
            mean, square = moments[0] / (1 - 0.9**step), moments[1] / (1 - 0.999**step)
            moved = -rate * mean / (square.sqrt() + 1e-8)
        a, b = a + moved[:2].view(1, 2), b + moved[2:].view(2, 1)
    torch.testing.assert_close(update.tensors[A], a, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(update.tensors[B], b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ENGINES)
def test_one_sample_moves_the_sum_by_twice_the_norm_at_most_however_large_it_is(kind):
    data, clip = replace(federation(), augment=None, n_draws=0), 0.25
    guarded, gaps = {"sample_clip": clip, "sample_noise": 0.0}, []
    first = int(data.train[0][0])
    for size in (1.0, 1e3):
        inputs = data.inputs.float().clone()
        before = replace(data, inputs=inputs)
        other = inputs.clone()
        other[first] = size * torch.randn(inputs[first].shape, generator=torch.Generator().manual_seed(1))
        targets = data.targets.clone()
        targets[first] = (targets[first] + 1) % 3
        after = replace(data, inputs=other, targets=targets)
        sums = [16 * steps_of(kind, guarded, each) for each in (before, after)]
        gaps.append(float((sums[0] - sums[1]).norm()))
        assert max(float(total.norm()) for total in sums) <= 16 * clip * (1 + 1e-4)
    assert max(gaps) <= 2 * clip * (1 + 1e-4)
    assert max(gaps) > clip, "it is no looser than it must be"


@pytest.mark.parametrize("name", ["uneven data", "unequal ranks", "allocations", "dropout", "middle factors", "sgd"])
def test_without_limit_and_noise_it_is_plain_training_to_rounding(name):
    """Sums are taken in another order, so not to the bit."""
    case = CASES[name]
    free = local(sample_clip=lambda client: math.inf, sample_noise=lambda client: 0.0)["local"]
    own = case.get("local", lambda client, a: a.local)
    plan = replace(PLAN, objective=overlap_too)
    of_case = case | {"local": lambda client, a: free(client, replace(a, local=own(client, a)))}
    for kind in ENGINES:
        plain = by_client(engine(kind).local_update(plan, [assignments(**case)]))
        assert_same(by_client(engine(kind).local_update(plan, [assignments(**of_case)])), plain)


def test_noise_has_its_deviation_and_is_each_clients_and_rounds_and_stages_own():
    def drawn(client=0, round_index=1, stage="train", n=40_000):
        options = fedsim.LocalTraining(sample_clip=0.5, sample_noise=3.0)
        of = Assignment(client, round_index, {}, frozenset(), {}, 1, options)
        noise = SampleNoise(7, stage, of, CPU)
        return [noise.draw(n), noise.draw(n)]

    others = [*drawn(), *drawn(client=1), *drawn(round_index=2), *drawn(stage="second")]
    table = torch.stack(others)
    assert float(table.std()) == pytest.approx(1.5, rel=0.01)
    assert table.mean(1).abs().max() < 5 * 1.5 / 40_000**0.5
    assert torch.corrcoef(table).fill_diagonal_(0).abs().max() < 5 / 40_000**0.5
    assert all(torch.equal(one, two) for one, two in zip(drawn(), drawn(), strict=True))


@pytest.mark.parametrize("kind", ENGINES)
def test_a_steps_noise_on_the_mean_is_that_of_the_sum_over_the_rows(kind):
    """Gradients clipped to nearly nothing: what is left is noise."""
    common = {"sample_clip": 1e-6, "batch_size": 16}
    size = 2.0 * 1e-6 / 16
    steps = torch.cat([steps_of(kind, common | {"sample_noise": 2.0}), steps_of(kind, common | {"sample_noise": 0.0})])
    noisy, still = steps.chunk(2)
    assert float((noisy - still).std()) == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize("batch_size", [4, 100])
def test_sampled_batches_hold_each_sample_by_itself_and_are_divided_by_their_expected_size(batch_size):
    data, random = federation(), torch.Generator().manual_seed(0)
    found = [rows for rows, _ in data.poisson_steps(0, batch_size, 4000, random)]
    share = min(1.0, batch_size / SIZES[0])
    is_in = torch.stack([(data.train[0].unsqueeze(1) == rows).any(1) for rows in found]).double()
    spread = (share * (1 - share) / 4000) ** 0.5
    assert (is_in.mean(0) - share).abs().max() <= 4 * spread
    if share < 1:
        assert torch.corrcoef(is_in.T).fill_diagonal_(0).abs().max() < 5 / 4000**0.5
    assert not list(data.poisson_steps(4, 4, 10, random)), "a client without samples has no batches"
    sampled = {"sample_clip": math.inf, "sample_noise": 0.0, "sample_batches": "poisson", "batch_size": batch_size}
    plain = steps_of(SequentialEngine, {}, data := replace(data, augment=None, n_draws=0))
    means = [steps_of(kind, sampled, data) for kind in ENGINES]
    torch.testing.assert_close(means[0], means[1], rtol=1e-4, atol=1e-6)
    if share == 1:
        torch.testing.assert_close(means[0], plain, rtol=1e-4, atol=1e-6)


def test_a_pass_that_is_halved_ends_in_the_same_update(monkeypatch):
    case = CASES["clipped samples of unequal ranks under dropout"]
    whole = by_client(engine().local_update(PLAN, [assignments(**case)]))
    little_memory(monkeypatch, 12)
    with pytest.warns(UserWarning, match="Out of memory"):
        halved = by_client(engine().local_update(PLAN, [assignments(**case)]))
    assert_same(halved, whole)


def test_a_block_of_which_some_clip_their_samples_is_refused():
    some = local(
        sample_clip=lambda client: 1.0 if client else None, sample_noise=lambda client: 0.0 if client else None
    )
    with pytest.raises(ClientError, match="Either all clients of a block clip"):
        engine().local_update(PLAN, [assignments(**some)])


def test_samples_of_one_copy_share_its_memory():
    """A frozen tier that all clients of a block hold in common is not copied for each sample."""
    copy = {slot: torch.randn(shape) for slot, shape in LAYOUT.shapes.items()}
    leaf = frozenset(slot for slot in copy if slot.tier == "leaf")
    block = [Assignment(k, 1, copy, leaf, {}, 1, fedsim.LocalTraining()) for k in range(3)]
    rows = Stack(block, CPU).rows([0, 0, 1, 2, 2])
    assert all(value.stride(0) == 0 and len(value) == 5 for value in rows.frozen.values())
    assert rows.values.shape == (5, sum(copy[slot].numel() for slot in leaf))
