"""Labelled images as a uint8 tensor that is mapped from a file, decoded and resized once.

Finding comes before decoding, so that missing data, a wrong column or missing weights cost seconds, not minutes.
Splitting over clients is not done here (see protocols.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fedsim.data.client_options import ClientOptions
from fedsim.data.images.arrays import list_arrays, list_binaries
from fedsim.data.images.decode import decoded_once
from fedsim.data.images.folders import has_class_folders, is_by_class, list_class_folders, list_lists, refuse_pickles
from fedsim.data.images.transforms import ImageTransform
from fedsim.data.sources.find import SourceOptions, check_splits, find, on_disk
from fedsim.data.sources.labelled import Found, Labelled
from fedsim.data.sources.listing import Encoded, Listed, Listing, identity_of
from fedsim.data.sources.registry import IMAGE_SETS, LEFT_OUT, filled
from fedsim.data.sources.tables import Content, Features, list_files, list_hub

ImageSetName = Literal["cifar10", "cifar100", "domainnet", "mnist", "office-caltech10", "pacs", "tiny-imagenet", "own"]
FILE_COLUMNS = ("image", "file", "file_name", "filename", "path")
"""What columns of files' names are called in CSV."""
CSV_ENDINGS = (".csv", ".tsv")


@dataclass(frozen=True, kw_only=True)
class ImageOptions(SourceOptions):
    """Which images, and how large. A folder has <domain>_train.txt lists, parquet, an .npz, .bin, idx, folders, CSV."""

    dataset: ImageSetName = "own"
    """A known data set, which sets `hub`, the columns, `test_split` and `stored_size` where they are left out; or your
    own."""
    image_size: int = 224
    """Pixels on a side that the backbone gets."""
    stored_size: int | None = None
    """Pixels on a side that are kept in memory and enlarged batch by batch; default as the backbone gets them."""
    augment: bool = True
    """Mirror training images at random, and crop them."""
    crop: float = 1.0
    """Smallest share of a side that a random training crop keeps; 1 for none."""
    mean: tuple[float, float, float] | None = None
    """Mean of red, green and blue, of [0, 1]; default: see `normalise`."""
    std: tuple[float, float, float] | None = None
    """Standard deviation that goes with it."""
    normalise: Literal["backbone", "dataset"] = "backbone"
    """Where mean and std are left out: as the backbone was pre-trained, or as a known data set's are; else 0.5."""

    def resolved(self) -> "ImageOptions":
        """Return the options with those of the known data set wherever one was left out."""
        known = IMAGE_SETS.get(self.dataset, {})
        if self.normalise == "backbone":
            known = {name: value for name, value in known.items() if name not in ("mean", "std")}
        if known and "hub" not in known and not self.hub:
            known = {**known, "path": Path(self.dataset)}
        return replace(self, **filled(vars(self), known))

    def problems(self) -> list[str]:
        """What is out of range of images only."""
        problems = []
        if self.normalise == "dataset" and not self.mean:
            known = [name for name, entry in IMAGE_SETS.items() if "mean" in entry]
            if self.dataset not in known:
                problems.append(f"normalise is dataset; mean and std are known of {known} only")
        if self.std and min(self.std) <= 0:
            problems.append(f"std is {self.std}; it must be positive")
        return problems

    def embedded(self, split: ClientOptions) -> Any:
        """Return the embedded digits, with as many proxy samples as `split` has."""
        from fedsim.data.builtin.digits import DigitStyles

        return DigitStyles(proxy_samples=split.proxy_samples)

    def find(self, model: Any) -> "FoundImages":
        """Return the listing; where nothing is said, images are normalised as `model` was pre-trained."""
        is_said = self.mean is not None or self.std is not None or self.normalise == "dataset"
        return find_images(self if is_said else replace(self, **model.statistics()))

    def presented(self) -> dict[str, Any]:
        """The fields of `FederatedData` that say how the backbone gets the images."""
        half = (0.5, 0.5, 0.5)
        transform = ImageTransform(self.image_size, self.mean or half, self.std or half, self.crop)
        plain: dict[str, Any] = {"transform": transform}
        return plain | {"augment": transform.augment, "n_draws": transform.n_draws} if self.augment else plain


