"""The only source of randomness: a generator is a function of (seed, purpose, round, client) and of nothing else.

So results do not depend on the number of workers, on which worker trained whom, or on stop-and-resume.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, purpose: str, round_index: int = 0, client: int = 0) -> int:
    """Return a 63-bit seed for one purpose (such as "batches") of one client in one round."""
    digest = hashlib.sha256(f"{seed}|{purpose}|{round_index}|{client}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(
    seed: int, purpose: str, round_index: int = 0, client: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a fresh generator for torch; what it draws differs between kinds of devices."""
    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, round_index, client))


def spread(numbers: Tensor) -> Tensor:
    """Return other numbers (int64) for numbers, one for one, as if they were drawn (SplitMix64's last step).

    Steele, Lea and Flood, OOPSLA 2014; close numbers become unrelated ones.
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1)):
        numbers = (numbers ^ (numbers >> shift & 2 ** (64 - shift) - 1)) * factor
    return numbers


def numpy_generator(seed: int, purpose: str, round_index: int = 0, client: int = 0) -> np.random.Generator:
    """Return a fresh generator for NumPy (partitions, sampling)."""
    return np.random.default_rng(derive_seed(seed, purpose, round_index, client))
