"""Labelled samples in tables: parquet, CSV and JSON files, and data sets of the hub, all as `datasets` has them.

Only labels are read when a table is listed; images and texts are read later, row by row.
"""

import csv
import glob
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fedsim.data.sources.find import (
    SAME,
    SourceOptions,
    files_of_split,
    find_splits,
    from_hub,
    has_word,
    missing_shards,
)
from fedsim.data.sources.listing import Item, Listed, Listing, Reader, identity_of
from fedsim.data.sources.registry import LEFT_OUT
from fedsim.storage.cache import cache_folder

if TYPE_CHECKING:
    import datasets

Features = Mapping[str, Any]
"""A table's columns and their kinds, as `datasets` has them."""
Parts = Mapping[str, "datasets.Dataset"]
"""The tables of a split, one after another, by what to call them in a message."""
CSV: Mapping[str, Any] = {"keep_default_na": False, "na_values": [""]}
"""Words such as "NA" and "None" are texts; only nothing is an empty entry."""
READERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    ".parquet": ("from_parquet", {}),
    ".jsonl": ("from_json", {}),
    ".csv": ("from_csv", CSV),
    ".tsv": ("from_csv", CSV | {"sep": "\t", "quoting": csv.QUOTE_NONE}),
    ".json": ("from_json", {}),
}
"""How `datasets.Dataset` reads files of this ending. Of a folder those of the first kind that it has are read."""


@dataclass(frozen=True)
class Content:
    """What a table holds beside labels: its columns, and how a record of them becomes a sample."""

    columns: tuple[str, ...]
    item: Callable[[Mapping[str, Any], str], Item]
    """(record, what to call it in a message) to the sample."""


FindContent = Callable[[Features, str], Content]
"""(features, what to call their source) to the content; raises ValueError when it is not there."""


def table_files(folder: Path) -> list[Path]:
    """Return the files of the first kind of table that a folder has, in the order of their names; a file as it is."""
    if folder.is_file():
        return [folder]
    return next(filter(None, (sorted(folder.rglob(f"*{ending}")) for ending in READERS)), [])


def read_file(path: Path) -> "datasets.Dataset":
    """Return a file's rows, mapped from the copy that `datasets` makes of it in the cache folder, once.

    Raises ValueError that names the file when it is damaged or no such table.
    """
    import datasets

    try:
        with quietly():
            name, options = READERS[path.suffix]
            read = getattr(datasets.Dataset, name)
            rows: datasets.Dataset = read(glob.escape(str(path)), cache_dir=str(cache_folder() / "tables"), **options)
    except Exception as error:  # builders, pandas and pyarrow each raise their own
        why, kind = str(error.__cause__ or error).partition("\n")[0] or "it is empty", path.suffix[1:]
        raise ValueError(
            f"'{path}' is damaged, empty or no {kind} file that `datasets` reads: {why}. Fetch it again."
        ) from error
    return rows


@contextmanager
def quietly() -> Iterator[None]:
    """Keep `datasets` from logging what goes wrong, which is one message of ours, and that it downloads local files."""
    from datasets import logging as messages
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    level, is_silent = messages.get_verbosity(), are_progress_bars_disabled()
    messages.set_verbosity(logging.CRITICAL)
    disable_progress_bars()
    try:
        yield
    finally:
        messages.set_verbosity(level)
        if not is_silent:
            enable_progress_bars()


def list_hub(options: SourceOptions, find_content: FindContent) -> Listed:
    """List a data set of the hub, which `datasets` downloads or finds in its cache; raises OSError when it cannot."""
    name = options.hub
    of_hub = from_hub(name, *([options.subset] if options.subset else []))

    def missing(split: str) -> str:
        return f"The data set '{name}' has the splits {sorted(of_hub)} and no split '{split}'"

    splits = find_splits(options, lambda split: split if split in of_hub else "", missing)
    parts = {split: {f"{name}/{split}": of_hub[split]} for split in splits}
    return list_tables(options, name, parts, {split: of_hub[split]._fingerprint for split in splits}, find_content)