@dataclass(frozen=True)
class FoundImages(Found):
    """Images that are there; `decode` reads them."""

    options: ImageOptions = field(kw_only=True)

    def decode(self) -> tuple[Labelled, Labelled]:
        """Return the train and the test split, (S, 3, H, W) uint8; a damaged image is a ValueError that names it.

        Images are decoded once, ever: into a file of the cache folder, which all workers of a machine map into memory.
        """
        size = self.options.stored_size or self.options.image_size
        return self._presented(decoded_once(self.identity, self.read(), sum(self.sizes), size))

    def load(self, dry_run: bool) -> tuple[Labelled, Labelled]:
        """Return both splits; in a dry run without their images."""
        return self.placeholder() if dry_run else self.decode()

    def placeholder(self) -> tuple[Labelled, Labelled]:
        """Return both splits with their labels and blank images of one pixel: all that counting takes."""
        return self._presented(torch.zeros(sum(self.sizes), 3, 1, 1, dtype=torch.uint8))

    def _presented(self, images: torch.Tensor) -> tuple[Labelled, Labelled]:
        return self.labelled(images, **self.options.presented(), **self.options.scoring(self.n_classes))


def load_images(options: ImageOptions) -> tuple[Labelled, Labelled]:
    """Find and decode: the train and the test split. Raises ValueError as `find_images` and `FoundImages.decode`."""
    return find_images(options).decode()


def find_images(options: ImageOptions) -> FoundImages:
    """Return the data set's listing. Decodes nothing, and writes nothing but what `datasets` keeps of a download.

    Folders by class alone are your own data: no known set lies so.

    Raises ValueError when the data are not to be had (with what was tried and the command that gets them), are
    damaged, or have labels outside their class names.
    """
    folder = on_disk(options.path) if options.path else None
    if folder and folder.is_dir() and is_by_class(folder):
        options = replace(options, dataset="own")
    options = options.resolved()
    listed = find(options, "images", partial(_list_folder, options), partial(list_hub, options, image_content))
    return FoundImages(**vars(listed), options=options)


def _list_folder(options: ImageOptions, folder: Path) -> Listed:
    """DomainNet's lists if there are any, else parquet, arrays, folders named by class, or a CSV of files' names."""
    if folder.is_file() and folder.suffix != ".npz":
        listed = list_files(options, image_content, folder)
        return _with_files(listed) if folder.suffix in CSV_ENDINGS else listed
    arrays = [folder] if folder.is_file() else sorted(folder.glob("*.npz"))
    lists = sorted(folder.glob("*_train.txt"))
    if not lists and any(folder.rglob("*.parquet")):
        return list_files(options, image_content, folder)
    if len(arrays) > 1 and not lists:
        raise ValueError(f"'{folder}' has several .npz files, {[path.name for path in arrays[:5]]}; leave one there.")
    if lists:
        whole = list_lists(folder, [path.name.removesuffix("_train.txt") for path in lists])
    else:
        whole = list_arrays(arrays[0]) if arrays else list_binaries(folder)
    if whole:
        check_splits(options, folder)
        return whole
    refuse_pickles(folder)
    if not has_class_folders(folder) and any(folder.glob("*.[ct]sv")):
        return _with_files(list_files(options, image_content, folder))
    return list_class_folders(options, image_content, folder)


def _with_files(listed: Listed) -> Listed:
    """The listing whose splits are identified by the files, too, that their tables name; all must be there."""

    def identified(split: Listing) -> Listing:
        paths = [item for _, item in split.read(np.arange(len(split.targets))) if isinstance(item, Path)]
        return replace(split, identity=f"{split.identity}|{identity_of(paths)}")

    test = listed.test and identified(listed.test)
    return replace(listed, train=identified(listed.train), test=test)


def image_content(features: Features, source: str) -> Content:
    """The first column of images; in CSV the first one called so, else one of two, is files' names beside the table."""
    import datasets

    for name, feature in features.items():
        if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature):
            return Content((name,), partial(_encoded, name))
    rest = [name for name in features if name != LEFT_OUT["label_column"]]
    if source.endswith(CSV_ENDINGS):
        called = [name for name in rest if name.lower() in FILE_COLUMNS]
        if chosen := called[:1] or (rest if len(rest) == 1 and len(features) <= 2 else []):
            return Content(tuple(chosen), partial(_beside, Path(source).parent, chosen[0]))
    columns = ", ".join(f"{name} ({getattr(kind, 'dtype', type(kind).__name__)})" for name, kind in features.items())
    raise ValueError(
        f"'{source}' has no column of images, as `datasets` writes them with the bytes of each file; it has {columns}."
    )


def _beside(folder: Path, column: str, record: Mapping[str, Any], name: str) -> Encoded:
    if not (path := folder / str(record[column] or "")).is_file():
        raise ValueError(f"'{name}' names the image '{path}', which is not there (--data.path).")
    return path


def _encoded(column: str, record: Mapping[str, Any], name: str) -> Encoded:
    cell = record[column] or {}
    encoded: bytes | None = cell.get("bytes")
    if not encoded and not cell.get("path"):
        raise ValueError(f"'{name}' is damaged: its column '{column}' holds no image. Fetch it again.")
    return encoded or Path(cell["path"])
