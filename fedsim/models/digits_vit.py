"""The embedded backbone: a small timm ViT that learns plain digits in seconds and is then kept on disk."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedsim.models.origin import known
from fedsim.models.sites import QUERY_VALUE
from fedsim.randomness import derive_seed, generator
from fedsim.storage.cache import cached_file

ARCHITECTURE = dict(
    img_size=32, patch_size=8, in_chans=1, embed_dim=64, depth=4, num_heads=4, num_classes=10, mlp_ratio=2.0
)
EPOCHS, BATCH_SIZE, LEARNING_RATE, SEED, THREADS = 50, 32, 2e-3, 0, 1


@dataclass(frozen=True, kw_only=True)
class DigitsViT:
    """The embedded backbone: a ViT of width 64 with 4 blocks and patches of 8×8, 140 k parameters."""

    sites: str = QUERY_VALUE
    """Names of the linear maps that carry adapters, a regular expression."""
    adapter: Path | None = None
    """PEFT adapter folder to start from; it is merged into the frozen backbone."""

    def backbone(self, data: Any, dry_run: bool = False) -> nn.Module:
        """Return `pretrained_digits_vit`, trained on the digits that no client has."""
        return pretrained_digits_vit(*data.pretraining_set())


def pretrained_digits_vit(images: Tensor, targets: Tensor) -> nn.Module:
    """Return the ViT trained on images (S, 1, 32, 32) in [-1, 1]; the first call trains it, later ones load the file.

    The file's name holds a hash of the data, the architecture and the training recipe, so a stale one is never used.
    Training uses one thread whatever the caller's setting, so the weights do not depend on it; so small a model gains
    nothing from two. Every tenth epoch is a line on the screen.
    """
    import timm

    recipe = f"{sorted(ARCHITECTURE.items())}{EPOCHS, BATCH_SIZE, LEARNING_RATE, SEED, THREADS}{timm.__version__}"
    content = hashlib.sha256(recipe.encode())
    content.update(images.numpy().tobytes() + targets.numpy().tobytes())

    def train(path: Path) -> None:
        model = _untrained()
        _train(model, images, targets)
        save_file(model.state_dict(), path)

    return digits_vit(cached_file(f"digits-vit-{content.hexdigest()[:16]}.safetensors", train))


@known(lambda weights: str(weights))
def digits_vit(weights: Path | str) -> nn.Module:
    """Return the ViT with the weights of a file; raises ValueError where they are not to be had or another model's."""
    model = _untrained()
    try:
        model.load_state_dict(load_file(weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"The weights '{weights}' of the digits' ViT cannot be loaded: {error}.") from None
    return model.eval()


def _untrained() -> nn.Module:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(SEED, "digits-vit"))
        return timm.create_model("vit_tiny_patch16_224", pretrained=False, **ARCHITECTURE)


def _train(model: nn.Module, images: Tensor, targets: Tensor) -> None:
    """AdamW with a one-cycle schedule on randomly shifted digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    random = generator(SEED, "digits-vit/batches")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    steps = EPOCHS * -(-len(images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(images), generator=random).split(BATCH_SIZE):
            shift = torch.randint(-3, 4, (2,), generator=random).tolist()
            batch = torch.roll(images[rows], shift, dims=(-2, -1))
            loss = F.cross_entropy(model(batch), targets[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if (epoch + 1) % 10 == 0:
            print(f"pre-training the backbone, once · epoch {epoch + 1}/{EPOCHS} · loss {loss.item():.3f}", flush=True)
    torch.set_num_threads(threads)
