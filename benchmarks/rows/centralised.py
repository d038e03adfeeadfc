"""The limit: no clients at all. One adapter set trains on the same samples, in steps as large as fedsim's passes."""

import torch
from torch import Tensor
from workloads import SEED, Workload

from fedsim.engines.block_size import CPU_SAMPLES
from fedsim.randomness import generator
from rows.plain import PlainModel, new_optimizer, train


class Centralised:
    """Plain LoRA fine-tuning with one optimiser that outlives the rounds."""

    def __init__(self, workload: Workload):
        self.workload, self.step_size = workload, CPU_SAMPLES
        self.model = PlainModel(workload)
        self.optimizer = new_optimizer(self.model.trained.values(), workload)
        self.rows, self.random = torch.cat(list(workload.data.train)), generator(SEED, "centralised")

    def take_steps_of(self, samples: int) -> None:
        """Use so many samples in a step; fedsim's batched row tells how many it has in a pass."""
        self.step_size = samples

    def round(self) -> None:
        """Pass once over the samples of a round."""
        order = self.rows[torch.randperm(len(self.rows), generator=self.random)[: self.workload.samples]]
        train(self.model, self.optimizer, order.split(self.step_size), self.workload)

    def weights(self) -> dict[str, Tensor]:
        """Return the one adapter set."""
        return self.model.weights()
