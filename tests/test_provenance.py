"""Fingerprints tell tensors apart, of whatever size."""

import torch

from fedsim.provenance import fingerprint


def test_a_tensor_of_more_than_two_to_the_24th_elements_has_a_fingerprint():
    large = torch.zeros(2**24 + 3, dtype=torch.uint8)
    before = fingerprint([large])
    large[-1] = 1
    assert fingerprint([large]) != before
