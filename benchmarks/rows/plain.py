"""The same adapters as fedsim's, written in plain torch: what the centralised limit and two of the peers train."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workloads import Workload


class LoRALinear(nn.Module):
    """A frozen linear map plus B A."""

    def __init__(self, base: nn.Linear, A: Tensor, B: Tensor):
        super().__init__()
        self.base, self.A, self.B = base, nn.Parameter(A.clone()), nn.Parameter(B.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + b + B A x."""
        return self.base(x) + F.linear(F.linear(x, self.A), self.B)


class PlainModel(nn.Module):
    """A frozen backbone with one adapter at every site and a trained classifier; `trained` is by slot."""

    def __init__(self, workload: Workload):
        super().__init__()
        setting = workload.setting()
        initial = {str(slot): value for slot, value in workload.initial(setting).items()}
        self.backbone = setting.backbone.requires_grad_(False)
        self.trained: dict[str, nn.Parameter] = {}
        for site in setting.layout.sites:
            linear, slot = self.backbone.get_submodule(site.module), f"adapter/{site.name}"
            if site.is_head:
                self.trained |= {f"{slot}/W": linear.weight, f"{slot}/b": linear.bias}
                continue
            adapted = LoRALinear(linear, initial[f"{slot}/A"], initial[f"{slot}/B"])
            self.backbone.set_submodule(site.module, adapted)
            self.trained |= {f"{slot}/A": adapted.A, f"{slot}/B": adapted.B}
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        self.start = {slot: p.detach().clone() for slot, p in self.trained.items() if slot[-1] in "Wb"}

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        return self.backbone(inputs)

    def weights(self) -> dict[str, Tensor]:
        """Return what is trained by slot: factors as they are, of the classifier its change."""
        now = {slot: parameter.detach().cpu() for slot, parameter in self.trained.items()}
        return now | {slot: now[slot] - start for slot, start in self.start.items()}


def new_optimizer(parameters: Iterable[nn.Parameter], workload: Workload) -> torch.optim.Optimizer:
    """Return the AdamW of a client."""
    return torch.optim.AdamW(parameters, lr=workload.local.learning_rate, weight_decay=0.0, fused=True)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Tensor], workload: Workload) -> None:
    """Take a step on each batch of rows."""
    for rows in batches:
        inputs, targets = workload.inputs(rows)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
