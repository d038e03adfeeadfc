"""Images in files of their own: DomainNet's lists, folders by class. None is decoded."""

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsim.data.sources.find import SAME, SourceOptions, find_splits, words_for
from fedsim.data.sources.listing import Encoded, Listed, Listing, identity_of
from fedsim.data.sources.tables import FindContent, list_tables, quietly
from fedsim.storage.cache import cache_folder

if TYPE_CHECKING:
    import datasets

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
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
    found: list[tuple[Path, int, int]] = []
    for place, domain in enumerate(domains):
        source = folder / f"{domain}_{split}.txt"
        if not source.is_file():
            raise ValueError(f"'{source}' is missing; every domain needs a list for training and one for testing.")
        for number, line in enumerate(source.read_text().splitlines(), 1):
            relative, _, digits = line.strip().rpartition(" ")
            if not (relative and digits.isdecimal()):
                raise ValueError(f"'{source}', line {number}, is '{line}' and not 'relative/path.jpg label'.")
            path, label = folder / relative, int(digits)
            if number == 1 and not path.is_file():
                raise ValueError(f"'{source}' names the image '{path}', which is not there; unpack all images.")
            if split == "train":
                names.setdefault(label, path.parent.name)
            if names.get(label) != path.parent.name:
                known = f"stands for '{names[label]}'" if label in names else "is outside the training labels"
                raise ValueError(f"'{source}', line {number}, gives '{relative}' the label {label}, which {known}.")
            found.append((path, label, place))
    paths = [path for path, _, _ in found]
    numbers = np.array([rest for _, *rest in found], int).reshape(-1, 2)
    return Listing(numbers[:, 0], numbers[:, 1], partial(_read, paths), identity_of(paths))


def _read(paths: Sequence[Path], rows: np.ndarray) -> Iterator[tuple[str, Encoded]]:
    yield from ((str(paths[row]), paths[row]) for row in rows)


def list_class_folders(options: SourceOptions, find_content: FindContent, folder: Path) -> Listed:
    """`<class>/*.jpg`, `<domain>/<class>/*.jpg`, or `train/<class>/*.jpg` and `test/<class>/*.jpg`.

    Names are in alphabetical order. `datasets` reads the files, whose own guess at splits would take a class named
    "train" for one. Raises ValueError when the folder has none of these layouts or lacks a split (see `find_splits`).
    """
    tops = [folder] if is_by_class(folder) else _folders(folder)
    if not any(map(_folders, tops)):
        raise ValueError(
            f"'{folder}' holds neither lists (<domain>_train.txt), nor train*.parquet, nor .npz, .bin or idx files, "
            "nor folders of images (<class>, <domain>/<class>, or train/<class> and test/<class>), nor a CSV of files "
            f"(--data.path); it has {sorted(path.name for path in folder.iterdir())[:8]}."
        )
    splits = _split_folders(folder, tops, options)
    files = {split: _images(of_split) for split, of_split in splits.items()}
    if empty := [split for split, paths in files.items() if not paths]:
        raise ValueError(f"'{folder}' has no images in the folders of classes of '{empty[0]}' (--data.path).")
    rows = _image_folder(files)
    own = replace(options, label_column="label", domain_column="")
    if splits[options.train_split] is tops and tops != [folder]:
        (every,), own = files.values(), replace(own, domain_column="domain")
        rows = {split: rows[split].add_column("domain", [path.parts[-3] for path in every]) for split in splits}
    parts = {split: {f"{folder}/{split}": rows[split]} for split in splits}
    return list_tables(own, str(folder), parts, {split: identity_of(files[split]) for split in splits}, find_content)


def _split_folders(folder: Path, tops: Sequence[Path], options: SourceOptions) -> dict[str, list[Path]]:
    """The folders of classes' folders of each split: one, or all of them; see `find_splits`."""
    named = {top.name.lower(): [top] for top in tops if top != folder}
    reserved = {word for words in SAME for word in words} | {(options.test_split or "test").lower()}
    is_whole = not reserved & named.keys() and options.train_split == SourceOptions.train_split
    if is_whole and tops != [folder] and (stray := [str(path) for top in tops for path in _inside(top)]):
        raise ValueError(
            f"'{folder}' has images at two depths: as in <domain>/<class>/ and, {len(stray)} of them, as in <class>/ "
            f"({', '.join(stray[:2])}). Lay out all in one way (--data.path)."
        )

    def look_up(split: str) -> Sequence[Path]:
        if is_whole and split == options.train_split:
            return tops
        return next((named[word] for word in words_for(split.lower()) if word in named), [])

    def missing(split: str) -> str:
        return f"'{folder}' has no folder for the split '{split}'; it has {[top.name for top in tops][:8]}"

    return find_splits(options, look_up, missing)


def _image_folder(files: Mapping[str, Sequence[Path]]) -> "datasets.DatasetDict":
    """Return the images of each split with the names of their folders as labels, which all splits number alike."""
    from datasets import load_dataset

    names = {split: [glob.escape(str(path)) for path in paths] for split, paths in files.items()}
    with quietly():
        kept = str(cache_folder() / "tables")
        return load_dataset("imagefolder", data_files=names, drop_labels=False, drop_metadata=True, cache_dir=kept)


def refuse_pickles(folder: Path) -> None:
    """Raise ValueError where CIFAR's own files for Python are, which are pickles: reading one runs its code."""
    for pattern in PICKLES:
        if found := sorted(path for top in ("", "*/") for path in folder.glob(top + pattern) if path.is_file()):
            raise ValueError(
                f"'{found[0]}' is a pickle, as CIFAR's own files for Python are. Reading one can run code, so none is "
                "read; give their binary version (.bin) or parquet, as the hub has them (--data.path)."
            )


def is_by_class(folder: Path) -> bool:
    """Whether images lie in folders by class, two at least, which are in no folders by split or domain."""
    tops = _folders(folder)
    classes = {top.name.lower() for top in tops if _inside(top)}
    return len(classes) > 1 and bool(classes - {word for words in SAME for word in words}) and not _images(tops)


def has_class_folders(folder: Path) -> bool:
    """Whether images lie in folders by class, which may be in folders by split or domain."""
    return is_by_class(folder) or bool(_images(_folders(folder)))


def _inside(top: Path) -> list[Path]:
    """Images of a folder itself."""
    return sorted(path for path in top.glob("*") if path.suffix.lower() in SUFFIXES)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(tops: Sequence[Path]) -> list[Path]:
    """All images of all classes' folders inside these."""
    return sorted(path for top in tops for path in top.glob("*/*") if path.suffix.lower() in SUFFIXES)
