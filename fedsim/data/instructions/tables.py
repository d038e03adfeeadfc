"""Reads instructions and answers from parquet and JSON files and tables of the hub, by the names of their columns."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from fedsim.data.instructions.registry import SPLIT_BY_TASK, Place, files_of, find_instructions, is_task, read_task

ROLES = ("instruction", "input", "answer", "task", "client", "split")
SPLITS = {"train": False, "test": True}
WHOLE = ("task", "client", "split")
"""Roles whose columns have no empty entries."""
NO_TEXTS = (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary)


class Columns(Place, Protocol):
    """Where the data are, and what their columns are called; see `instructions.Instructions`."""

    dataset: str
    tasks: tuple[str, ...]
    instruction_column: str
    input_column: str
    answer_column: str
    task_column: str
    client_column: str
    split_column: str


@dataclass(frozen=True)
class Texts:
    """Samples (S,): texts, the number of each one's kind of task, and its client and split where they are known."""

    instructions: Sequence[str]
    inputs: Sequence[str]
    answers: Sequence[str]
    task: np.ndarray
    task_names: tuple[str, ...]
    client: np.ndarray | None
    is_test: np.ndarray | None
    n_without_answer: int


def read_texts(options: Columns) -> Texts:
    """Return the samples that have an answer, are of a wanted kind and for training or testing.

    Raises ValueError when the data are not there, damaged, lack a column or have no such sample.
    """
    columns = {role: name for role in ROLES if (name := getattr(options, f"{role}_column"))}
    texts = read_columns(options, columns)
    kind = kinds(texts["task"], options.tasks)
    has_answer = np.array([bool(answer.strip()) for answer in texts["answer"]], bool)
    is_kept = kind >= 0
    if options.dataset in SPLIT_BY_TASK and "split" not in columns:
        texts["split"] = [""] * len(kind)
        is_kept &= is_first(list(zip(texts["task"], texts["instruction"], texts["input"], strict=True)))
    if any(texts["split"]):
        is_kept &= np.array([name in SPLITS for name in texts["split"]], bool)
    rows = np.flatnonzero(is_kept & has_answer)
    if not len(rows):
        raise ValueError(
            f"'{options.path or options.hub}' has no sample with an answer among its {len(kind)} (--data.tasks "
            f"{options.tasks}); its kinds of task are {sorted(set(texts['task']))[:10]}."
        )
    chosen = {role: [column[row] for row in rows] for role, column in texts.items()}
    return Texts(
        instructions=chosen["instruction"],
        inputs=chosen["input"],
        answers=chosen["answer"],
        task=kind[rows],
        task_names=options.tasks or tuple(sorted(set(texts["task"]))),
        client=np.array([_sortable(name) for name in chosen["client"]]) if "client" in columns else None,
        is_test=np.array([SPLITS[name] for name in chosen["split"]], bool) if "test" in chosen["split"] else None,
        n_without_answer=int((is_kept & ~has_answer).sum()),
    )


def read_columns(options: Columns, columns: Mapping[str, str]) -> dict[str, list[str]]:
    """Return each role's column as texts, of all files or splits of the hub, one after another; "" without a column.

    Without a column of splits, files or folders named train or test give it.
    """
    found = find_instructions(options)
    if isinstance(found, Path):
        parts = [(f"{file}", split_of(file), partial(_read_file, file)) for file in files_of(found, options.tasks)]
    else:
        parts = [(f"{options.hub}/{name}", split_of(Path(name)), partial(_read_split, found[name])) for name in found]
    read: dict[str, list[str]] = {role: [] for role in ROLES}
    for name, split, read_part in parts:
        try:
            part = read_part()
            texts = part if isinstance(part, dict) else texts_of(part, name, columns, options.tasks)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"'{name}' is damaged or neither parquet nor JSON lines nor a task of Natural Instructions: {error}. "
                "Fetch it again, or give another --data.path."
            ) from error
        if lacking := columns.keys() - texts.keys():
            role = min(lacking)
            raise ValueError(
                f"'{name}' is a task of Natural Instructions and names no {role} (--data.{role}-column '')."
            )
        for role in ROLES:
            rest = split if role == "split" else ""
            read[role] += texts[role] if role in texts else [rest] * len(texts["answer"])
    return read


def _read_file(file: Path) -> pa.Table | dict[str, list[str]]:
    if file.suffix == ".parquet":
        return pq.read_table(file)
    if file.suffix == ".json" and is_task(content := file.read_bytes()):
        return read_task(file, content)
    return pyarrow.json.read_json(file)


def _read_split(split: datasets.Dataset) -> pa.Table:
    return split.with_format("arrow")[:]


def texts_of(table: pa.Table, name: str, columns: Mapping[str, str], tasks: Sequence[str]) -> dict[str, list[str]]:
    """Return each role's column as texts, of the rows of a wanted kind of task where there are any.

    The others, of which there may be millions, never become texts: where no kind is wanted, one row of each is left, to
    say which there are. Raises ValueError when a column is not there, has no texts, or lacks a sample's task, client or
    split; `name` is what the message calls the table.
    """
    for role, column in columns.items():
        option = f"--data.{role}-column"
        if (count := table.column_names.count(column)) != 1:
            has = f"{count} columns" if count else "no column"
            raise ValueError(f"'{name}' has {has} '{column}' ({option}); it has {table.column_names}.")
        kind = table.column(column).type
        # An input may be missing in all samples of a file: then there are instructions that need none.
        if any(test(kind) for test in NO_TEXTS) or (pa.types.is_null(kind) and len(table) and role != "input"):
            raise ValueError(
                f"'{name}' has nothing but {kind} in its column '{column}', where texts belong ({option}); it has "
                f"{table.column_names}."
            )
        if role in WHOLE and table.column(column).null_count:
            raise ValueError(f"'{name}' has empty entries in its column '{column}' ({option}).")
    if tasks and "task" in columns:
        names = list(_texts(table.column(columns["task"])))
        wanted = kinds(names, tasks) >= 0
        table = table.filter(pa.array(wanted if wanted.any() else is_first(names)))
    return {role: list(_texts(table.column(column))) for role, column in columns.items()}


def _texts(column: pa.ChunkedArray) -> Iterator[str]:
    return ("" if value is None else str(value) for value in column.to_pylist())


def split_of(file: Path) -> str:
    """Return the split with which a file's name begins, or that is its folder's name; "" for none."""
    known = (*SPLITS, "validation")
    return next((s for s in known if file.name.startswith(s)), file.parent.name if file.parent.name in known else "")


def kinds(names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Return the number of each sample's kind of task, (S,); -1 for one that is not wanted."""
    if not wanted:
        numbers = {name: number for number, name in enumerate(sorted(set(names)))}
        return np.array([numbers[name] for name in names], int)
    of_name = {name: next((k for k, start in enumerate(wanted) if name.startswith(start)), -1) for name in set(names)}
    return np.array([of_name[name] for name in names], int)


def is_first(values: Sequence[Hashable]) -> np.ndarray:
    """Mark each value's first occurrence, (S,)."""
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(value, row) == row for row, value in enumerate(values)], bool)


def _sortable(name: str) -> str:
    """A client's name such that numbers sort as numbers."""
    return name.zfill(12) if name.isdigit() else name
