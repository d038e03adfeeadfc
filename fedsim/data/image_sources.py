"""Where labelled images come from: the hub, parquet files, DomainNet's lists or folders of images.

A source is listed first and read later: labels are cheap, so classes are chosen and most mistakes found before any
image is decoded. Nothing here decodes (see images.py), and nothing but `datasets`' own cache is written.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Encoded = bytes | Path
"""An image file: its bytes, or where it is."""
Reader = Callable[[np.ndarray], Iterator[tuple[str, Encoded]]]
"""Yields (what to call it in a message, image) for the given rows, which are in ascending order."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})


@dataclass(frozen=True)
class Listing:
    """One split before decoding: class numbers (S,), group numbers (S,) or None, and a way to read rows of it."""

    targets: np.ndarray
    groups: np.ndarray | None
    read: Reader

    def take(self, rows: np.ndarray) -> "Listing":
        """Return the split that has only these rows, in ascending order."""
        groups = None if self.groups is None else self.groups[rows]
        return Listing(self.targets[rows], groups, lambda inside: self.read(rows[inside]))


@dataclass(frozen=True)
class Listed:
    """A data set before decoding; `test` is None where the source has no test split of its own."""

    train: Listing
    test: Listing | None
    class_names: tuple[str, ...]
    group_names: tuple[str, ...] = ()


def list_folder(folder: Path, label_column: str, group_column: str) -> Listed:
    """List a folder: DomainNet's lists if it has any, else parquet files, else images in folders named by class.

    The columns matter to parquet files only. Raises ValueError when the folder has none of the three layouts.
    """
    if lists := sorted(folder.glob("*_train.txt")):
        return _from_lists(folder, [path.name.removesuffix("_train.txt") for path in lists])
    if parquet := sorted(folder.rglob("*.parquet")):
        return _from_parquet(folder, parquet, label_column, group_column)
    return _from_class_folders(folder)


def list_hub(name: str, label_column: str, group_column: str) -> Listed:
    """List a data set of the hub, which `datasets` downloads or finds in its cache; raises OSError when it cannot."""
    try:
        splits = datasets.load_dataset(name)
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise OSError(str(error)) from error
    if "train" not in splits:
        raise ValueError(f"The data set '{name}' has the splits {sorted(splits)} and no split 'train'.")
    features = splits["train"].features
    image = _image_column(features, name)
    tables, readers = {}, {}
    for split in ("train", "test"):
        if split in splits:
            rows = splits[split].cast_column(image, datasets.Image(decode=False))
            tables[split] = rows.remove_columns(image).with_format("arrow")[:]
            readers[split] = _hub_reader(rows, image, f"{name}/{split}")
    return _listed(name, features, tables, readers, label_column, group_column)


def _hub_reader(dataset: datasets.Dataset, image: str, name: str) -> Reader:
    def read(rows: np.ndarray) -> Iterator[tuple[str, Encoded]]:
        for row, record in zip(rows, dataset.select(rows), strict=True):
            yield f"{name}, row {row}", record[image]["bytes"] or Path(record[image]["path"])

    return read


def _from_parquet(folder: Path, files: Sequence[Path], label_column: str, group_column: str) -> Listed:
    """Files whose names start with `train` and `test`; class names from the schema that `datasets` writes."""
    of_split = {split: [path for path in files if path.name.startswith(split)] for split in ("train", "test")}
    if not of_split["train"]:
        raise ValueError(f"'{folder}' has parquet files, but none whose name starts with 'train'.")
    first = of_split["train"][0]
    with _naming(first):
        features = datasets.Features.from_arrow_schema(pq.read_schema(first))
    image = _image_column(features, str(first))
    tables, readers = {}, {}
    for split, paths in of_split.items():
        parts, sizes = [], []
        for path in paths:
            with _naming(path):
                parts.append(pq.read_table(path, columns=[name for name in features if name != image]))
            sizes.append(len(parts[-1]))
        if parts:
            tables[split] = pa.concat_tables(parts)
            readers[split] = _parquet_reader(paths, sizes, image)
    return _listed(str(folder), features, tables, readers, label_column, group_column)


def _parquet_reader(paths: Sequence[Path], sizes: Sequence[int], image: str) -> Reader:
    """Reads a few hundred rows at a time: the whole of DomainNet does not fit into every worker's memory."""

    def read(rows: np.ndarray) -> Iterator[tuple[str, Encoded]]:
        start = 0
        for path, size in zip(paths, sizes, strict=True):
            wanted, offset = rows[(rows >= start) & (rows < start + size)] - start, 0
            with _naming(path):
                for batch in pq.ParquetFile(path).iter_batches(256, columns=[image]) if len(wanted) else ():
                    column = batch.column(0).field("bytes")
                    for row in wanted[(wanted >= offset) & (wanted < offset + len(column))]:
                        yield f"{path}, row {row}", column[row - offset].as_py() or b""
                    offset += len(column)
            start += size

    return read


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"'{path}' is damaged or no parquet file: {error}. Fetch it again.") from error


def _image_column(features: Mapping[str, Any], source: str) -> str:
    for name, feature in features.items():
        if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature):
            return name
    raise ValueError(f"'{source}' has no column of images; its columns are {sorted(features)}.")


