"""What of a data set is kept."""

import numpy as np
import pytest

from fedsim.data.sources.listing import Listing, keep_some


def split_of(sizes: list[int]) -> Listing:
    targets = np.concatenate([np.full(size, label) for label, size in enumerate(sizes)])
    return Listing(targets, None, lambda rows: iter([(str(row), b"") for row in rows]), "made up")


@pytest.mark.parametrize("count", [1, 50, 99, 199, 432, 1999, 2000, 5000])
def test_as_many_samples_are_kept_as_were_asked_for(count: int):
    """Also fewer than there are classes."""
    kept = keep_some(split_of([20] * 100), count).targets
    assert len(kept) == min(count, 2000)
    held = np.bincount(kept, minlength=100)
    assert held.max() - held.min() <= 1


def test_every_class_keeps_its_share_and_what_is_kept_is_spread_over_the_split():
    kept = keep_some(split_of([10, 20, 40]), 35)
    assert np.bincount(kept.targets).tolist() == [5, 10, 20]
    assert [int(name) for name, _ in kept.read(np.arange(35))] == list(range(1, 70, 2))
