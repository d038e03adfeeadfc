"""Images that lie in files: DomainNet's lists, Tiny-ImageNet's folders, folders by class, arrays. None is decoded."""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from fedsim.data.listing import Encoded, Listed, Listing, identity_of

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})

ANNOTATIONS = "val_annotations.txt"
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
PICKLES = ("data_batch_[0-9]", "batches.meta", "meta", "*.pkl", "*.pickle")
"""What CIFAR-10's and CIFAR-100's own files for Python are called, and others'."""


def list_lists(folder: Path, domains: Sequence[str]) -> Listed:
    """DomainNet's own layout: `<domain>_train.txt` and `<domain>_test.txt`, whose lines are `relative/path.jpg label`.

    A class is named by the folder its images are in. Raises ValueError that names the list when one is missing, has
    another kind of line, a label that is not among the training labels, or images that are not there.
    """
    names: dict[int, str] = {}
    train = _read_lists(folder, domains, "train", names)
    test = _read_lists(folder, domains, "test", names)
    class_names = tuple(names.get(label, str(label)) for label in range(max(names, default=-1) + 1))
    return Listed(train, test, class_names, tuple(domains))


def _read_lists(folder: Path, domains: Sequence[str], split: str, names: dict[int, str]) -> Listing:
    """Read one split of every domain; training lists add to `names`, test lists must agree with them."""
    paths: list[Path] = []
    targets: list[int] = []
    groups: list[int] = []
    for group, domain in enumerate(domains):
        source = folder / f"{domain}_{split}.txt"
        for number, (relative, label) in enumerate(_lines(source), 1):
            path = folder / relative
            if number == 1 and not path.is_file():
                raise ValueError(
                    f"'{source}' names the image '{path}', which is not there; unpack the domain's images."
                )
            if split == "train":
                names.setdefault(label, path.parent.name)
            if names.get(label) != path.parent.name:
                known = f"stands for '{names[label]}'" if label in names else "is outside the training labels"
                raise ValueError(f"'{source}', line {number}, gives '{relative}' the label {label}, which {known}.")
            paths.append(path)
            targets.append(label)
            groups.append(group)
    return _files(paths, targets, groups)


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    if not path.is_file():
        raise ValueError(f"'{path}' is missing; every domain needs a list for training and one for testing.")
    for number, line in enumerate(path.read_text().splitlines(), 1):
        relative, _, label = line.strip().rpartition(" ")
        if not (relative and label.isdecimal()):
            raise ValueError(f"'{path}', line {number}, is '{line}' and not 'relative/path.jpg label'.")
        yield relative, int(label)


def list_class_folders(folder: Path) -> Listed:
    """`train/<class>/*.jpg` and `test/<class>/*.jpg`, or `<domain>/<class>/*.jpg`; names in alphabetical order.

    Raises ValueError when the folder has neither, or a test class is no training class.
    """
    tops = _folders(folder)
    has_splits = {"train", "test"} <= {top.name for top in tops}
    tops = [folder / "train", folder / "test"] if has_splits else tops
    class_names = tuple(sorted({inner.name for top in (tops[:1] if has_splits else tops) for inner in _folders(top)}))
    if not class_names:
        raise ValueError(
            f"'{folder}' holds neither lists (<domain>_train.txt), nor train*.parquet, nor an .npz, nor folders of "
            "images (train/<class> and test/<class>, or <domain>/<class>) (--data.path); it has "
            f"{sorted(path.name for path in folder.iterdir())[:8]}."
        )
    if strange := sorted({inner.name for inner in _folders(tops[-1])} - set(class_names)):
        raise ValueError(f"'{tops[-1]}' has the classes {strange[:5]}, which '{tops[0]}' does not have.")
    found = [
        (path, label, group)
        for group, top in enumerate(tops)
        for label, name in enumerate(class_names)
        for path in _images(top / name)
    ]
    every = _files(*([list(column) for column in zip(*found, strict=True)] or [[], [], []]))
    if not has_splits:
        return Listed(every, None, class_names, tuple(top.name for top in tops))
    assert every.groups is not None
    train, test = (every.take(np.flatnonzero(every.groups == split)) for split in (0, 1))
    return Listed(replace(train, groups=None), replace(test, groups=None), class_names)


