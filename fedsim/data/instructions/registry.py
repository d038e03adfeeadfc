"""Instruction data sets that fedsim knows by name: where they are and what their columns are called."""

from typing import Literal

InstructionSetName = Literal["dolly", "flan", "natural-instructions", "own"]
INSTRUCTION_SETS = {
    "dolly": {
        "hub": "databricks/databricks-dolly-15k",
        "instruction_column": "instruction",
        "input_column": "context",
        "answer_column": "response",
        "task_column": "category",
    },
    "flan": {
        "hub": "Muennighoff/flan",
        "instruction_column": "inputs",
        "answer_column": "targets",
        "task_column": "task",
    },
    "natural-instructions": {
        "hub": "Muennighoff/natural-instructions",
        "instruction_column": "definition",
        "input_column": "inputs",
        "answer_column": "targets",
        "task_column": "task_name",
    },
}
SPLIT_BY_TASK = ("natural-instructions",)
"""Sets whose test split has other tasks than the training split, so that no client could have both, and that tell a
question once for each of its answers, so that it would be trained on and tested."""
