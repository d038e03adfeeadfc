"""The cells of a comparison, side by side where that is faster: each has its own folder, so any team may run it."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console

from fedsim.distributed.blocks import largest_size
from fedsim.distributed.launch import has_gpu
from fedsim.distributed.rollcall import Board
from fedsim.distributed.teams import side_by_side
from fedsim.distributed.workers import Workers
from fedsim.engines.block_size import cpu_block_size
from fedsim.experiments.makespan import Job, Stage, stages
from fedsim.experiments.tuning import Trial
from fedsim.report.progress import TeamRows
from fedsim.report.summary import Result
from fedsim.run_spec import RunSpec
from fedsim.storage.disk import read_json
from fedsim.storage.run_folder import newest_round

How = Literal["auto", "together"]
"""How workers share the cells of a comparison: some side by side where that is faster, or all work on each."""


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: its folder, its method's name and options, seed, title, and estimated work."""

    folder: Path
    name: str
    trial: Trial
    seed: int
    title: str
    job: Job


def check_how(how: str) -> None:
    """Raise ValueError for a word that says nothing of how cells are shared."""
    if how not in get_args(How):
        raise ValueError(f"cells is {how!r}; it must be one of {', '.join(get_args(How))} (--cells).")


def job_of(spec: RunSpec) -> Job:
    """Return a run's work, of which methods know nothing: all are taken for alike."""
    size = spec.block_size or (1 if spec.engine == "sequential" else cpu_block_size(spec.local, spec.n_cohort))
    if has_gpu() and not spec.block_size and spec.engine == "batched":  # at most so many
        size = largest_size(spec.n_cohort, Workers.n_launched())
    return Job(spec.rounds, -(-spec.n_cohort // size), spec.local.epochs * spec.local.share * size)


def run_cells(
    cells: Sequence[Cell], run: Callable[[Cell], Result | None], how: How, out: Path, timeout: float
) -> list[Result | None]:
    """Run every cell that is not finished; return all results in the order of cells on worker 0, None elsewhere.

    `run` is called in all workers that share a cell; `out` is the comparison's folder, `timeout` as in `simulate`.
    """
    workers = Workers.from_environment(timeout)
    results: list[Result | None] = [None] * len(cells)
    for stage in _agreed_stages(cells, how, out, workers):
        with shared_screen(workers, len(stage.sizes)) as board, side_by_side(workers, stage.sizes, board) as team:
            for index in stage.cells[team]:
                results[index] = run(cells[index])
    if not workers.is_first:
        return [None] * len(cells)
    return [result or finished(cell.folder) for cell, result in zip(cells, results, strict=True)]


@contextmanager
def shared_screen(workers: Workers, n_teams: int) -> Iterator[Board | None]:
    """Show on worker 0's terminal what all teams are at; nothing elsewhere, where each prints a line a round."""
    if n_teams == 1 or not workers.calls or not workers.all_numbers(int(Console().is_terminal))[0]:
        yield None
        return
    board = Board(workers.calls, n_teams)
    if not workers.is_first:
        yield board
        return
    with TeamRows(board.read):
        yield board


def _agreed_stages(cells: Sequence[Cell], how: How, out: Path, workers: Workers) -> list[Stage]:
    """Return the stages that worker 0 plans; where all work together, with the cells in their order."""
    together = [Stage((workers.count,), (tuple(range(len(cells))),))]
    if how == "together" or workers.count == 1 or len(cells) == 1 or not _is_shared(out, workers):
        return together
    planned = json.dumps(_planned(cells, workers.count) or together).encode() if workers.is_first else None
    found = json.loads(workers.broadcast(planned))
    return [Stage(tuple(sizes), tuple(map(tuple, hands))) for sizes, hands in found]


def _planned(cells: Sequence[Cell], n_workers: int) -> list[Stage]:
    """Return the stages of the cells that are not finished, and say so; nothing where all had better work together."""
    left = [index for index, cell in enumerate(cells) if not (cell.folder / "result.json").exists()]
    found = stages([cells[index].job.less(newest_round(cells[index].folder)) for index in left], n_workers)
    if len(found[0].sizes) == 1:
        return []
    sizes, rest = " + ".join(map(str, found[0].sizes)), sum(map(len, found[1].cells)) if found[1:] else 0
    then = f", then {rest} by all {n_workers}" if rest else ""
    print(f"Side by side: {len(left) - rest} cells by {sizes} workers{then} (--cells).", file=sys.stderr, flush=True)
    return [Stage(s.sizes, tuple(tuple(left[index] for index in hand) for hand in s.cells)) for s in found]


def _is_shared(out: Path, workers: Workers) -> bool:
    """Whether all workers see the comparison's folder, and not one of its name on a machine of their own."""
    theirs = workers.broadcast(_mark(out) if workers.is_first else None)
    return min(workers.all_numbers(int(_mark(out) == theirs))) == 1


def _mark(out: Path) -> bytes:
    try:
        found = (out / "recipe.json").stat()
    except OSError:
        return b"none"
    return f"{found.st_ino} {found.st_mtime_ns}".encode()


def finished(folder: Path) -> Result | None:
    """Return the result of a run folder whose run is complete, else None."""
    path = folder / "result.json"
    if not path.exists():
        return None
    summary = read_json(path)
    return Result(folder, summary, str(summary.pop("digest", "")))
