"""Instruction data sets that fedsim knows by name, where instructions are looked for, and tasks in their own files."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import datasets

from fedsim.data.sources.find import Place, from_hub, looked_up
from fedsim.data.sources.registry import Known

InstructionSetName = Literal["dolly", "flan", "natural-instructions", "own"]
INSTRUCTION_SETS = {
    "dolly": Known(
        {
            "hub": "databricks/databricks-dolly-15k",
            "instruction_column": "instruction",
            "input_column": "context",
            "answer_column": "response",
            "task_column": "category",
        },
        "8 kinds of task",
        "Conover et al. 2023; databricks/databricks-dolly-15k",
        "CC BY-SA 3.0",
    ),
    "flan": Known(
        {
            "hub": "Muennighoff/flan",
            "instruction_column": "inputs",
            "answer_column": "targets",
            "task_column": "task",
        },
        "tasks",
        "Wei et al. 2022; Muennighoff/flan",
        "Apache-2.0",
    ),
    "natural-instructions": Known(
        {
            "hub": "Muennighoff/natural-instructions",
            "instruction_column": "definition",
            "input_column": "inputs",
            "answer_column": "targets",
            "task_column": "task_name",
        },
        "tasks",
        "Wang et al. 2022; Muennighoff/natural-instructions",
        "Apache-2.0",
    ),
}
LEFT_OUT = {"instruction_column": "instruction", "answer_column": "output"}
"""What options are where neither they are given nor a known data set."""
SPLIT_BY_TASK = ("natural-instructions",)
"""Sets whose test split has other tasks than the training split, so that no client could have both, and that tell a
question once for each of its answers, so that it would be trained on and tested."""


def find_instructions(options: Place) -> "Path | datasets.DatasetDict":
    """Return the file or folder at a path, as such or inside $FEDSIM_DATA, else what the hub or its cache has.

    Raises ValueError when there is none, with what was tried and the command that gets it.
    """
    on_hub = partial(from_hub, options.hub)
    found: Path | datasets.DatasetDict = looked_up(options, "instructions", Path, on_hub, Path.exists)
    return found


def files_of(found: Path, tasks: Sequence[str]) -> list[Path]:
    """Return the files at a path, those named after a wanted kind of task where there are any.

    Of a folder they are Natural Instructions' `tasks/task*.json`, else parquet and JSON lines, else JSON.
    """
    if found.is_file():
        return [found]
    tables = sorted([*found.rglob("*.parquet"), *found.rglob("*.jsonl")])
    files = sorted(found.glob("tasks/task*.json")) or tables or sorted(found.rglob("*.json"))
    if not files:
        raise ValueError(f"'{found}' has no parquet, no JSON-lines and no JSON files (--data.path).")
    return [file for file in files if tasks and file.stem.startswith(tuple(tasks))] or files


def is_task(content: bytes) -> bool:
    """Tell a task of Natural Instructions from JSON lines."""
    return b'"Instances"' in content


def read_task(file: Path, content: bytes) -> dict[str, list[str]]:
    """Return instructions, inputs, first answers and the name of one task of Natural Instructions.

    Raises ValueError that names the file when it is damaged or another JSON.
    """
    try:
        record = json.loads(content)
        instruction, instances = _first(record["Definition"]), record["Instances"]
        inputs = [_text(instance["input"]) for instance in instances]
        answers = [_first(instance["output"]) for instance in instances]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(
            f'\'{file}\' is damaged or no task of Natural Instructions, an object with a "Definition" and "Instances" '
            f'of "input" and "output" ({type(error).__name__}: {error}). Fetch it again, or give another --data.path.'
        ) from error
    n = len(instances)
    return {"instruction": [instruction] * n, "input": inputs, "answer": answers, "task": [file.stem] * n}


def _first(value: Any) -> str:
    """The first of several texts, or the one; "" of none."""
    return _text((value or [""])[0] if isinstance(value, list) else value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value
