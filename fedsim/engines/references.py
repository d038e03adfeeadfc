"""The training samples to which a client compares its test samples, where a method weighs its tiers by sample."""

import torch
from torch import Tensor

from fedsim.data.federated import FederatedData
from fedsim.randomness import generator


def reference_rows(data: FederatedData, seed: int, client: int, n: int) -> Tensor:
    """Return the rows of up to n training samples of a client, (n,), the same ones in every round."""
    table = data.train[client]
    return table[torch.randperm(len(table), generator=generator(seed, "references", client=client))[:n]]
