"""Instruction data sets that fedsim knows by name: where they are, what their columns are called, whose they are."""

from typing import Literal

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