def _listed(
    source: str,
    features: Mapping[str, Any],
    tables: Mapping[str, pa.Table],
    readers: Mapping[str, Reader],
    label_column: str,
    group_column: str,
) -> Listed:
    targets, class_names = _numbered(source, "label", label_column, features, tables)
    groups, group_names = (
        _numbered(source, "group", group_column, features, tables) if group_column else (dict.fromkeys(tables), ())
    )
    splits = {split: Listing(targets[split], groups[split], readers[split]) for split in tables}
    return Listed(splits["train"], splits.get("test"), class_names, group_names)


def _numbered(
    source: str, role: str, column: str, features: Mapping[str, Any], tables: Mapping[str, pa.Table]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Each split's column as numbers, and their names: the schema's, the sorted strings, or the numbers themselves."""
    if column not in features:
        raise ValueError(f"'{source}' has no column '{column}' (--data.{role}-column); it has {sorted(features)}.")
    if any(table.column(column).null_count for table in tables.values()):
        raise ValueError(f"'{source}' has empty entries in the column '{column}' (--data.{role}-column).")
    values = {split: table.column(column).to_numpy() for split, table in tables.items()}
    distinct = np.unique(np.concatenate(list(values.values())))
    if distinct.dtype.kind not in "iu":
        numbers = {value: number for number, value in enumerate(distinct)}
        return {split: np.array([numbers[value] for value in part], int) for split, part in values.items()}, tuple(
            map(str, distinct)
        )
    names = getattr(features[column], "names", None) or [str(number) for number in range(int(distinct[-1]) + 1)]
    outside = [int(number) for number in distinct if not 0 <= number < len(names)]
    if outside:
        raise ValueError(
            f"'{source}' has the {role}s {outside[:5]} in its column '{column}', outside its {len(names)} names "
            f"(0 … {len(names) - 1})."
        )
    return {split: part.astype(int) for split, part in values.items()}, tuple(names)


def _from_lists(folder: Path, domains: Sequence[str]) -> Listed:
    """DomainNet's own layout: `<domain>_train.txt` and `<domain>_test.txt`, whose lines are `relative/path.jpg label`.

    A class is named by the folder its images are in.
    """
    names: dict[int, str] = {}
    splits = {}
    for split in ("train", "test"):
        paths: list[Path] = []
        targets: list[int] = []
        groups: list[int] = []
        for group, domain in enumerate(domains):
            for relative, label in _lines(folder / f"{domain}_{split}.txt"):
                paths.append(folder / relative)
                targets.append(label)
                groups.append(group)
                if names.setdefault(label, paths[-1].parent.name) != paths[-1].parent.name:
                    raise ValueError(
                        f"'{folder / domain}_{split}.txt' gives the label {label} to '{relative}', but elsewhere it "
                        f"stands for '{names[label]}'."
                    )
        splits[split] = _files(paths, targets, groups)
    class_names = tuple(names.get(label, str(label)) for label in range(max(names, default=-1) + 1))
    return Listed(splits["train"], splits["test"], class_names, tuple(domains))


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    if not path.is_file():
        raise ValueError(f"'{path}' is missing; every domain needs a list for training and one for testing.")
    for number, line in enumerate(path.read_text().splitlines(), 1):
        relative, _, label = line.strip().rpartition(" ")
        if not (relative and label.isdecimal()):
            raise ValueError(f"'{path}', line {number}, is '{line}' and not 'relative/path.jpg label'.")
        yield relative, int(label)


def _from_class_folders(folder: Path) -> Listed:
    """`train/<class>/*.jpg` and `test/<class>/*.jpg`, or `<domain>/<class>/*.jpg`; names in alphabetical order."""
    tops = _folders(folder)
    has_splits = {"train", "test"} <= {top.name for top in tops}
    tops = [folder / "train", folder / "test"] if has_splits else tops
    class_names = sorted({inner.name for top in (tops[:1] if has_splits else tops) for inner in _folders(top)})
    if not class_names:
        raise ValueError(
            f"'{folder}' holds neither lists (<domain>_train.txt), nor train*.parquet, nor folders of images "
            f"(train/<class> and test/<class>, or <domain>/<class>); it has {sorted(p.name for p in folder.iterdir())[:8]}."
        )
    found = []
    for top in tops:
        if strange := sorted({inner.name for inner in _folders(top)} - set(class_names)):
            raise ValueError(f"'{top}' has the classes {strange[:5]}, which '{tops[0]}' does not have.")
        pairs = [(path, label) for label, name in enumerate(class_names) for path in _images(top / name)]
        found.append(([path for path, _ in pairs], [label for _, label in pairs]))
    if has_splits:
        return Listed(*(_files(paths, targets, None) for paths, targets in found), tuple(class_names))
    groups = [group for group, (paths, _) in enumerate(found) for _ in paths]
    paths, targets = (sum(parts, []) for parts in zip(*found, strict=True))
    return Listed(_files(paths, targets, groups), None, tuple(class_names), tuple(top.name for top in tops))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES)


def _files(paths: Sequence[Path], targets: Sequence[int], groups: Sequence[int] | None) -> Listing:
    def read(rows: np.ndarray) -> Iterator[tuple[str, Encoded]]:
        yield from ((str(paths[row]), paths[row]) for row in rows)

    return Listing(np.array(targets, int), None if groups is None else np.array(groups, int), read)
