"""From raw uint8 images to what a backbone takes: whole batches at once, on the device they are on.

What is random comes from outside, as uniform numbers of each sample, so that a client's images do not depend on whose
images are in the same batch.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ImageTransform:
    """uint8 (B, 3, H, W) to floats (B, 3, size, size) around zero."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0
    """Smallest share of a side that a training crop keeps; 1 for no crop."""

    @property
    def n_draws(self) -> int:
        """Uniform numbers that `augment` needs for each image: a flip, and a crop's size and place."""
        return 1 if self.crop == 1 else 4

    def __call__(self, images: Tensor) -> Tensor:
        """Resize and normalise."""
        return self._normalised(resized(images.float() / 255, self.size))

    def augment(self, images: Tensor, draws: Tensor) -> Tensor:
        """Flip half of the images, crop and resize, and normalise; draws (B, n_draws)."""
        flipped = flip_some(images, draws[:, 0])
        if self.crop == 1:
            return self(flipped)
        return self._normalised(cropped(flipped.float() / 255, draws[:, 1:], self.crop, self.size))

    def _normalised(self, images: Tensor) -> Tensor:
        mean, std = (_by_channel(numbers, images.device, images.dtype) for numbers in (self.mean, self.std))
        return (images - mean) / std


@lru_cache
def _by_channel(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers (C, 1, 1), copied to a device once: the host would wait in every batch."""
    return torch.tensor(numbers, device=device, dtype=dtype).view(-1, 1, 1)


def resized(images: Tensor, size: int) -> Tensor:
    """Return images of [0, 1] at size x size."""
    if images.shape[-1] == size:
        return images
    # With antialias, torch's bicubic kernel is Pillow's.
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)


def flip_some(images: Tensor, draws: Tensor) -> Tensor:
    """Mirror those images left to right whose uniform draw (B,) is below one half."""
    return torch.where((draws < 0.5).view(-1, 1, 1, 1), images.flip(-1), images)


def cropped(images: Tensor, draws: Tensor, smallest: float, size: int) -> Tensor:
    """Return a square of each image of [0, 1], enlarged to size x size in one resampling.

    Uniform draws (B, 3) give its side, between `smallest` and 1 of the image's, and its place, all of it inside.
    """
    side = smallest + (1 - smallest) * draws[:, 0]
    centre = (1 - side).unsqueeze(1) * (2 * draws[:, 1:] - 1)
    theta = torch.cat((torch.diag_embed(torch.stack((side, side), 1)), centre.unsqueeze(2)), dim=2)
    grid = F.affine_grid(theta, [len(images), images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)
