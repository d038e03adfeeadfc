"""What fedsim does on a GPU: whether it is right, how fast it is, and what fits into memory. Seven minutes on an H100.

    python benchmarks/gpu_check.py                              # everything, into RESULTS.md
    python benchmarks/gpu_check.py --only steps blocks          # some sections, into RESULTS.md
    python benchmarks/gpu_check.py --size smoke                 # whether every section runs, in seconds; printed only

Weights and samples are random, nothing is downloaded. Every section has a process of its own: one that fails is shown
with its error, and what has ended is written at once, so that a run which is cut keeps what it had.
"""

import logging
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Literal, NamedTuple, get_args

import torch
import tyro
from gpu import algebra, fast, language, memory, right
from gpu.federations import Row, vit
from gpu.sizes import FULL, SMOKE, Sizes
from results import markdown, show, write

from fedsim.storage.provenance import environment

Name = Literal[
    "versions",
    "agreement",
    "waits",
    "repeats",
    "steps",
    "kernels",
    "blocks",
    "texts",
    "llama",
    "dropout",
    "options",
    "placement",
    "shapes",
    "compile",
    "graphs",
    "round",
    "distances",
    "decompositions",
]


class Section(NamedTuple):
    """What is measured; `limit` are the seconds after which its process is ended."""

    title: str
    work: Callable[[Sizes, str], Iterator[Row]]
    on_cpu: bool = True
    limit: int = 180


SECTIONS: dict[Name, Section] = {
    "versions": Section("Versions, and implementations of attention", right.versions),
    "agreement": Section("Batched against sequential engine, largest ‖difference‖ ÷ ‖B A‖", right.agreement, limit=300),
    "waits": Section("Waits of the host for the device", right.waits, on_cpu=False),
    "repeats": Section("The same run twice", right.repeats),
    "steps": Section("ViT-B, a local step", fast.steps),
    "kernels": Section("Launches of a local step", fast.kernels, on_cpu=False),
    "blocks": Section("Clients of a block", memory.blocks, on_cpu=False),
    "texts": Section("BERT on texts of uneven lengths", language.uneven_texts),
    "llama": Section("LLaMA", language.answers),
    "dropout": Section("Dropout", fast.dropouts),
    "options": Section("What precision, TF32 and deterministic algorithms cost", fast.options),
    "placement": Section("Where data lie", fast.placements, on_cpu=False),
    "shapes": Section("Static shapes", fast.shapes),
    "compile": Section("torch.compile", fast.compiled),
    "graphs": Section("CUDA graphs", fast.graphs, on_cpu=False),
    "round": Section("A round of Fed-HeLLo's size", fast.large_round),
    "distances": Section("Distances between clients' subspaces", algebra.distances),
    "decompositions": Section("Decompositions", algebra.decompositions, on_cpu=False),
}
COLUMNS = ("what", "measured")
LOADED = (
    "lightning.fabric",
    "timm",
    "torchmetrics.functional.text",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
)
"""What is loaded once, as the ViT is made, before processes are forked off."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    only: tuple[Name, ...] = get_args(Name)
    """Sections."""
    skip: tuple[Name, ...] = ()
    """Sections that are left out."""
    size: Literal["full", "smoke"] = "full"
    """Everything as it is meant, or next to nothing of it."""
    accelerator: Literal["cuda", "cpu"] = "cuda"
    """Where; on a CPU some sections have no meaning and are left out, and nothing is written."""

    @property
    def names(self) -> list[Name]:
        """The sections that are run."""
        return [name for name in self.only if name not in self.skip]

    @property
    def is_written(self) -> bool:
        """Whether RESULTS.md gets the numbers."""
        return self.size == "full" and self.accelerator == "cuda"


class Measured(NamedTuple):
    """What a section found, and the error that ended it, if any."""

    rows: list[Row]
    error: str
    seconds: float


def main(options: Options) -> int:
    """Run the sections one after another, each in a process; return how many ended with an error."""
    for module in LOADED:
        import_module(module)
    vit(sizes_of(options))
    torch.set_num_threads(1)
    failed = []
    for name in options.names:
        section = SECTIONS[name]
        if options.accelerator == "cpu" and not section.on_cpu:
            print(f"{name}: has no meaning on a CPU\n", flush=True)
            continue
        found = in_process(section, options)
        failed += [name] if found.error else []
        rows = [*found.rows, *([("ended by", found.error)] if found.error else [])]
        show(f"{section.title} ({name}, {found.seconds:.0f} s)", COLUMNS, rows)
        sys.stdout.flush()
        if options.is_written:
            write_section(name, rows, found.seconds)
    print(f"failed: {', '.join(failed)}" if failed else "every section ended without an error", flush=True)
    return len(failed)


def in_process(section: Section, options: Options) -> Measured:
    """Run a section in a process that is forked off; what it found before an error, or before it was ended, stays."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(section, options, sender))
    started, rows, error = time.monotonic(), [], "its process ended without a word"
    process.start()
    sender.close()
    try:
        while receiver.poll(max(0.0, section.limit - (time.monotonic() - started))):
            kind, *content = receiver.recv()
            if kind == "row":
                rows.append(tuple(content))
            else:
                error = content[0]
        else:
            error = f"not done after {section.limit} s"
    except EOFError:
        pass
    process.join(0 if error.startswith("not done") else 30)
    if process.is_alive():
        process.kill()
        process.join()
    return Measured(rows, error, time.monotonic() - started)


def work(section: Section, options: Options, sender: Connection) -> None:
    """Measure, in a section's own process, and send each row as it is found, then the error or none."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what deterministic algorithms ask for
    os.environ["FEDSIM_FIGURES"] = "0"
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
        try:
            for row in section.work(sizes_of(options), options.accelerator):
                sender.send(("row", *row))
            sender.send(("end", ""))
        except Exception as error:
            traceback.print_exc(limit=-5, chain=False)
            sender.send(("end", f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"))
    sender.close()


def sizes_of(options: Options) -> Sizes:
    """Return how much is asked for."""
    return FULL if options.size == "full" else SMOKE


def write_section(name: str, rows: list[Row], seconds: float) -> None:
    """Replace a section of RESULTS.md."""
    where = f"`python benchmarks/gpu_check.py --only {name}` — {date.today()}, commit {environment()['git']}, "
    where += f"{card()}, {seconds:.0f} s."
    write(f"gpu: {name}", f"{where}\n\n{markdown(COLUMNS, rows)}", f"On a GPU: {SECTIONS[name].title}")


@cache
def card() -> str:
    """Return the GPU's name."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return f"{pool.apply(torch.cuda.get_device_name)}, torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
