"""How benchmarks show their numbers: a table on the terminal, and the same text between two marks of RESULTS.md."""

import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fedsim.storage.provenance import environment

ROOT = Path(__file__).parent.parent


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the same table in markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(name: str, text: str, heading: str = "") -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`; without the marks, add a section `heading`."""
    path, begin, end = ROOT / "RESULTS.md", f"<!-- {name} -->", f"<!-- /{name} -->"
    whole, block = path.read_text(), f"{begin}\n{text}\n{end}"
    if begin in whole:
        path.write_text(re.sub(f"{begin}.*{end}", lambda _: block, whole, flags=re.DOTALL))
    else:
        path.write_text(f"{whole.rstrip()}\n\n## {heading or name}\n\n{block}\n")


def provenance(threads: int) -> str:
    """Return the command, and when, of which commit and on what it ran."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    facts = environment()
    command = shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])
    return (
        f"`{command}` — {date.today()}, commit {facts['git']}, {processor()}, {os.cpu_count()} cores, "
        f"{threads} thread(s) a process, GPU: {gpu}, torch {facts['versions']['torch']}."
    )


def machine_line() -> str:
    """Return the processor, the GPU where there is one, the workers and torch's version, in one line."""
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    workers = f"{os.environ.get('WORLD_SIZE', 1)} of {os.cpu_count()} cores"
    return ", ".join([*gpu, processor(), workers, f"torch {environment()['versions']['torch']}"])


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()
