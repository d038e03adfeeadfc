"""Labelled samples in tables: parquet files, and data sets of the hub.

Only labels are read when a table is listed; images and texts are read later, a few hundred at a time.
"""

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

from fedsim.data.sources.find import SourceOptions, files_of_split, find_splits, from_hub, has_word, missing_shards
from fedsim.data.sources.listing import Item, Listed, Listing, Reader, identity_of

Features = Mapping[str, Any]
"""A table's columns and their kinds, as `datasets` has them."""


@dataclass(frozen=True)
class Content:
    """What a table holds beside labels: its columns, and how a record of them becomes a sample."""

    columns: tuple[str, ...]
    item: Callable[[Mapping[str, Any], str], Item]
    """(record, what to call it in a message) to the sample."""
    undecoded: Callable[[datasets.Dataset], datasets.Dataset] = lambda rows: rows


FindContent = Callable[[Features, str], Content]
"""(features, what to call their source) to the content; raises ValueError when it is not there."""


def list_hub(options: SourceOptions, find_content: FindContent) -> Listed:
    """List a data set of the hub, which `datasets` downloads or finds in its cache; raises OSError when it cannot."""
    name = options.hub
    of_hub = from_hub(name, *([options.subset] if options.subset else []))

    def missing(split: str) -> str:
        return f"The data set '{name}' has the splits {sorted(of_hub)} and no split '{split}'"

    splits = list(find_splits(options, lambda split: split if split in of_hub else "", missing))
    features = of_hub[splits[0]].features
    content, columns = find_content(features, name), label_columns(options, features, name)
    tables, readers, identities = {}, {}, {s: of_hub[s]._fingerprint for s in splits}
    for split in splits:
        tables[split] = of_hub[split].select_columns(columns).with_format("arrow")[:]
        readers[split] = _hub_reader(content.undecoded(of_hub[split]), content, f"{name}/{split}")
    return listed(options, name, features, tables, readers, identities)


def _hub_reader(dataset: datasets.Dataset, content: Content, name: str) -> Reader:
    def read(rows: np.ndarray) -> Iterator[tuple[str, Item]]:
        for row, record in zip(rows, dataset.select(rows), strict=True):
            yield f"{name}, row {row}", content.item(record, f"{name}, row {row}")

    return read


def list_parquet(options: SourceOptions, folder: Path, find_content: FindContent) -> Listed:
    """List those files that have a split's name in theirs; class names come from the schema of `datasets`.

    Raises ValueError that names the file when one is damaged, missing, or of other columns than the first.
    """
    files = sorted(folder.rglob("*.parquet"))
    of_subset = [path for path in files if has_word(path.relative_to(folder), options.subset)]
    subset = f" of '{options.subset}'" if options.subset else ""

    def missing(split: str) -> str:
        has = [str(path.relative_to(folder)) for path in files[:8]]
        return f"'{folder}' has parquet files, but none{subset} for the split '{split}' in its name: it has {has}"

    of_split = find_splits(options, lambda split: files_of_split(of_subset, split), missing)
    for split, paths in of_split.items():
        if absent := [str(path.relative_to(folder)) for path in missing_shards(paths)]:
            raise ValueError(
                f"'{folder}' lacks {len(absent)} of the files of the split '{split}': {absent[:5]}. Fetch the data set "
                "again (--data.path)."
            )
    first = of_split[options.train_split][0]
    features = _features(first)
    content = find_content(features, str(first))
    tables, readers, identities = {}, {}, {}
    for split, paths in of_split.items():
        parts = [_labels_of(path, options, partial(_check_content, content, find_content, first)) for path in paths]
        for path, part in zip(paths, parts, strict=True):
            if (part.schema.names, part.schema.types) != (parts[0].schema.names, parts[0].schema.types):
                raise ValueError(f"'{path}' has other columns than '{paths[0]}': {part.schema.names} of other types.")
        tables[split], identities[split] = pa.concat_tables(parts), identity_of(paths)
        readers[split] = _parquet_reader(paths, [len(part) for part in parts], content)
    return listed(options, str(folder), features, tables, readers, identities)


def _features(path: Path) -> Features:
    with _naming(path):
        schema = pq.read_schema(path)
    try:
        features: Features = datasets.Features.from_arrow_schema(schema)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"is damaged or of another version of `datasets` ({error}). Fetch it again."
        raise ValueError(f"'{path}' {why}") from error
    return features


def _check_content(content: Content, find_content: FindContent, first: Path, features: Features, path: Path) -> None:
    if absent := [name for name in content.columns if name not in features]:
        raise ValueError(
            f"'{path}' has no columns {absent}, which '{first}' has; it has {sorted(features)}. Give all files "
            "the same columns, or name the splits that have them (--data.train-split, --data.test-split)."
        )
    find_content({name: features[name] for name in content.columns}, str(path))


