"""One row of the engine benchmark in a process of its own, driven over pipes: a request and an answer a line.

python benchmarks/row_process.py batched        # what RowProcess starts
"""

import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor
from workloads import WORKLOADS

ROWS = {
    "centralised": ("rows.centralised", "Centralised", ()),
    "batched": ("rows.simulated", "Simulated", ("batched",)),
    "sequential": ("rows.simulated", "Simulated", ("sequential",)),
    "peft": ("rows.peft_loop", "PeftLoop", ()),
    "pfl": ("rows.pfl_research", "PflResearch", ()),
    "flower": ("rows.flower", "Flower", ()),
}
"""Module, class and further arguments of each row; only its own process imports it."""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(__file__).parent),
    "HF_HUB_OFFLINE": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "PFL_PYTORCH_DEVICE": "cpu",
    "LT_CLI_USED": "1",
    "LT_ACCELERATOR": "cpu",
    "LT_DEVICES": "1",
    "LT_NUM_NODES": "1",
    "LT_PRECISION": "32-true",
}


class Row(Protocol):
    """What a row can do once it is set up."""

    def round(self) -> None:
        """Train all clients once."""

    def weights(self) -> dict[str, Tensor]:
        """Return the shared trainable tensors by slot."""


class RowError(RuntimeError):
    """A row could not do what it was asked for; the message is its error's last line."""


class RowProcess:
    """A row from the outside. Its process starts at once, and answers when it has loaded its libraries."""

    def __init__(self, row: str):
        self.errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, __file__, row],
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def ask(self, name: str, *arguments: Any) -> dict[str, Any]:
        """Call a method of the row, or `open` a workload, or `save` the weights in a file, or do a round `again`.

        Returns its `seconds` and its `answer`. Raises RowError.
        """
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps([name, arguments]) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise RowError((self.errors.read().strip() or "the process ended").splitlines()[-1])
        reply = json.loads(line)
        if "error" in reply:
            raise RowError(reply["error"])
        return reply

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()


class Served:
    """A row from the inside: what its process does with requests."""

    def __init__(self, name: str):
        module, kind, self.arguments = ROWS[name]
        self.kind = getattr(import_module(module), kind)
        self.row: Row | None = None

    def open(self, workload: str) -> None:
        """Set the row up for a workload, in place of the one before."""
        self.close()
        self.row = self.kind(WORKLOADS[workload], *self.arguments)

    def save(self, path: str) -> None:
        """Write the weights."""
        save_file(self.row.weights(), path)

    def close(self) -> None:
        """Let go of what there is."""
        getattr(self.row, "close", lambda: None)()
        self.row = None
        gc.collect()

    def reply(self, name: str, arguments: list[Any]) -> dict[str, Any]:
        """Carry out a request."""
        try:
            started = time.perf_counter()
            name = "round" if name == "again" else name
            answer = getattr(self if name in ("open", "save") else self.row, name)(*arguments)
            seconds = time.perf_counter() - started
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {"seconds": seconds, "answer": answer}


def main(row: str) -> None:
    """Answer until the requests end; whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    served = Served(row)
    for line in sys.stdin:
        print(json.dumps(served.reply(*json.loads(line))), file=answers, flush=True)
    served.close()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)  # without waiting for what libraries left running
