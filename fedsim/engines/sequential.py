"""The reference engine: one client after another, plain torch. Slow and obviously right."""

from collections.abc import Callable, Sequence

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from fedsim.data.federated import FederatedData
from fedsim.models.client_module import ClientModule
from fedsim.plan import Plan
from fedsim.randomness import generator
from fedsim.round import Assignment, ClientError, ClientUpdate


class SequentialEngine:
    """Trains each client at its own LoRA rank with frozen things frozen; `on_client` is told of every finished one."""

    def __init__(
        self,
        fabric: Fabric,
        module: ClientModule,
        data: FederatedData,
        seed: int,
        on_client: Callable[[ClientUpdate], None] = lambda update: None,
    ):
        self.fabric, self.module, self.data, self.seed, self.on_client = fabric, module, data, seed, on_client

    def local_update(self, plan: Plan, assignments: Sequence[Assignment]) -> list[ClientUpdate]:
        """Train every client, then evaluate what it trained on its own test split (`after_training.*`)."""
        updates = []
        for assignment in assignments:
            try:
                updates.append(self._train(plan, assignment))
            except Exception as error:
                raise ClientError(assignment.client, assignment.round_index, plan.stage, error) from error
            self.on_client(updates[-1])
        return updates

    def evaluate(self, plan: Plan, assignments: Sequence[Assignment]) -> list[ClientUpdate]:
        """Evaluate every client as it is (`after_aggregation.*`)."""
        updates = []
        for assignment in assignments:
            self._install(plan, assignment, frozenset())
            logs = {f"after_aggregation.{name}": value for name, value in self._test(assignment.client).items()}
            updates.append(ClientUpdate(assignment.client, self.data.train_size(assignment.client), logs=logs))
        return updates

    def _train(self, plan: Plan, assignment: Assignment) -> ClientUpdate:
        client, module = assignment.client, self.module
        self._install(plan, assignment, assignment.trains)
        random = generator(self.seed, "batches", assignment.round_index, client)
        losses = []
        if module.trained:
            optimizer = module.configure_optimizers()
            for inputs, targets in self.data.train_batches(client, assignment.batch_size, assignment.steps, random):
                optimizer.zero_grad()
                with self.fabric.autocast():
                    loss = module.training_step((inputs.to(module.device), targets.to(module.device)))
                # Not fabric.setup_module: DDP would average the gradients of *different* clients.
                self.fabric.backward(loss)
                if module.local.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_([module.tensors[s] for s in module.trained], module.local.clip_norm)
                optimizer.step()
                losses.append(loss.detach())
        logs = {f"after_training.{name}": value for name, value in self._test(client).items()}
        if losses:
            logs["train_loss"] = float(torch.stack(losses).mean())
        trained = {slot: module.tensors[slot].detach().cpu() for slot in module.trained}
        return ClientUpdate(client, self.data.train_size(client), trained, logs)

    def _install(self, plan: Plan, assignment: Assignment, trains: frozenset) -> None:
        self.module.install(assignment.tensors, trains, assignment.scales, plan.objective)

    @torch.no_grad()
    def _test(self, client: int) -> dict[str, float]:
        """Accuracy and mean cross-entropy on the client's test split; empty without test samples."""
        logits: list[Tensor] = []
        labels: list[Tensor] = []
        for inputs, targets in self.data.test_batches(client):
            with self.fabric.autocast():
                logits.append(self.module(inputs.to(self.module.device)).float())
            labels.append(targets.to(self.module.device))
        if not logits:
            return {}
        scores, targets = torch.cat(logits), torch.cat(labels)
        accuracy = multiclass_accuracy(scores, targets, num_classes=scores.shape[-1], average="micro")
        return {"accuracy": float(accuracy), "loss": float(torch.nn.functional.cross_entropy(scores, targets))}