def list_files(options: SourceOptions, find_content: FindContent, folder: Path) -> Listed:
    """List those tables of a folder that have a split's name in theirs; class names come from the first one's schema.

    Where no name says a split, all are for training. Raises ValueError that names the file when one is damaged,
    missing, or of other columns than the first.
    """
    if not (files := table_files(folder)):
        raise ValueError(f"'{folder}' holds no parquet, JSON or CSV files (--data.path).")
    of_subset = [path for path in files if has_word(path.relative_to(folder), options.subset)]
    is_whole = options.train_split == "train" and not any(
        has_word(Path(path.name), word) for path in of_subset for words in SAME for word in words
    )
    subset = f" of '{options.subset}'" if options.subset else ""

    def missing(split: str) -> str:
        has = [str(path.relative_to(folder)) for path in files[:8]]
        kind = files[0].suffix.removeprefix(".")
        return f"'{folder}' has {kind} files, but none{subset} for the split '{split}' in its name: it has {has}"

    def look_up(split: str) -> list[Path]:
        return of_subset if is_whole and split == options.train_split else files_of_split(of_subset, split)

    of_split = find_splits(options, look_up, missing)
    for split, paths in of_split.items():
        if absent := [str(path.relative_to(folder)) for path in missing_shards(paths)]:
            raise ValueError(
                f"'{folder}' lacks {len(absent)} of the files of the split '{split}': {absent[:5]}. Fetch the data set "
                "again (--data.path)."
            )
    parts = {split: {str(path): read_file(path) for path in paths} for split, paths in of_split.items()}
    identities = {split: identity_of(paths) for split, paths in of_split.items()}
    return list_tables(options, str(folder), parts, identities, find_content)


def list_tables(
    options: SourceOptions,
    source: str,
    parts: Mapping[str, Parts],
    identities: Mapping[str, str],
    find_content: FindContent,
) -> Listed:
    """Return the listing of splits, the training split first; raises ValueError where their tables do not fit.

    Of two columns the one that is not labelled holds the labels, where none is named.
    """
    first, dataset = next(iter(parts[options.train_split].items()))
    features = dataset.features
    content = find_content(features, first)
    rest = features.keys() - set(content.columns)
    if len(features) == 2 and len(rest) == 1 and options.label_column == LEFT_OUT["label_column"]:
        options = replace(options, label_column=rest.pop())
    for name, part in ((name, part) for of_split in parts.values() for name, part in of_split.items()):
        if absent := [column for column in content.columns if column not in part.features]:
            raise ValueError(
                f"'{name}' has no columns {absent}, which '{first}' has; it has {sorted(part.features)}. Give all "
                "files the same columns, or name the splits that have them (--data.train-split, --data.test-split)."
            )
        find_content({column: part.features[column] for column in content.columns}, name)
    tables = {split: _labels_of(options, of_split) for split, of_split in parts.items()}
    column = options.domain_column
    targets, class_names = _numbered(source, "label", options.label_column, features, tables)
    domains, names = _numbered(source, "domain", column, features, tables) if column else (dict.fromkeys(tables), ())
    train, *test = (
        Listing(targets[split], domains[split], _reader(of_split, content), identities[split])
        for split, of_split in parts.items()
    )
    return Listed(train, test[0] if test else None, class_names, names)


def _labels_of(options: SourceOptions, parts: Parts) -> pa.Table:
    """The columns of labels and domains of all tables of a split."""
    found: list[pa.Table] = []
    for name, part in parts.items():
        columns = label_columns(options, part.features, name)
        with naming(name):
            found.append(part.select_columns(columns).with_format("arrow")[:])
            found[-1].validate(full=True)  # letters that are none are noticed here, where their file is known
        if (found[-1].schema.names, found[-1].schema.types) != (found[0].schema.names, found[0].schema.types):
            raise ValueError(f"'{name}' has other columns than '{next(iter(parts))}': {columns} of other types.")
    return pa.concat_tables(found)


def _reader(parts: Parts, content: Content) -> Reader:
    """Reads a few rows at a time: the whole of DomainNet does not fit into every worker's memory."""

    def read(rows: np.ndarray) -> Iterator[tuple[str, Item]]:
        start = 0
        for name, part in parts.items():
            wanted = rows[(rows >= start) & (rows < start + len(part))] - start
            undecoded = part.select_columns(list(content.columns)).select(wanted).with_format("arrow")
            for row, record in zip(wanted, undecoded.iter(1), strict=True):
                place = f"{name}, row {row}"
                with naming(place):
                    (entries,) = record.to_pylist()
                yield place, content.item(entries, place)
            start += len(part)

    return read


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Say of what cannot be read where it is."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"'{place}' is damaged: {error}. Fetch it again.") from error


def label_columns(options: SourceOptions, features: Features, source: str) -> list[str]:
    """Return the columns of labels, of domains, and of what numbers of labels are called, where there are such.

    Raises ValueError where one that an option names is not there.
    """
    roles = {"label": options.label_column, "domain": options.domain_column}
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
    is_nested = any(pa.types.is_nested(table.schema.field(column).type) for table in tables.values())
    problem = "neither numbers nor words" if is_nested else mixed
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
