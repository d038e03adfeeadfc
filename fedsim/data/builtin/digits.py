"""The embedded data set: scikit-learn's 1,797 handwritten digits (8×8, UCI, CC BY 4.0) drawn in six styles at 32×32.

Three disjoint pools of digits: one, drawn plainly, to pre-train a backbone, one to train and one to test on. A
digit of a pool appears once in every style, so no test digit was ever trained on in any style.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.data.client_options import ClientOptions
from fedsim.data.federated import FederatedData
from fedsim.data.partition.dealing import Pools
from fedsim.data.partition.dirichlet import by_domain, choose_unseen
from fedsim.data.proxy import split_off_proxy, with_proxy

STYLES = ("flipped", "inverted", "rotated", "outline", "textured", "warped")
SIZE = 32


@dataclass(frozen=True, kw_only=True)
class DigitStyles(ClientOptions):
    """How the digits are split over clients."""

    clients_per_style: int = 4
    """Clients in each of the six styles."""
    train_per_client: int = 100
    """Mean number of training digits of a client."""
    test_per_client: int = 50
    """Mean number of test digits of a client."""
    alpha: float = 2.0
    """Dirichlet concentration over labels inside a style."""

    def federations(self, model: Any, dry_run: bool = False) -> "DigitStyles":
        """They are there."""
        return self

    def federation(self, rng: np.random.Generator) -> FederatedData:
        """Return the data of all clients; see `digit_styles`."""
        return digit_styles(self, rng)

    def pretraining_set(self) -> tuple[Tensor, Tensor]:
        """Return what the backbone is pre-trained on; see `pretraining_set`."""
        return pretraining_set()


def draw(digits: Tensor, style: str) -> Tensor:
    """Draw digits (S, 8, 8) in [0, 1] in one of the six styles, (S, 1, 32, 32) uint8; deterministic."""
    plain = F.interpolate(digits[:, None], size=(SIZE, SIZE), mode="bilinear", align_corners=False).clamp(0, 1)
    return (_STYLE_FUNCTIONS[style](plain).clamp(0, 1) * 255).round().to(torch.uint8)


def _outline(images: Tensor) -> Tensor:
    thick = F.max_pool2d(images, 3, stride=1, padding=1)
    thin = -F.max_pool2d(-images, 3, stride=1, padding=1)
    return (thick - thin) * 2


def _textured(images: Tensor) -> Tensor:
    axis = torch.arange(SIZE) * (2 * math.pi / 8)
    stripes = 0.5 + 0.5 * torch.sin(axis[:, None] + axis[None, :])
    return 0.3 * stripes + 0.7 * images


def _warped(images: Tensor) -> Tensor:
    line = torch.linspace(-1, 1, SIZE)
    y, x = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack((-x + 0.2 * torch.sin(5 * y), y + 0.2 * torch.sin(5 * x)), dim=-1)
    return F.grid_sample(images, grid.expand(len(images), -1, -1, -1), align_corners=True)


_STYLE_FUNCTIONS = {
    "plain": lambda images: images,
    "flipped": lambda images: images.flip(-2),
    "inverted": lambda images: 1 - images,
    "rotated": lambda images: images.rot90(1, dims=(-2, -1)),
    "outline": _outline,
    "textured": _textured,
    "warped": _warped,
}


def pools() -> dict[str, tuple[Tensor, Tensor]]:
    """Return the three disjoint pools "pretrain", "train" and "test" of (digits (S, 8, 8) in [0, 1], targets (S,))."""
    from sklearn.datasets import load_digits

    digits, targets = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(targets))
    images = torch.from_numpy(digits[order]).float().view(-1, 8, 8) / 16
    labels = torch.from_numpy(targets[order]).long()
    cuts = {"pretrain": slice(0, 597), "train": slice(597, 1197), "test": slice(1197, None)}
    return {name: (images[cut], labels[cut]) for name, cut in cuts.items()}


def pretraining_set() -> tuple[Tensor, Tensor]:
    """Return the plain digits (S, 1, 32, 32), normalised, and targets (S,) that no client has."""
    digits, targets = pools()["pretrain"]
    return normalise(draw(digits, "plain")), targets


def normalise(images: Tensor) -> Tensor:
    """uint8 (B, 1, 32, 32) to floats around zero."""
    return images.float() / 127.5 - 1


def digit_styles(split: DigitStyles, rng: np.random.Generator) -> FederatedData:
    """Return the federation: `clients_per_style` clients in each style, labels Dirichlet inside a style."""
    images, targets, domains, offsets = [], [], [], {}
    for pool, per_client in (("train", split.train_per_client), ("test", split.test_per_client)):
        digits, labels = pools()[pool]
        wanted = split.clients_per_style * per_client
        if wanted > len(labels):
            raise ValueError(
                f"{split.clients_per_style} clients with {per_client} {pool} digits each need {wanted} digits; the "
                f"{pool} pool has {len(labels)} (--data.clients-per-style, --data.{pool}-per-client)."
            )
        offsets[pool] = sum(map(len, targets))
        for domain, style in enumerate(STYLES):
            chosen = torch.from_numpy(np.sort(rng.permutation(len(labels))[:wanted]))
            images.append(draw(digits[chosen], style))
            targets.append(labels[chosen])
            domains.append(torch.full((wanted,), domain))
    all_targets, all_domains = torch.cat(targets).numpy(), torch.cat(domains).numpy()
    border = offsets["test"]
    both = Pools(all_targets[:border], all_targets[border:], split.clients_per_style)
    (train, test), client_domains = by_domain(both, (all_domains[:border], all_domains[border:]), split.alpha, rng)
    data = FederatedData(
        inputs=torch.cat(images),
        targets=torch.cat(targets),
        train=train,
        test=[rows + border for rows in test],
        class_names=[str(digit) for digit in range(10)],
        unseen=choose_unseen(client_domains, split.unseen_fraction, rng),
        domains=client_domains,
        domain_names=STYLES,
        transform=normalise,
    )
    return with_proxy(data, split_off_proxy(all_targets[:border], split.proxy_samples, rng)[0])
