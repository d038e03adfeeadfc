"""Labelled images as a uint8 tensor that is mapped from a file, decoded and resized once.

Finding comes before decoding, so that missing data, a wrong column or missing weights cost seconds, not minutes.
Splitting over clients is not done here (see protocols.py).
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import Tensor

from fedsim.data.decoding import decoded_once
from fedsim.data.image_sources import Listed, Listing, list_class_folders, list_lists
from fedsim.data.image_tables import list_hub, list_parquet

VARIABLE = "FEDSIM_DATA"
"""Environment variable that names a folder of data sets."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which images, and how large."""

    path: Path | None = None
    """Folder of the data set, as such or inside $FEDSIM_DATA; default: its name there, then the hub and its cache.
    It holds <domain>_train.txt lists, or train*.parquet, or folders of images."""
    hub: str = ""
    """Name of the data set on the hub."""
    label_column: str = "label"
    """Column of class labels, in parquet files and on the hub."""
    group_column: str = ""
    """Column of domains or super-classes, in parquet files and on the hub; empty for none."""
    image_size: int = 224
    """Pixels on a side that the backbone gets."""
    stored_size: int | None = None
    """Pixels on a side that are kept in memory and enlarged batch by batch; default as the backbone gets them."""
    crop: float = 1.0
    """Smallest share of a side that a random training crop keeps; 1 for none. Mirroring comes with it or without."""
    top_classes: int | None = None
    """Keep only so many classes, those with the most training images; default all."""
    test_share: float = 0.2
    """Share of each class held out for testing where the data set has no test split of its own."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Mean of red, green and blue that the backbone was pre-trained with, of [0, 1]."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Standard deviation that goes with it."""

    def __post_init__(self) -> None:
        problems = []
        for name in ("image_size", "stored_size", "top_classes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name} is {value}; it must be 1 or more")
        if not 0 < self.test_share < 1:
            problems.append(f"test_share is {self.test_share}; it must lie between 0 and 1")
        if not 0 < self.crop <= 1:
            problems.append(f"crop is {self.crop}; it must lie in (0, 1]")
        if min(self.std) <= 0:
            problems.append(f"std is {self.std}; it must be positive")
        if problems:
            raise ValueError("; ".join(problems) + " (--data.*).")


@dataclass(frozen=True)
class LabelledImages:
    """One split: images (S, 3, H, W) uint8, targets (S,), group numbers (S,) or None, and what the numbers mean."""

    images: Tensor
    targets: Tensor
    class_names: tuple[str, ...]
    groups: Tensor | None = None
    group_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundImages:
    """A data set that is there, its labels read and its classes chosen; `decode` reads the images."""

    train: Listing
    test: Listing
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    size: int

    @property
    def n_classes(self) -> int:
        """N."""
        return len(self.class_names)

    def decode(self) -> tuple[LabelledImages, LabelledImages]:
        """Return the train and the test split; a damaged image is a ValueError that names it.

        Images are decoded once, ever: into a file of the cache folder, which all workers of a machine map into memory.
        """
        n_train, count = len(self.train.targets), len(self.train.targets) + len(self.test.targets)
        identity = f"{self.train.identity}|{self.test.identity}"
        encoded = (item for split in (self.train, self.test) for item in split.read(np.arange(len(split.targets))))
        images = decoded_once(identity, encoded, count, self.size)
        return self._labelled(self.train, images[:n_train]), self._labelled(self.test, images[n_train:])

    def _labelled(self, split: Listing, images: Tensor) -> LabelledImages:
        groups = None if split.groups is None else torch.from_numpy(split.groups)
        return LabelledImages(images, torch.from_numpy(split.targets), self.class_names, groups, self.group_names)


def load_images(options: ImageOptions) -> tuple[LabelledImages, LabelledImages]:
    """Find and decode: the train and the test split. Raises ValueError as `find_images` and `FoundImages.decode`."""
    return find_images(options).decode()


def find_images(options: ImageOptions) -> FoundImages:
    """Return the data set's listing. Decodes nothing, and writes nothing but what `datasets` keeps of a download.

    Raises ValueError when the data are not to be had (with what was tried and the command that gets them), are
    damaged, or have labels outside their class names.
    """
    listed = keep_top_classes(_with_test(_listed(options), options.test_share), options.top_classes)
    assert listed.test is not None
    for name, split in (("training", listed.train), ("test", listed.test)):
        if not len(split.targets):
            raise ValueError(f"'{options.path or options.hub}' has no {name} images (--data.path).")
    size = options.stored_size or options.image_size
    return FoundImages(listed.train, listed.test, listed.class_names, listed.group_names, size)


