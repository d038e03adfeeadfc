"""Classes of samples that tests deal to clients, and what holds of whatever is dealt."""

import numpy as np
import torch

TRAIN, TEST = np.arange(20).repeat(60), np.arange(20).repeat(15)
"""Twenty classes, each of 60 training and 15 test samples."""


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def check_disjoint_and_complete(tables: list[torch.Tensor], size: int) -> None:
    assert torch.equal(torch.cat(list(tables)).sort().values, torch.arange(size))


def counts(targets: np.ndarray, tables: list[torch.Tensor]) -> np.ndarray:
    return np.stack([np.bincount(targets[rows], minlength=20) for rows in tables])
