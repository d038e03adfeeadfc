"""The LightningModule that stands for a client, or for a block of them: a frozen backbone with adapters in it."""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn

from fedsim.adapters.layout import MIX_TIER, Mixing, Site, Slot, group_slots
from fedsim.adapters.linear import ClientBatch, Dropout, Grouped, Scale, insert_tiered_linears
from fedsim.adapters.mixing import InstanceWeights, SampleWeights
from fedsim.models.decoding import generate, whole_texts
from fedsim.models.sites import last_map
from fedsim.options import IGNORED, LocalTraining

Objective = Callable[[Tensor, Tensor, Mapping[Slot, Tensor]], Tensor]


OUT_OF_MEMORY = re.compile("can't allocate memory|CUDA error: out of memory|_ALLOC_FAILED|_ALLOCATION_FAILED")
"""How the CPU's allocator, CUDA itself, cuBLAS and cuDNN say it; torch's allocator on a GPU has a class of its own."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether less work at once would have gone well."""
    return isinstance(error, torch.OutOfMemoryError) or bool(OUT_OF_MEMORY.search(str(error)))


class ClientModule(LightningModule):
    """One resident frozen backbone; `install` turns it into a client, `training_step` gives that client's loss."""

    def __init__(
        self, backbone: nn.Module, sites: Sequence[Site], is_compiled: bool = False, mixing: Mixing | None = None
    ):
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.linears = insert_tiered_linears(self.backbone, sites)
        self.compiled = [torch.compile(self.backbone)] if is_compiled else []  # in a list, so it is no submodule
        self.objective: Objective | None = None
        self.local, self.mixing = LocalTraining(), mixing
        self.rates: Mapping[Slot, float] = {}
        self.tensors: dict[Slot, Tensor] = {}
        self.rows: ClientBatch | None = None
        self.scales: Mapping[str, Scale] = {}
        self.sites = tuple(sites)

    def install(
        self,
        tensors: Mapping[Slot, Tensor],
        scales: Mapping[str, Scale],
        objective: Objective,
        local: LocalTraining | None = None,
        rows: ClientBatch | None = None,
        dropout: Dropout | None = None,
        rates: Mapping[Slot, float] | None = None,
        grouped: Grouped | None = None,
    ) -> None:
        """Become the client that holds `tensors`, by tier's scale; those that require gradients are trained.

        With `rows` become the block of clients whose tensors are stacked (K, *shape). `rates` are the learning rates of
        slots that have one of their own, `grouped` the slots by site and tier where a block's steps share them.
        """
        self.tensors, self.objective, self.rows, self.rates = dict(tensors), objective, rows, rates or {}
        self.local, self.scales = local or self.local, scales
        grouped = group_slots(tensors) if grouped is None else grouped
        for linear in self.linears.values():
            linear.install(tensors, scales, rows, dropout, self.mixing, grouped)

    def drop(self, dropout: Dropout | None) -> None:
        """Have the adapters of the installed clients drop so from now on."""
        for linear in self.linears.values():
            linear.dropout = dropout

    def references(self, slots: Iterable[Slot]) -> int:
        """Return to how many training samples a client that holds these slots compares every test sample."""
        is_mixed = any(slot.tier == MIX_TIER for slot in slots)
        return self.mixing.n_references if is_mixed and isinstance(self.mixing, InstanceWeights) else 0

    def direction(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean unit state (D,) of a batch of the installed client, or (K, D); zero of clients without."""
        states = F.normalize(self._states(*batch), dim=-1)
        if self.rows is None:
            return states.mean(0)
        sizes = torch.tensor(self.rows.sizes, device=states.device).clamp(min=1)
        return self.rows.stack(states).sum(1) / sizes.unsqueeze(1)

    def weigh(self, batch: tuple[Tensor, Tensor], direction: Tensor) -> None:
        """Let every sample of a batch weigh the tiers by how near its state is to `direction`, until `install`."""
        assert isinstance(self.mixing, InstanceWeights)
        states = self._states(*batch)
        states = states if self.rows is None else self.rows.stack(states)
        weights = self.mixing.of_states(states, direction, self._mix_value)
        self._reweigh(SampleWeights(self.mixing.tiers, self.mixing.initial), weights)

    def _states(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The last hidden state (B, D) of each sample under one tier alone, of a text its prompt's last token's."""
        assert isinstance(self.mixing, InstanceWeights)
        self._reweigh(self.mixing, self.mixing.alone(self._mix_value))
        seen: list[Tensor] = []
        hook = last_map(self.backbone, self.sites).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            self._run(inputs)
        finally:
            hook.remove()
        states = seen[0].float()
        if targets.ndim == 1:
            return states if states.ndim == 2 else states.flatten(1, -2).mean(1)
        first = (targets != IGNORED).int().argmax(1)  # the target of a prompt's last token is the answer's first
        return states[torch.arange(len(states), device=states.device), first]

    @property
    def _mix_value(self) -> Tensor:
        """What the mixing's slot holds, (tiers,) or (K, tiers)."""
        (value,) = [tensor for slot, tensor in self.tensors.items() if slot.tier == MIX_TIER]
        return value

    def _reweigh(self, mixing: Mixing, value: Tensor) -> None:
        tensors = {slot: value if slot.tier == MIX_TIER else tensor for slot, tensor in self.tensors.items()}
        for linear in self.linears.values():
            linear.install(tensors, self.scales, self.rows, None, mixing)

    @property
    def trained(self) -> dict[Slot, Tensor]:
        """The installed tensors that collect gradients."""
        return {slot: tensor for slot, tensor in self.tensors.items() if tensor.requires_grad}

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, N), or (B, T, N) of tokens; transformers' models answer with an object that holds them."""
        output = self._run_compiled(inputs) if self.compiled else self._run(inputs)
        return output if isinstance(output, Tensor) else output.logits

    def generate(self, prompts: Tensor, lengths: Tensor, max_new_tokens: int, stop: int, beams: int = 1) -> Tensor:
        """Return what the installed clients write after their prompts; see `decoding.generate`."""
        return generate(self.backbone, prompts, lengths, max_new_tokens, stop, beams)

    def _run(self, inputs: Tensor) -> Any:
        return self.backbone(inputs, **whole_texts(self.backbone, inputs))

    def _run_compiled(self, inputs: Tensor) -> Any:
        try:
            return self.compiled[0](inputs, **whole_texts(self.backbone, inputs))
        except Exception as error:  # the compiler's own, a missing C++ compiler's, …
            if is_out_of_memory(error):
                raise
            why = str(error).strip().partition("\n")[0]
            warnings.warn(f"torch.compile failed ({why}); the run goes on without it.", stacklevel=2)
            self.compiled.clear()
            return self._run(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int = 0) -> Tensor:
        """Return the client's loss on one batch of inputs (B, ...) and targets (B,); of a block the losses (K,).

        Where each token has a target, (B, T), the objective sees a client's tokens as it sees samples elsewhere.
        """
        assert self.objective is not None, "install a client first"
        inputs, targets = batch
        logits = self(inputs)
        if self.rows is None:
            return self.objective(logits.flatten(0, -2), targets.flatten(), self.tensors)
        logits, targets = self.rows.stack(logits), self.rows.stack(targets, IGNORED)
        return self.objective(logits.flatten(1, -2), targets.flatten(1), self.tensors)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return a fresh optimiser over the installed client's trained tensors."""
        local, by_rate = self.local, dict[float, list[Tensor]]()
        for slot, tensor in self.trained.items():
            by_rate.setdefault(self.rates.get(slot, local.learning_rate), []).append(tensor)
        parameters = [{"params": tensors, "lr": rate} for rate, tensors in by_rate.items()]
        if local.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, lr=local.learning_rate, momentum=local.momentum, weight_decay=local.weight_decay
            )
        return torch.optim.AdamW(parameters, lr=local.learning_rate, weight_decay=local.weight_decay, fused=True)
