"""Instructions and answers in tables, of files or of the hub, by the names of their columns."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from fedsim.data.instructions.registry import INSTRUCTION_SETS, SPLIT_BY_TASK, InstructionSetName
from fedsim.data.instructions.samples import Texts
from fedsim.data.sources.find import from_hub, looked_up
from fedsim.data.sources.registry import filled
from fedsim.data.sources.tables import Parts, naming, read_file, table_files

ROLES = ("instruction", "input", "answer", "task", "client", "split")
SPLITS = {"train": False, "test": True}
WHOLE = ("task", "client", "split")
"""Roles whose columns have no empty entries."""
NO_TEXTS = (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary)


@dataclass(frozen=True, kw_only=True)
class InstructionSource:
    """Where instructions and answers are, and what their columns are called."""

    dataset: InstructionSetName = "own"
    """A known data set, which sets `hub` and the columns where they are left out; or your own."""
    path: Path | None = None
    """File or folder of parquet, JSON lines, JSON or CSV, as such or inside $FEDSIM_DATA; default: the set's name
    there, then the hub and its cache."""
    hub: str = ""
    """Name of the data set on the hub."""
    instruction_column: str = ""
    """Column of the instructions; of your own data `instruction`."""
    input_column: str = ""
    """Column of what an instruction is about; empty for none."""
    answer_column: str = ""
    """Column of the answers; of your own data `output`."""
    task_column: str = ""
    """Column of the kind of task; empty for one kind."""
    client_column: str = ""
    """Column of the client; empty: every kind of task has clients of its own."""
    split_column: str = ""
    """Column of `train` and `test`; empty: by the names of files, folders or splits, else some are held out."""
    tasks: tuple[str, ...] = ()
    """Keep only these kinds of task, by the beginning of their names; all if none is named."""

    def resolved(self) -> Self:
        """Return the options with those of the known data set wherever one was left out."""
        return replace(self, **filled(vars(self), INSTRUCTION_SETS.get(self.dataset, {})))


def read_texts(options: InstructionSource) -> Texts:
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


def read_columns(options: InstructionSource, columns: Mapping[str, str]) -> dict[str, list[str]]:
    """Return each role's column as texts, of all files or splits of the hub, one after another; "" without a column.

    Without a column of splits, files or folders named train or test give it.
    """
    at_path, on_hub = partial(_of_path, options.tasks), partial(_of_hub, options.hub)
    parts = looked_up(options, "instructions", at_path, on_hub)
    read: dict[str, list[str]] = {role: [] for role in ROLES}
    for name, rows in parts.items():
        texts = texts_of(rows.with_format("arrow")[:], name, columns, options.tasks)
        for role, column in read.items():
            rest = split_of(Path(name)) if role == "split" else ""
            column += texts[role].to_pylist() if role in columns else [rest] * len(texts)
    return read


def _of_path(tasks: Sequence[str], path: Path) -> Parts:
    """The files there, those named after a wanted kind of task where there are any."""
    files = [path] if path.is_file() else table_files(path)
    if not files:
        raise ValueError(f"'{path}' has no parquet, no JSON and no CSV files (--data.path).")
    wanted = [file for file in files if tasks and file.stem.startswith(tuple(tasks))]
    return {str(file): read_file(file) for file in wanted or files}


def _of_hub(name: str) -> Parts:
    return {f"{name}/{split}": rows for split, rows in from_hub(name).items()}


def texts_of(table: pa.Table, name: str, columns: Mapping[str, str], tasks: Sequence[str]) -> pa.Table:
    """Return each role's column as texts, of the rows of a wanted kind of task where there are any.

    Where no kind is wanted, one row of each is left, to say which there are. Raises ValueError when a column is not
    there, has no texts, or lacks a sample's task, client or split; `name` is what the message calls the table.
    """
    for role, column in columns.items():
        option = f"--data.{role}-column"
        if column not in table.column_names:
            raise ValueError(f"'{name}' has no column '{column}' ({option}); it has {table.column_names}.")
        kind = table.column(column).type
        # An input may be missing in all samples of a file: then there are instructions that need none.
        if any(test(kind) for test in NO_TEXTS) or (pa.types.is_null(kind) and len(table) and role != "input"):
            raise ValueError(
                f"'{name}' has nothing but {kind} in its column '{column}', where texts belong ({option}); it has "
                f"{table.column_names}."
            )
        if role in WHOLE and table.column(column).null_count:
            raise ValueError(f"'{name}' has empty entries in its column '{column}' ({option}).")
    with naming(name):
        found = {role: table.column(column).cast(pa.large_string()).fill_null("") for role, column in columns.items()}
        texts = pa.table(found)
        texts.validate(full=True)
    if tasks and "task" in columns:
        names = texts["task"].to_pylist()
        wanted = kinds(names, tasks) >= 0
        texts = texts.filter(pa.array(wanted if wanted.any() else is_first(names)))
    return texts


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
