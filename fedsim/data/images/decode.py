"""From encoded images to one uint8 tensor, once, ever: the tensor is a file that all workers map into memory."""

import hashlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from fedsim.data.sources.listing import Encoded
from fedsim.storage.cache import cached_file

LARGEST = 2**26
"""Pixels of an image that is decoded: 8192 × 8192. A few bytes may claim many more, which would fill the memory."""


def decoded_once(identity: str, encoded: Iterator[tuple[str, Encoded]], count: int, size: int) -> Tensor:
    """Return `count` images as (count, 3, size, size) uint8, from the cache where images of this identity are kept."""
    n_bytes = count * 3 * size**2
    path = cached_file(
        f"images-{hashlib.sha256(f'{identity}|{size}'.encode()).hexdigest()[:16]}.uint8",
        lambda path: _decode_all(encoded, count, size, path),
        lambda path: path.stat().st_size == n_bytes,
    )
    return torch.from_file(str(path), size=n_bytes, dtype=torch.uint8).view(count, 3, size, size)


def _decode_all(encoded: Iterator[tuple[str, Encoded]], count: int, size: int, path: Path) -> None:
    """Decode in threads (Pillow releases the interpreter lock), a few hundred at a time so that memory stays flat."""
    done = 0
    progress = Progress(transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True))
    with ThreadPoolExecutor() as pool, path.open("wb") as file, progress as bar:
        task = bar.add_task("decoding images, once", total=count)
        while chunk := list(islice(encoded, 256)):
            for image in pool.map(lambda item: decode(item[0], item[1], size), chunk):
                file.write(image.contiguous().numpy().tobytes())
            done += len(chunk)
            bar.update(task, completed=done)
    assert done == count, "a source yields as many images as it listed"


def decode(name: str, encoded: Encoded, size: int) -> Tensor:
    """Return an image as (3, size, size) uint8 RGB, squashed to a square: a crop could lose a drawing's object.

    Raises ValueError that names the image when it is missing, damaged or has more than `LARGEST` pixels.
    """
    try:
        with _opened(encoded) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"it has {image.width} × {image.height} pixels, and at most {LARGEST:,} are read")
            # Palettes with transparency go through RGBA, as Pillow's warning asks.
            opaque = (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"The image '{name}' cannot be read: {error}.") from error
    if opaque.size != (size, size):
        opaque = opaque.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(opaque)).permute(2, 0, 1)


def _opened(encoded: Encoded) -> Image.Image:
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded)
    return Image.open(encoded if isinstance(encoded, Path) else BytesIO(encoded))  # reads the size, no pixels