def list_tiny_imagenet(folder: Path) -> Listed:
    """Tiny-ImageNet's own layout: `train/<class>/images/*`, and `val/images/*` with their classes in a list.

    Classes are named by their WordNet numbers and sorted, as on the hub; its `test` images have no labels. Raises
    ValueError that names the line of an image that is not there or whose class is no training class.
    """
    class_names = tuple(top.name for top in _folders(folder / "train"))
    train = [(path, k) for k, name in enumerate(class_names) for path in _images(folder / "train" / name / "images")]
    test, source = [], folder / "val" / ANNOTATIONS
    for number, line in enumerate(source.read_text().splitlines(), 1):
        name, _, label = line.partition("\t")
        label = label.partition("\t")[0]
        path = folder / "val" / "images" / name
        if label not in class_names or not path.is_file():
            raise ValueError(
                f"'{source}', line {number}, is '{line[:80]}' and not an image of val/images and its class."
            )
        test.append((path, class_names.index(label)))
    listings = (_files([path for path, _ in part], [k for _, k in part], [0] * len(part)) for part in (train, test))
    of_train, of_test = (replace(listing, groups=None) for listing in listings)
    return Listed(of_train, of_test, class_names)


def list_arrays(path: Path) -> Listed:
    """An `.npz` of `x_train`, `y_train`, `x_test` and `y_test`, as MNIST is given out; images are (S, H, W[, 3]) uint8.

    Raises ValueError when the file is damaged, lacks an array or holds others than these; pickled objects are not read.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"'{path}' is damaged or has not the arrays {', '.join(ARRAYS)}: {reason}.") from error
    shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in arrays.items())
    parts = [(arrays[f"x_{split}"], arrays[f"y_{split}"].squeeze()) for split in ("train", "test")]
    for images, labels in parts:
        is_image = images.dtype == np.uint8 and (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3))
        if not is_image or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(f"'{path}' holds {shapes}; it must be images (S, H, W[, 3]) uint8 and a label of each.")
    parts = [(images, labels.astype(int)) for images, labels in parts]
    n_classes = int(parts[0][1].max(initial=-1)) + 1
    if strange := sorted({int(label) for _, labels in parts for label in labels if not 0 <= label < n_classes}):
        raise ValueError(f"'{path}' has the labels {strange[:5]}, outside those for training (0 … {n_classes - 1}).")
    identity = identity_of([path])
    train, test = (
        Listing(labels, None, partial(_of_array, images, f"{path}, {name}"), f"{identity}|{name}")
        for (images, labels), name in zip(parts, ("x_train", "x_test"), strict=True)
    )
    return Listed(train, test, tuple(map(str, range(n_classes))))


def _of_array(images: np.ndarray, name: str, rows: np.ndarray) -> Iterator[tuple[str, Encoded]]:
    yield from ((f"{name}, row {row}", images[row]) for row in rows)


def refuse_pickles(folder: Path) -> None:
    """Raise ValueError where CIFAR's own files for Python are, which are pickles: reading one runs its code."""
    for pattern in PICKLES:
        if found := sorted(path for top in ("", "*/") for path in folder.glob(top + pattern) if path.is_file()):
            raise ValueError(
                f"'{found[0]}' is a pickle, as CIFAR's own files for Python are. Reading one can run code, so none is "
                "read; give a folder of the same data as parquet, as the hub has them (--data.path)."
            )


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)


def _files(paths: Sequence[Path], targets: Sequence[int], groups: Sequence[int]) -> Listing:
    def read(rows: np.ndarray) -> Iterator[tuple[str, Encoded]]:
        yield from ((str(paths[row]), paths[row]) for row in rows)

    return Listing(np.array(targets, int), np.array(groups, int), read, identity_of(paths))
