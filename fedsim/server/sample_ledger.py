"""What clients' samples give away under DP-SGD, counted by client as clients train."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.options import LocalTraining
from fedsim.parts.privacy_loss import Mechanism, check_accounting, largest_epsilon
from fedsim.plan import Plan
from fedsim.round import Population
from fedsim.server.workload import Workload

SAMPLES = "sample_releases"
"""Where a checkpoint keeps them."""


@dataclass
class SampleLedger:
    """Releases by client, (C,): steps where batches are Poisson sampled, epochs begun where they are shuffled.

    A shuffled sample is in one batch of an epoch, so that an epoch of noisy steps is one Gaussian mechanism, and
    nothing is gained by sampling. Raises ValueError where ε cannot be told.
    """

    local: LocalTraining
    delta: float
    population: Population

    def __post_init__(self) -> None:
        self.releases = torch.zeros(self.population.n_clients, dtype=torch.long)
        self.most: dict[Mechanism, int] = {}  # of the clients of each, so that a round costs what its cohort does
        if self.local.sample_noise:
            check_accounting()

    def log(self, plan: Plan, clients: Iterable[int], workload: Workload, round_index: int) -> dict[str, object]:
        """Count a round in which these clients train by a plan, in all its passes, and return what is logged of it.

        That is ε after it of the client with the largest, and in the first round how it is told.
        """
        for client in clients:
            for each in plan.passes:
                self.releases[client] += self._of(workload.of(each, client).steps, self.population.samples[client])
            self._note(client, int(self.releases[client]))
        told: dict[str, object] = {"sample_epsilon": self.epsilon(), "delta": self.delta}
        if round_index:
            return told
        neighbours = self._mechanism(self.population.samples[self.population.seen[0]]).relation
        how = {"noise_multiplier": self.local.sample_noise, "batches": self.local.sample_batches}
        return {**told, "sample_privacy": {**how, "neighbours": neighbours}}

    def epsilon(self) -> float:
        """Return ε of the client with the largest."""
        return largest_epsilon(self.most, self.local.sample_noise or 0.0, self.delta)

    @property
    def kept(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {SAMPLES: self.releases}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint; raises ValueError for numbers that no run writes."""
        found = tensors.get(SAMPLES)
        if found is None or found.dtype != torch.long or found.shape != self.releases.shape or int(found.min()) < 0:
            raise ValueError(f"The checkpoint's '{SAMPLES}' is nothing that a run writes (--resume).")
        self.releases = found.clone()
        for client in found.nonzero().flatten().tolist():
            self._note(client, int(found[client]))

    def _note(self, client: int, releases: int) -> None:
        mechanism = self._mechanism(self.population.samples[client])
        self.most[mechanism] = max(releases, self.most.get(mechanism, 0))

    def _of(self, steps: int, n_samples: int) -> int:
        """Releases of a client with so many samples in so many steps."""
        of_epoch = 1 if self.local.sample_batches == "poisson" else max(1, -(-n_samples // self.local.batch_size))
        return -(-steps // of_epoch)

    def _mechanism(self, n_samples: int) -> Mechanism:
        if self.local.sample_batches == "shuffled":
            return Mechanism(1, 1, is_local=True, unit="sample")
        return Mechanism(n_samples, min(self.local.batch_size, n_samples), "poisson", unit="sample")