def _listed(options: ImageOptions) -> Listed:
    name = options.path or Path(options.hub.rpartition("/")[2].lower())
    tried = [f"--data.path '{options.path}' is no folder" if options.path else "--data.path is not given"]
    variable = os.environ.get(VARIABLE)
    if options.path and options.path.is_dir():
        return _list_folder(options.path, options)
    if variable and name != Path() and (Path(variable) / name).is_dir():
        return _list_folder(Path(variable) / name, options)
    tried.append(f"{VARIABLE} is '{variable}', without a folder '{name}'" if variable else f"{VARIABLE} is not set")
    if options.hub and not options.path:
        try:
            return list_hub(options.hub, options.label_column, options.group_column)
        except OSError as error:
            cache = datasets.config.HF_DATASETS_CACHE
            why = str(error).partition("\n")[0]
            tried.append(f"'{options.hub}' is neither in the hub cache '{cache}' nor to be downloaded ({why})")
    raise ValueError(f"The images are not to be had: {'; '.join(tried)}. {_command(options)}")


def _list_folder(folder: Path, options: ImageOptions) -> Listed:
    """DomainNet's lists if there are any, else parquet files, else images in folders named by class."""
    if lists := sorted(folder.glob("*_train.txt")):
        return list_lists(folder, [path.name.removesuffix("_train.txt") for path in lists])
    if files := sorted(folder.rglob("*.parquet")):
        return list_parquet(folder, files, options.label_column, options.group_column)
    return list_class_folders(folder)


def _command(options: ImageOptions) -> str:
    if not options.hub:
        return "Give their folder with --data.path, or their name on the hub with --data.hub."
    folder = options.hub.rpartition("/")[2].lower()
    return (
        f"Get them, on a machine with network, by `hf download --repo-type dataset {options.hub} --local-dir {folder}` "
        f"and pass --data.path {folder}."
    )


def _with_test(listed: Listed, share: float) -> Listed:
    """Hold out every (1/share)-th image of each class of each group where there is no test split."""
    if listed.test is not None:
        return listed
    targets, groups = listed.train.targets, listed.train.groups
    cells = targets if groups is None else targets + groups * len(listed.class_names)
    is_test = np.zeros(len(targets), bool)
    for cell in np.unique(cells):
        rows = np.flatnonzero(cells == cell)
        is_test[rows] = np.diff(np.floor(np.arange(len(rows) + 1) * share + 1e-9)) > 0
    train, test = (listed.train.take(np.flatnonzero(chosen)) for chosen in (~is_test, is_test))
    return replace(listed, train=train, test=test)


def keep_top_classes(listed: Listed, top: int | None) -> Listed:
    """Keep the `top` classes with the most training images (ties: the lower number), renumbered in their old order."""
    if top is None:
        return listed
    counts = np.bincount(listed.train.targets, minlength=len(listed.class_names))
    if top > len(counts):
        raise ValueError(f"top_classes is {top}, but there are {len(counts)} classes (--data.top-classes).")
    kept = np.sort(np.argsort(-counts, kind="stable")[:top])
    new_number = np.full(len(counts), -1)
    new_number[kept] = np.arange(top)

    def reduced(split: Listing) -> Listing:
        inside = split.take(np.flatnonzero(new_number[split.targets] >= 0))
        return replace(inside, targets=new_number[inside.targets])

    test = None if listed.test is None else reduced(listed.test)
    return replace(
        listed, train=reduced(listed.train), test=test, class_names=tuple(listed.class_names[k] for k in kept)
    )


def joined(train: LabelledImages, test: LabelledImages) -> tuple[Tensor, Tensor]:
    """Return images and targets of both splits; images that lie side by side in memory, as decoded, are not copied."""
    first, second = train.images, test.images
    targets = torch.cat((train.targets, test.targets))
    is_adjacent = first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    if is_adjacent and first.is_contiguous() and second.data_ptr() == first.data_ptr() + first.nbytes:
        return first.as_strided((len(targets), *first.shape[1:]), first.stride()), targets
    return torch.cat((first, second)), targets
