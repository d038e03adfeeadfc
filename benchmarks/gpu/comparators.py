"""What fedsim's step is held against: LoRA without federation, and a loop over adapters inside every linear map.

The loop is how mLoRA (arXiv 2312.02515) trains several adapters on one frozen backbone: samples of all clients go
through the backbone as one batch, and every adapter adds its change to its own part.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.data.federated import FederatedData


class LoopedLoRA(nn.Module):
    """A frozen fused query-key-value map with n adapters at query and value, each for its n-th of the batch."""

    def __init__(self, base: nn.Linear, n: int, lora_rank: int):
        super().__init__()
        width = base.in_features
        self.base = base
        self.A = nn.ParameterList(torch.randn(2, lora_rank, width) / width**0.5 for _ in range(n))
        self.B = nn.ParameterList(torch.zeros(2, width, lora_rank) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + b, and to query and value what the adapters change."""
        query, key, value = self.base(x).chunk(3, -1)
        changes = [
            [F.linear(F.linear(own, A[part]), B[part]) for part in (0, 1)]
            for own, A, B in zip(x.chunk(len(self.A)), self.A, self.B, strict=True)
        ]
        of_query, of_value = map(torch.cat, zip(*changes, strict=True))
        return torch.cat([query + of_query, key, value + of_value], -1)


class LoopedHead(nn.Module):
    """n classifiers, each for its n-th of the batch."""

    def __init__(self, base: nn.Linear, n: int):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(base.in_features, base.out_features) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return torch.cat([head(own) for head, own in zip(self.heads, x.chunk(len(self.heads)), strict=True)])


def looped_step(
    model: nn.Module, n: int, data: FederatedData, rows: Sequence[Tensor], device: torch.device, lora_rank: int = 8
) -> Callable[[], None]:
    """Return a training step of n adapters on the rows of n clients in bfloat16; with n = 1 it is plain LoRA.

    `model` is a ViT of timm; adapters and classifiers are put into it.
    """
    model.requires_grad_(False)
    for block in model.blocks:
        block.attn.qkv = LoopedLoRA(block.attn.qkv, n, lora_rank)
    model.head = LoopedHead(model.head, n)
    model.to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    chosen, n_draws = torch.cat(list(rows)), data.n_draws

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            inputs, targets = data.batch(chosen, torch.rand(len(chosen), n_draws), device)
            losses = F.cross_entropy(model(inputs), targets, reduction="none")
        losses.view(n, -1).mean(1).sum().backward()
        optimizer.step()

    return step
