"""Labelled samples in tables: parquet files, and data sets of the hub.

Only labels are read when a table is listed; images and texts are read later, a few hundred at a time.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedsim.data.listing import Item, Listed, Listing, Reader, identity_of
from fedsim.data.sources import SourceOptions
from fedsim.data.text_files import OwnFiles

SAME = {"validation": ("validation", "valid", "val", "dev")}
"""Words for one split in the names of files."""


@dataclass(frozen=True)
class Content:
    """What a table holds beside labels: its columns, and how a record of them becomes a sample."""

    columns: tuple[str, ...]
    item: Callable[[Mapping[str, Any]], Item]
    undecoded: Callable[[datasets.Dataset], datasets.Dataset] = lambda rows: rows


FindContent = Callable[[Mapping[str, Any], str], Content]
"""(features, what to call their source) to the content; raises ValueError when it is not there."""


def image_content(features: Mapping[str, Any], source: str) -> Content:
    """The first column of images."""
    for name, feature in features.items():
        if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature):
            return Content((name,), partial(_encoded, name), partial(_undecoded, name))
    raise ValueError(f"'{source}' has no column of images; its columns are {sorted(features)}.")


def _encoded(column: str, record: Mapping[str, Any]) -> Item:
    return record[column]["bytes"] or Path(record[column]["path"] or "")


def _undecoded(column: str, rows: datasets.Dataset) -> datasets.Dataset:
    return rows.cast_column(column, datasets.Image(decode=False))


def text_content(columns: Sequence[str], features: Mapping[str, Any], source: str) -> Content:
    """These columns of text; an empty entry is an empty text."""
    if absent := [name for name in columns if name not in features]:
        raise ValueError(f"'{source}' has no columns {absent} (--data.text-columns); it has {sorted(features)}.")
    return Content(tuple(columns), lambda record: tuple(str(record[name] or "") for name in columns))


def list_hub(options: SourceOptions, find_content: FindContent) -> Listed:
    """List a data set of the hub, which `datasets` downloads or finds in its cache; raises OSError when it cannot."""
    name, splits = options.hub, _splits(options)
    try:
        of_hub = datasets.load_dataset(name, *([options.subset] if options.subset else []))
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise OSError(str(error)) from error
    if splits[0] not in of_hub:
        raise ValueError(f"The data set '{name}' has the splits {sorted(of_hub)} and no split '{splits[0]}'.")
    features = of_hub[splits[0]].features
    content = find_content(features, name)
    tables, readers, identities = {}, {}, {}
    for split in splits:
        if split in of_hub:
            identities[split] = of_hub[split]._fingerprint
            tables[split] = of_hub[split].remove_columns(list(content.columns)).with_format("arrow")[:]
            readers[split] = _hub_reader(content.undecoded(of_hub[split]), content, f"{name}/{split}")
    return _listed(options, name, features, tables, readers, identities)


def _hub_reader(dataset: datasets.Dataset, content: Content, name: str) -> Reader:
    def read(rows: np.ndarray) -> Iterator[tuple[str, Item]]:
        for row, record in zip(rows, dataset.select(rows), strict=True):
            yield f"{name}, row {row}", content.item(record)

    return read


def list_parquet(options: SourceOptions, folder: Path, find_content: FindContent) -> Listed:
    """List those files that have a split's name in theirs; class names come from the schema of `datasets`.

    Raises ValueError that names the file when one is damaged.
    """
    splits = _splits(options)
    files = [path for path in sorted(folder.rglob("*.parquet")) if _has_word(path.relative_to(folder), options.subset)]
    of_split = {split: [path for path in files if _has_word(Path(path.name), split)] for split in splits}
    if not of_split[splits[0]]:
        subset = f" of '{options.subset}'" if options.subset else ""
        raise ValueError(f"'{folder}' has parquet files, but none{subset} for the split '{splits[0]}' in its name.")
    first = of_split[splits[0]][0]
    with _naming(first):
        features = datasets.Features.from_arrow_schema(pq.read_schema(first))
    content = find_content(features, str(first))
    tables, readers, identities = {}, {}, {}
    for split, paths in of_split.items():
        parts, sizes, identities[split] = [], [], identity_of(paths)
        for path in paths:
            with _naming(path):
                parts.append(pq.read_table(path, columns=[name for name in features if name not in content.columns]))
            sizes.append(len(parts[-1]))
            if parts[-1].schema.types != parts[0].schema.types:
                raise ValueError(
                    f"'{path}' has other columns than '{paths[0]}': {parts[-1].schema.names} of other types."
                )
        if parts:
            tables[split] = pa.concat_tables(parts)
            readers[split] = _parquet_reader(paths, sizes, content)
    return _listed(options, str(folder), features, tables, readers, identities)


def _has_word(path: Path, word: str) -> bool:
    """Whether the word, or one that means it, is in the path: its parts begin neighbouring parts of the path's."""
    parts = _parts(str(path))
    wanted = [_parts(same) for same in SAME.get(word, (word,))]
    runs = [(parts[k : k + len(words)], words) for words in wanted for k in range(len(parts) - len(words) + 1)]
    return any(all(map(str.startswith, run, words)) for run, words in runs)


def _parts(text: str) -> list[str]:
    """Split at what is no letter or digit, in lower case."""
    return "".join(character if character.isalnum() else " " for character in text.lower()).split()


