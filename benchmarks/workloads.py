"""What every row of the engine benchmark trains: backbones with seeded random weights, random samples, one order.

A workload answers all that the rows must have in common: who trains on which rows in which batches, and the initial
adapters. Nothing is downloaded.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from architectures import BERT, N_CLASSES, TINY, VIT_TINY
from torch import Tensor, nn

import fedsim
from fedsim.adapters.layout import Slot
from fedsim.models.sites import QUERY_VALUE
from fedsim.parts.initialisation import lora_initial
from fedsim.randomness import generator
from fedsim.simulation import RunSpec

SEED = 0
FOREVER = 10**6
"""Rounds of a simulation that is stopped from outside, and rounds between its evaluations."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A federation in which every client trains once a round on each of its `samples_each` samples.

    `width` is the side of an image, or the tokens of the longest text; `cohort` the clients of a round (None: all).
    """

    name: str
    architecture: Callable[[], nn.Module]
    width: int
    clients: int
    batch_size: int
    samples_each: int
    vocabulary: int = 0
    lora_rank: int = 8
    cohort: int | None = None
    test_samples: int = 0

    @property
    def local(self) -> fedsim.LocalTraining:
        """AdamW without decay. The step is small so that rounding, which AdamW magnifies, stays out of sight."""
        return fedsim.LocalTraining(batch_size=self.batch_size, learning_rate=1e-4)

    @property
    def steps(self) -> int:
        """Local steps of a client."""
        return -(-self.samples_each // self.batch_size)

    @property
    def samples(self) -> int:
        """Samples that a round trains on."""
        return (self.cohort or self.clients) * self.samples_each

    def describe(self) -> str:
        """Say what it is."""
        with torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in self.architecture().parameters())
        kind, what = "ViT", f"images of {self.width} × {self.width}"
        if self.vocabulary:
            kind, what = "BERT", f"texts of {self.width // 4} to {self.width} tokens"
        return (
            f"{self.name}: {kind} with {parameters:,} parameters, LoRA rank {self.lora_rank} on query and value and a "
            f"trained classifier; {self.clients} clients × {self.samples_each} {what}, {self.steps} local step(s) of "
            f"{self.batch_size}, 32-true."
        )

    def backbone(self) -> nn.Module:
        """Build the backbone; every row gets the same weights."""
        torch.manual_seed(SEED)
        return self.architecture().eval()

    @cached_property
    def data(self) -> fedsim.FederatedData:
        """Random samples: train rows of every client first, then test rows."""
        n_train = self.clients * self.samples_each
        n = n_train + self.clients * self.test_samples
        random = generator(SEED, "samples")
        return fedsim.FederatedData(
            inputs=self._texts(n, random) if self.vocabulary else self._images(n, random),
            targets=torch.randint(N_CLASSES, (n,), generator=random),
            train=list(torch.arange(n_train).view(self.clients, self.samples_each)),
            test=list(torch.arange(n_train, n).view(self.clients, self.test_samples)),
            class_names=[str(label) for label in range(N_CLASSES)],
            pad_token=0 if self.vocabulary else None,
        )

    def _images(self, n: int, random: torch.Generator) -> Tensor:
        return torch.randint(256, (n, 3, self.width, self.width), generator=random, dtype=torch.uint8)

    def _texts(self, n: int, random: torch.Generator) -> Tensor:
        ids = torch.randint(1, self.vocabulary, (n, self.width), generator=random, dtype=torch.int32)
        lengths = torch.randint(self.width // 4, self.width + 1, (n, 1), generator=random)
        return ids * (torch.arange(self.width) < lengths)

    def arguments(self) -> dict[str, Any]:
        """What fedsim is told about a federation."""
        return {
            "method": fedsim.FedIT(lora_rank=self.lora_rank),
            "backbone": self.backbone(),
            "data": self.data,
            "local": self.local,
            "sites": QUERY_VALUE,
            "head": "model.classifier",
        }

    def setting(self, engine: str = "batched") -> RunSpec:
        """A simulation of it that goes on for as long as it is asked for rounds."""
        return RunSpec(
            **self.arguments(),
            rounds=FOREVER,
            evaluate_every=FOREVER,
            cohort_size=self.cohort,
            seed=SEED,
            engine=engine,
        )

    def initial(self, setting: RunSpec) -> dict[Slot, Tensor]:
        """The trainable tensors that all rows start from; a head's are its change."""
        return lora_initial(setting.layout, generator(SEED, "initial"))

    def batches(self, client: int, round_index: int) -> list[Tensor]:
        """The rows of each of a client's batches in a round."""
        random = generator(SEED, "batches", round_index, client)
        return [rows for rows, _ in self.data.train_steps(client, self.batch_size, self.steps, random)]

    def inputs(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of these rows."""
        return self.data.batch(rows)


CPU = (
    Workload(name="tiny", architecture=TINY, width=16, lora_rank=4, clients=20, batch_size=10, samples_each=40),
    Workload(name="vit-8", architecture=VIT_TINY, width=64, clients=16, batch_size=8, samples_each=16),
    Workload(name="vit-32", architecture=VIT_TINY, width=64, clients=16, batch_size=32, samples_each=32),
    Workload(name="text", architecture=BERT, vocabulary=1000, width=64, clients=8, batch_size=16, samples_each=32),
)
LONG = replace(CPU[1], name="vit-8-long", samples_each=64)
"""For the scaling with workers: rounds of some seconds."""

WORKLOADS = {workload.name: workload for workload in (*CPU, LONG)}
