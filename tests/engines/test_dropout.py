"""What is dropped: the share that was asked for, at unrelated places, whoever is beside."""

import functools

import pytest
import torch
from test_batched import PLAN, engine
from test_engines_agree import CASES, assignments
from torch._dynamo.testing import CompileCounter

import fedsim
from fedsim.adapters.linear import ClientBatch
from fedsim.engines.dropout import BlockDropout
from fedsim.round import Assignment

CPU = torch.device("cpu")


def drop(shares, sizes, step=3, seed=0, start=0):
    block = [
        Assignment(client, 1, {}, frozenset(), {}, 1, fedsim.LocalTraining(dropout=share))
        for client, share in enumerate(shares)
    ]
    return BlockDropout(seed, block, CPU).at(step, start, ClientBatch(sizes))


def test_a_clients_entries_do_not_depend_on_other_clients_samples_or_padding():
    together, width = drop([0.2, 0.0, 0.5], [4, 4, 2]), 6
    x = torch.randn(3, 4, 5, width)
    for _ in range(2):  # calls
        y = together(x)
        assert torch.equal(y[1], x[1])
    alone = drop([0.2, 0.0, 0.5], [2], start=2)
    for _ in range(2):
        own = alone(x[2, :2, :3])
    assert torch.equal(own, y[2, :2, :3])
    assert 0 < int((own == 0).sum()) < own.numel()
    assert drop([0.0, 0.0], [3, 3]) is None


def test_the_share_is_dropped_and_the_rest_divided_by_what_is_kept():
    x = torch.ones(3, 16, 40, 64)
    y = drop([0.1, 0.5, 0.9], [16] * 3)(x)
    for kept, share in zip(y, (0.1, 0.5, 0.9), strict=True):
        noise = (share * (1 - share) / kept.numel()) ** 0.5
        assert float((kept == 0).float().mean()) == pytest.approx(share, abs=4 * noise)
        assert kept.max() == pytest.approx(1 / (1 - share))
    alike = drop([0.1] * 3, [16] * 3)(x)
    assert torch.equal(alike[0], y[0]), "one share for all is the same arithmetic"


def test_what_is_dropped_at_two_places_is_unrelated():
    """Correlations between maps, clients, samples, tokens and features, of neighbours and of all pairs of maps."""
    dropout, x = drop([0.2] * 4, [8] * 4), torch.ones(4, 8, 32, 64)
    maps = (torch.stack([dropout(x) for _ in range(24)]) > 0).double()
    maps = (maps - 0.8) / 0.4
    for axis in range(maps.ndim):
        n = maps.shape[axis] - 1
        products = maps.narrow(axis, 0, n) * maps.narrow(axis, 1, n)
        assert abs(float(products.mean())) < 4 / products.numel() ** 0.5, axis
    of_maps = torch.corrcoef(maps.flatten(1)).fill_diagonal_(0)
    assert of_maps.abs().max() < 5 / maps[0].numel() ** 0.5
    others = [drop([0.2] * 4, [8] * 4, **other)(x) > 0 for other in ({"step": 4}, {"seed": 1})]
    for other in others:
        assert abs(float(((other.double() - 0.8) / 0.4 * maps[0]).mean())) < 4 / maps[0].numel() ** 0.5


@pytest.mark.parametrize("name", ["dropout", pytest.param("uneven data", marks=pytest.mark.slow)])
def test_a_compiler_sees_few_graphs_without_breaks_where_shapes_are_static(monkeypatch, name):
    counter = CompileCounter()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    compiled = engine(is_compiled=True, is_static=True)
    for _ in range(2):
        compiled.local_update(PLAN, [assignments(**CASES[name])])
    assert not torch._dynamo.utils.counters["graph_break"]
    assert counter.frame_count <= 6, "three numbers of clients that train, and as many of samples that are tested"