def _parquet_reader(paths: Sequence[Path], sizes: Sequence[int], content: Content) -> Reader:
    """Reads a few hundred rows at a time: the whole of DomainNet does not fit into every worker's memory."""

    def read(rows: np.ndarray) -> Iterator[tuple[str, Item]]:
        start = 0
        for path, size in zip(paths, sizes, strict=True):
            wanted, offset = rows[(rows >= start) & (rows < start + size)] - start, 0
            with _naming(path):
                batches = pq.ParquetFile(path).iter_batches(256, columns=list(content.columns)) if len(wanted) else ()
                for batch in batches:
                    inside = wanted[(wanted >= offset) & (wanted < offset + len(batch))]
                    for row, record in zip(inside, batch.take(pa.array(inside - offset)).to_pylist(), strict=True):
                        yield f"{path}, row {row}", content.item(record)
                    offset += len(batch)
            start += size

    return read


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"'{path}' is damaged or no parquet file: {error}. Fetch it again.") from error


def list_own_files(options: SourceOptions, files: OwnFiles, folder: Path, find_content: FindContent) -> Listed:
    """List a data set from the files that its authors give out, which are read whole; raises ValueError as they do."""
    if strange := [split for split in _splits(options) if split not in files.files]:
        known = ", ".join(files.files)
        raise ValueError(
            f"'{folder}' has no split '{strange[0]}' (--data.train-split, --data.test-split); it has {known}."
        )
    read = {split: files.read(folder, split) for split in _splits(options)}
    tables = {split: table for split, (table, _) in read.items()}
    table, names = read[options.train_split]
    kinds = (datasets.Value("string"), datasets.ClassLabel(names=list(names)))
    features = {field.name: kinds[pa.types.is_integer(field.type)] for field in table.schema}
    content = find_content(features, str(folder))
    readers = {split: _table_reader(table, content, f"{folder}/{split}") for split, table in tables.items()}
    return _listed(options, str(folder), features, tables, readers, {s: _identity(t) for s, t in tables.items()})


def _table_reader(table: pa.Table, content: Content, name: str) -> Reader:
    def read(rows: np.ndarray) -> Iterator[tuple[str, Item]]:
        for row, record in zip(rows, table.select(content.columns).take(pa.array(rows)).to_pylist(), strict=True):
            yield f"{name}, row {row}", content.item(record)

    return read


def _identity(table: pa.Table) -> str:
    digest = hashlib.sha256(",".join(table.column_names).encode())
    for buffer in (b for column in table.columns for chunk in column.chunks for b in chunk.buffers() if b):
        digest.update(buffer)
    return digest.hexdigest()


def _listed(
    options: SourceOptions,
    source: str,
    features: Mapping[str, Any],
    tables: Mapping[str, pa.Table],
    readers: Mapping[str, Reader],
    identities: Mapping[str, str],
) -> Listed:
    column = options.group_column
    targets, class_names = _numbered(source, "label", options.label_column, features, tables)
    groups, names = _numbered(source, "group", column, features, tables) if column else (dict.fromkeys(tables), ())
    of_split = {split: Listing(targets[split], groups[split], readers[split], identities[split]) for split in tables}
    train, *test = (of_split.get(split) for split in _splits(options))
    assert train is not None
    return Listed(train, test[0] if test else None, class_names, names)


def _splits(options: SourceOptions) -> list[str]:
    return [split for split in (options.train_split, options.test_split) if split]


def _numbered(
    source: str, role: str, column: str, features: Mapping[str, Any], tables: Mapping[str, pa.Table]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Each split's column as numbers, and their names: the schema's, the sorted strings, or the numbers themselves.

    Numbers without names that are more than there are samples (of persons, say) are taken as names.
    """
    if column not in features:
        raise ValueError(f"'{source}' has no column '{column}' (--data.{role}-column); it has {sorted(features)}.")
    if any(table.column(column).null_count for table in tables.values()):
        raise ValueError(f"'{source}' has empty entries in the column '{column}' (--data.{role}-column).")
    values = {split: table.column(column).to_numpy() for split, table in tables.items()}
    together = np.concatenate(list(values.values()))
    problem = "neither numbers nor words" if _is_nested(tables, column) else ""
    if problem or (together.dtype.kind == "f" and np.isnan(together).any()):
        raise ValueError(f"'{source}' has in its column '{column}' {problem or 'NaN'} (--data.{role}-column).")
    distinct = np.unique(together)
    is_named = getattr(features[column], "names", None)
    if distinct.dtype.kind not in "iu" or (not is_named and int(distinct.max(initial=0)) >= len(together)):
        numbers = {value: number for number, value in enumerate(distinct)}
        return {split: np.array([numbers[value] for value in part], int) for split, part in values.items()}, tuple(
            map(str, distinct)
        )
    names = is_named or [str(number) for number in range(int(distinct[-1]) + 1)]
    outside = [int(number) for number in distinct if not 0 <= number < len(names)]
    if outside:
        raise ValueError(
            f"'{source}' has the {role}s {outside[:5]} in its column '{column}', outside its {len(names)} names "
            f"(0 … {len(names) - 1})."
        )
    return {split: part.astype(int) for split, part in values.items()}, tuple(names)


def _is_nested(tables: Mapping[str, pa.Table], column: str) -> bool:
    return any(pa.types.is_nested(table.schema.field(column).type) for table in tables.values())
