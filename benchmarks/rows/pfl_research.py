"""pfl-research: its own round machinery around the plain model, one process, data in memory."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor
from workloads import FOREVER, Workload

from rows.plain import PlainModel


class PflModule(PlainModel):
    """The plain model with the two functions that pfl asks for."""

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self(inputs), targets)

    @torch.no_grad()
    def metrics(self, inputs: Tensor, targets: Tensor) -> dict[str, Weighted]:
        """The same, for pfl's evaluation in its first round, which cannot be switched off."""
        return {"loss": Weighted(self.loss(inputs, targets).item() * len(targets), len(targets))}


class PflClient(Dataset):
    """A client whose batches come in the order of the workload."""

    def __init__(self, workload: Workload, client: int, round_index: int):
        super().__init__((workload.data.train[client],), user_id=str(client))
        self.workload, self.batches = workload, workload.batches(client, round_index)

    def iter(self, batch_size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets of each batch."""
        return map(self.workload.inputs, self.batches)


class PflResearch:
    """Federated averaging; the central optimiser is SGD of rate 1, so the mean of changes is applied as it is."""

    def __init__(self, workload: Workload):
        self.workload, self.round_index = workload, 0
        self.module = PflModule(workload)
        trained = list(self.module.trained.values())
        self.model = PyTorchModel(
            self.module,
            local_optimizer_create=lambda parameters, lr: torch.optim.AdamW(
                trained, lr=lr, weight_decay=0.0, fused=True
            ),
            central_optimizer=torch.optim.SGD(trained, lr=1.0),
        )
        clients = FederatedDataset(self._client, MinimizeReuseUserSampler(range(workload.clients)))
        self.backend = SimulatedBackend(clients, clients, postprocessors=[WeightByDatapoints()])
        self.algorithm = FederatedAveraging()
        self.local = NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=workload.local.learning_rate,
            local_batch_size=workload.batch_size,
        )
        self.params = partial(
            NNAlgorithmParams, evaluation_frequency=FOREVER, train_cohort_size=workload.clients, val_cohort_size=0
        )

    def _client(self, client: int) -> PflClient:
        return PflClient(self.workload, client, self.round_index)

    def round(self) -> None:
        """Let the algorithm run up to and including the next round."""
        params = self.params(central_num_iterations=self.round_index + 1)
        self.algorithm.run(params, self.backend, self.model, self.local, send_metrics_to_platform=False)
        self.round_index += 1

    def weights(self) -> dict[str, Tensor]:
        """Return the central model."""
        return self.module.weights()
