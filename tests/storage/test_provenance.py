"""Fingerprints tell apart what was loaded, of whatever size, by every byte of it."""

import functools
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fedsim.data.images.transforms import ImageTransform
from fedsim.storage import provenance
from fedsim.storage.provenance import fingerprint

SHIFT = 0.5


def with_one_changed(tensor, place):
    other = tensor.clone()
    other.view(-1)[place] += 1
    return other


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_one_element_anywhere_makes_another_fingerprint(dtype):
    tensor = torch.arange(200).to(dtype).view(20, 10)
    same = fingerprint(tensor)
    assert fingerprint(tensor.clone()) == same
    assert len({same, *(fingerprint(with_one_changed(tensor, place)) for place in range(0, 100, 9))}) == 13
    assert fingerprint(tensor.view(10, 20)) != same, "the same bytes in another shape"


def test_pieces_are_hashed_all_of_them_in_their_order(monkeypatch):
    monkeypatch.setattr(provenance, "PIECE", 64)
    rows = torch.arange(1000, dtype=torch.int32).view(100, 10)
    pieces = rows.clone()
    pieces[[0, 50]] = pieces[[50, 0]]
    assert fingerprint(pieces) != fingerprint(rows)
    assert fingerprint(rows.t().contiguous().t()) == fingerprint(rows), "memory may be laid out otherwise"
    for place in (0, 499, 999):
        assert fingerprint(with_one_changed(rows, place)) != fingerprint(rows)


def test_a_large_tensor_is_hashed_once_unless_it_is_written_to(monkeypatch):
    large, hashed = torch.zeros(provenance.REMEMBERED, dtype=torch.uint8), []
    real = provenance._piece_hash
    monkeypatch.setattr(provenance, "_piece_hash", lambda piece: hashed.append(1) or real(piece))
    before = fingerprint(large)
    assert (fingerprint(large), len(hashed)) == (before, 1)
    large[-1] = 1
    assert fingerprint(large) != before
    assert len(hashed) == 2


@dataclass(frozen=True)
class Scaled:
    factor: float

    def __call__(self, x):
        return x * self.factor

    def augment(self, x, draws):
        return self(x)


def shifted(by):
    return lambda x: x + by


def test_transforms_are_told_apart_by_what_they_do_and_not_by_which_object_they_are():
    weights = torch.ones(3)
    made = [
        lambda: ImageTransform(8, (0.5,), (0.5,)),
        lambda: ImageTransform(8, (0.4,), (0.5,)),
        lambda: ImageTransform(8, (0.4,), (0.5,)).augment,
        lambda: Scaled(2.0),
        lambda: Scaled(3.0),
        lambda: Scaled(3.0).augment,
        lambda: shifted(1),
        lambda: shifted(2),
        lambda: shifted(torch.zeros(2)),
        lambda: functools.partial(torch.add, other=1),
        lambda: functools.partial(torch.add, other=2),
        lambda: nn.Threshold(0.1, 0.0),
        lambda: nn.Threshold(0.2, 0.0),
        lambda: nn.Sequential(nn.Threshold(0.2, 0.0)),
        lambda: lambda x: x * weights,
        lambda: lambda x: x * (weights * 2),
        lambda: lambda x: x + SHIFT,
        lambda: None,
    ]
    found = [fingerprint(make()) for make in made]
    assert found == [fingerprint(make()) for make in made]
    assert len(set(found)) == len(made)


def test_a_constant_of_the_module_that_a_transform_names_counts(monkeypatch):
    before = fingerprint(lambda x: x + SHIFT)
    monkeypatch.setitem(globals(), "SHIFT", 0.6)
    assert fingerprint(made_again := lambda x: x + SHIFT) != before
    monkeypatch.undo()
    assert made_again(0) == SHIFT


def test_what_refers_to_itself_has_a_fingerprint_too():
    circle = [1]
    circle.append(circle)
    assert fingerprint(circle) == fingerprint(circle)
