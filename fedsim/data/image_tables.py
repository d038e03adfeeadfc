"""Labelled images in tables: parquet files, and data sets of the hub. Nothing here decodes an image.

Only labels are read when a table is listed; images are read when they are decoded, a few hundred at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedsim.data.image_sources import Encoded, Listed, Listing, Reader, identity_of


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
    tables, readers, identities = {}, {}, {}
    for split in ("train", "test"):
        if split in splits:
            identities[split] = splits[split]._fingerprint
            rows = splits[split].cast_column(image, datasets.Image(decode=False))
            tables[split] = rows.remove_columns(image).with_format("arrow")[:]
            readers[split] = _hub_reader(rows, image, f"{name}/{split}")
    return _listed(name, features, tables, readers, identities, label_column, group_column)


def _hub_reader(dataset: datasets.Dataset, image: str, name: str) -> Reader:
    def read(rows: np.ndarray) -> Iterator[tuple[str, Encoded]]:
        for row, record in zip(rows, dataset.select(rows), strict=True):
            yield f"{name}, row {row}", record[image]["bytes"] or Path(record[image]["path"])

    return read


def list_parquet(folder: Path, files: Sequence[Path], label_column: str, group_column: str) -> Listed:
    """List those files whose names start with `train` and `test`; class names come from the schema of `datasets`.

    Raises ValueError that names the file when one is damaged.
    """
    of_split = {split: [path for path in files if path.name.startswith(split)] for split in ("train", "test")}
    if not of_split["train"]:
        raise ValueError(f"'{folder}' has parquet files, but none whose name starts with 'train'.")
    first = of_split["train"][0]
    with _naming(first):
        features = datasets.Features.from_arrow_schema(pq.read_schema(first))
    image = _image_column(features, str(first))
    tables, readers, identities = {}, {}, {}
    for split, paths in of_split.items():
        parts, sizes, identities[split] = [], [], identity_of(paths)
        for path in paths:
            with _naming(path):
                parts.append(pq.read_table(path, columns=[name for name in features if name != image]))
            sizes.append(len(parts[-1]))
        if parts:
            tables[split] = pa.concat_tables(parts)
            readers[split] = _parquet_reader(paths, sizes, image)
    return _listed(str(folder), features, tables, readers, identities, label_column, group_column)


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
    identities: Mapping[str, str],
    label_column: str,
    group_column: str,
) -> Listed:
    targets, class_names = _numbered(source, "label", label_column, features, tables)
    groups, group_names = (
        _numbered(source, "group", group_column, features, tables) if group_column else (dict.fromkeys(tables), ())
    )
    splits = {split: Listing(targets[split], groups[split], readers[split], identities[split]) for split in tables}
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