def _labels_of(path: Path, options: SourceOptions, check: Callable[[Features, Path], None]) -> pa.Table:
    """The columns of labels and groups of a file whose other columns pass the check."""
    features = _features(path)
    check(features, path)
    columns = label_columns(options, features, str(path))
    with _naming(path):
        table = pq.read_table(path, columns=columns)
        table.validate(full=True)  # letters that are none are noticed here, where their file is known
    return table


def _parquet_reader(paths: Sequence[Path], sizes: Sequence[int], content: Content) -> Reader:
    """Reads a few hundred rows at a time: the whole of DomainNet does not fit into every worker's memory."""

    def read(rows: np.ndarray) -> Iterator[tuple[str, Item]]:
        start = 0
        for path, size in zip(paths, sizes, strict=True):
            wanted, offset = rows[(rows >= start) & (rows < start + size)] - start, 0
            with _naming(path):
                batches = pq.ParquetFile(path).iter_batches(256, columns=list(content.columns)) if len(wanted) else ()
                for batch in batches:
                    for row in wanted[(wanted >= offset) & (wanted < offset + len(batch))]:
                        yield _sample(batch, int(row - offset), content, f"{path}, row {row}")
                    offset += len(batch)
            start += size

    return read


def _sample(batch: pa.RecordBatch, row: int, content: Content, name: str) -> tuple[str, Item]:
    with _naming(name):
        record = {column: batch.column(column)[row].as_py() for column in content.columns}
    return name, content.item(record, name)


@contextmanager
def _naming(place: Path | str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"'{place}' is damaged or no parquet file: {error}. Fetch it again.") from error


def label_columns(options: SourceOptions, features: Features, source: str) -> list[str]:
    """Return the columns of labels, of groups, and of what numbers of labels are called, where there are such.

    Raises ValueError where one that an option names is not there.
    """
    roles = {"label": options.label_column, "group": options.group_column}
    for role, column in roles.items():
        if column not in features and (column or role == "label"):
            raise ValueError(f"'{source}' has no column '{column}' (--data.{role}-column); it has {sorted(features)}.")
    names = [column for column in roles.values() if column]
    if getattr(features.get(beside(options.label_column)), "dtype", "") in ("string", "large_string"):
        names.append(beside(options.label_column))
    return list(dict.fromkeys(names))


def beside(column: str) -> str:
    """Return the column that names a column's numbers, as `label_text` does in SetFit's data sets."""
    return f"{column}_text"


def listed(
    options: SourceOptions,
    source: str,
    features: Features,
    tables: Mapping[str, pa.Table],
    readers: Mapping[str, Reader],
    identities: Mapping[str, str],
) -> Listed:
    """Return the listing of splits, the training split first, from what was read of each of them."""
    column = options.group_column
    targets, class_names = _numbered(source, "label", options.label_column, features, tables)
    groups, names = _numbered(source, "group", column, features, tables) if column else (dict.fromkeys(tables), ())
    train, *test = (Listing(targets[split], groups[split], readers[split], identities[split]) for split in tables)
    return Listed(train, test[0] if test else None, class_names, names)


def _numbered(
    source: str, role: str, column: str, features: Features, tables: Mapping[str, pa.Table]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Each split's column as numbers, and their names: the schema's, the sorted strings, or the numbers themselves.

    Names may be in a column beside it, too. Numbers without names that are more than there are samples (of persons,
    say) are taken as names.
    """
    if any(table.column(column).null_count for table in tables.values()):
        raise ValueError(f"'{source}' has empty entries in the column '{column}' (--data.{role}-column).")
    values = {split: table.column(column).to_numpy() for split, table in tables.items()}
    is_mixed = len({part.dtype == object for part in values.values()}) > 1
    mixed = "words in one split and numbers in another" if is_mixed else ""
    problem = "neither numbers nor words" if _is_nested(tables, column) else mixed
    together = np.concatenate(list(values.values()))
    if problem or (together.dtype.kind == "f" and (together % 1 != 0).any()):
        problem = problem or "NaN or parts of whole numbers"
        raise ValueError(f"'{source}' has in its column '{column}' {problem} (--data.{role}-column).")
    distinct = np.unique(together)
    is_named = getattr(features[column], "names", None) or _names_beside(tables, column)
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


def _names_beside(tables: Mapping[str, pa.Table], column: str) -> list[str] | None:
    """What the numbers 0, 1, … are called in the column beside theirs, where each has one name of its own."""
    if not all(beside(column) in table.column_names for table in tables.values()):
        return None
    pairs = {
        pair
        for table in tables.values()
        for pair in zip(*table.group_by([column, beside(column)]).aggregate([]).to_pydict().values(), strict=True)
    }
    names = dict(pairs)
    is_one_to_one = len(pairs) == len(names) == len(set(names.values())) and all(names.values())
    return [str(names[k]) for k in sorted(names)] if is_one_to_one and names.keys() == set(range(len(names))) else None
