"""The reference engine: one client after another, plain torch. Slow and obviously right."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from lightning.fabric import Fabric
from torch import Tensor

from fedsim.adapters.layout import Slot
from fedsim.adapters.linear import ClientBatch, Dropout
from fedsim.data.federated import FederatedData
from fedsim.engines.dropout import BlockDropout
from fedsim.engines.padding import Pick
from fedsim.engines.references import reference_rows
from fedsim.engines.samples import SampleNoise, expected_rows, local_steps
from fedsim.engines.stack import Received
from fedsim.models.client_module import ClientModule
from fedsim.plan import Plan, is_adapter, is_measured, measuring
from fedsim.round import Assignment, Block, ClientError, ClientUpdate


class SequentialEngine:
    """Trains each client at its own LoRA rank with frozen things frozen; `on_client` is told of every finished one."""

    block_size = 1

    def __init__(
        self,
        fabric: Fabric,
        module: ClientModule,
        data: FederatedData,
        seed: int,
        on_client: Callable[[ClientUpdate], None] = lambda update: None,
    ):
        self.fabric, self.module, self.data, self.seed, self.on_client = fabric, module, data, seed, on_client

    def local_update(self, plan: Plan, blocks: Sequence[Block]) -> list[ClientUpdate]:
        """Train every client, then evaluate what it trained on its own test split (`personal.*`)."""
        return self._one_by_one(plan, blocks, self._train)

    def measure(self, plan: Plan, blocks: Sequence[Block]) -> list[ClientUpdate]:
        """Let every client measure what the plan asks for, without training."""
        return self._one_by_one(plan, blocks, self._measure)

    def _one_by_one(
        self, plan: Plan, blocks: Sequence[Block], work: Callable[[Plan, Assignment], ClientUpdate]
    ) -> list[ClientUpdate]:
        updates = []
        for assignment in [assignment for block in blocks for assignment in block]:
            try:
                updates.append(work(plan, assignment))
            except Exception as error:
                raise ClientError([assignment.client], assignment.round_index, plan.stage, error) from error
        return updates

    def evaluate(self, plan: Plan, blocks: Sequence[Block]) -> list[ClientUpdate]:
        """Evaluate every client as it is (`global.*`)."""
        updates = []
        for assignment in [assignment for block in blocks for assignment in block]:
            self._install(plan, assignment, {s: t.to(self.module.device) for s, t in assignment.tensors.items()})
            logs = {f"global.{name}": value for name, value in self._test(assignment).items()}
            updates.append(ClientUpdate(assignment.client, self.data.train_size(assignment.client), logs=logs))
        return updates

    def _train(self, plan: Plan, assignment: Assignment) -> ClientUpdate:
        client, local, module = assignment.client, assignment.local, self.module
        measured = self._measure(plan, assignment).measured
        tensors = {slot: t.to(module.device, copy=True) for slot, t in assignment.tensors.items()}
        trained = {slot: t.requires_grad_() for slot, t in tensors.items() if slot in assignment.trains}
        self._install(plan, assignment, tensors)
        losses = []
        if trained:
            optimizer = module.configure_optimizers()
            dropout = BlockDropout(self.seed, [assignment], module.device)
            noise = SampleNoise(self.seed, plan.stage, assignment, module.device)
            for step, pick in enumerate(local_steps(self.data, self.seed, plan.stage, assignment)):
                optimizer.zero_grad()
                work = partial(self._differentiate, plan, assignment, tensors, partial(dropout.at, step, 0))
                if local.sample_clip is None:
                    losses.append(work(pick))
                else:
                    losses.append(self._clipped(assignment, trained, pick, work, noise))
                for slot, correction in assignment.corrections.items():
                    trained[slot].grad += correction.to(module.device)
                if local.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(trained.values(), local.clip_norm)
                optimizer.step()
        self._install(plan, assignment, tensors)
        logs = {f"personal.{name}": value for name, value in self._test(assignment).items()}
        if losses:
            logs["train_loss"] = float(torch.stack(losses).mean())
        sent = {slot: tensor.detach().cpu() for slot, tensor in trained.items()}
        update = ClientUpdate(client, self.data.train_size(client), sent, logs, measured)
        self.on_client(update)
        return update

    def _differentiate(
        self,
        plan: Plan,
        assignment: Assignment,
        tensors: dict,
        drop: Callable[[ClientBatch, int], Dropout | None],
        pick: Pick,
        first: int = 0,
    ) -> Tensor:
        """Add the gradients of the loss on some rows, of the step's from the `first` on, and return the loss."""
        dropout = drop(ClientBatch([len(pick[0])]), first)
        if dropout is not None:
            self._install(plan, assignment, tensors, dropout)
        with self.fabric.autocast():
            loss = self.module.training_step(self.data.batch(*pick, self.module.device))
        # Not fabric.setup_module: DDP would average the gradients of *different* clients.
        self.fabric.backward(loss)
        return loss.detach()

    def _clipped(
        self,
        assignment: Assignment,
        trained: Mapping[Slot, Tensor],
        pick: Pick,
        differentiate: Callable[[Pick, int], Tensor],
        noise: SampleNoise,
    ) -> Tensor:
        """Leave the gradient of DP-SGD (`engines/samples.py`), one sample after another; return the mean loss."""
        (rows, draws), clip = pick, torch.tensor(assignment.local.sample_clip, device=self.module.device)
        total = torch.zeros((), device=self.module.device)
        sums = [torch.zeros_like(tensor) for tensor in trained.values()]
        for place in range(len(rows)):
            total += differentiate((rows[place, None], None if draws is None else draws[place, None]), place)
            found = [torch.zeros_like(t) if t.grad is None else t.grad for t in trained.values()]
            norm = torch.cat([gradient.flatten() for gradient in found]).norm()
            for tensor, own, gradient in zip(trained.values(), sums, found, strict=True):
                own += gradient * (clip / norm).clamp(max=1)
                tensor.grad = None
        b = expected_rows(assignment.local, rows, self.data.train_size(assignment.client))
        drawn = noise.draw(sum(own.numel() for own in sums)).split([own.numel() for own in sums])
        for tensor, own, added in zip(trained.values(), sums, drawn, strict=True):
            tensor.grad = (own + added.view_as(own)) / b
        return total / b

    def _measure(self, plan: Plan, assignment: Assignment) -> ClientUpdate:
        """The mean over all of the client's data, as they are, of gradients, or of the squares of each sample's."""
        client, table = assignment.client, self.data.train[assignment.client]
        if not is_measured(plan, client):
            return ClientUpdate(client, len(table))
        is_gradient, plan = plan.measure.what == "gradient", measuring(plan)
        tensors = {slot: t.to(self.module.device, copy=True) for slot, t in assignment.tensors.items()}
        wanted = [slot for slot in tensors if slot in assignment.trains and (is_gradient or is_adapter(slot))]
        sums = {slot: torch.zeros_like(tensors[slot]) for slot in wanted}
        for slot in wanted:
            tensors[slot].requires_grad_()
        self._install(plan, assignment, tensors)
        for rows in table.split(assignment.local.batch_size if is_gradient else 1) if wanted else ():
            with self.fabric.autocast():
                loss = self.module.training_step(self.data.batch(rows, device=self.module.device))
            self.fabric.backward(loss)
            for slot, total in sums.items():
                gradient, tensors[slot].grad = tensors[slot].grad, None
                if gradient is not None:
                    total += (gradient if is_gradient else gradient.square()) * (len(rows) / len(table))
        return ClientUpdate(client, len(table), measured={slot: total.cpu() for slot, total in sums.items()})

    def _install(self, plan: Plan, assignment: Assignment, tensors: dict, dropout: Dropout | None = None) -> None:
        """Make the module this client."""
        received = Received(lambda: {slot: t.to(self.module.device) for slot, t in assignment.tensors.items()})
        objective = partial(plan.objective, received=received)
        self.module.install(
            tensors, assignment.scales, objective, assignment.local, dropout=dropout, rates=assignment.rates
        )

    @torch.no_grad()
    def _test(self, assignment: Assignment) -> dict[str, float]:
        """The task's metrics on the client's test split; empty without test samples."""
        n, task = self.data.test_size(assignment.client), self.data.task
        totals = torch.zeros(task.n_scores, device=self.module.device)
        near = reference_rows(self.data, self.seed, assignment.client, self.module.references(assignment.tensors))
        with self.fabric.autocast():
            direction = self.module.direction(self.data.batch(near, device=self.module.device)) if len(near) else None
        for rows in self.data.test_steps(assignment.client, 2 * assignment.local.batch_size):
            inputs, targets = self.data.batch(rows, device=self.module.device)
            with self.fabric.autocast():
                if direction is not None:
                    self.module.weigh((inputs, targets), direction)
                totals += task.score(self.module, inputs, targets).sum(0)
        return task.summary(totals.tolist(), n) if n else {}
