"""How a run starts or goes on: what its folder must say before processes start, and what it keeps of before."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsim.distributed.workers import Workers
from fedsim.records.recorder import BLOCK_SIZE, HORIZON, check_learnt, check_rounds, restore_state
from fedsim.run_spec import RunSpec
from fedsim.server.cohort import sample_cohort
from fedsim.storage.disk import check_is_new
from fedsim.storage.run_folder import check_same_recipe, load_checkpoint, read_environment
from fedsim.storage.tables import lines_up_to


@dataclass(frozen=True)
class Start:
    """Where a run starts: its first round, the checkpoint before it, and what bits depend on (None: not yet chosen)."""

    round_index: int = 0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    block_size: int | None = None
    threads: int | None = None

    def agreed(self, workers: Workers, loaded: Mapping[str, str]) -> "Start":
        """Return this with worker 0's numbers: other machines may lack the folder that they are from.

        Raises a Fault where a worker has `loaded` other data or weights.
        """
        workers.check_same(loaded)
        mine = json.dumps([self.round_index, self.block_size, self.threads]).encode() if workers.is_first else None
        round_index, block_size, threads = json.loads(workers.broadcast(mine))
        return replace(self, round_index=round_index, block_size=block_size, threads=threads)


def start_of(
    spec: RunSpec, out: Path, recipe: Mapping[str, Any], loaded: Mapping[str, str], resume: bool, threads: int | None
) -> Start:
    """Return where a run starts; `loaded` is its data's and weights' fingerprint, `threads` what was asked for.

    Raises ValueError for a folder that this run may not be written to, or cannot go on from.
    """
    is_first = Workers.is_first_or_alone()
    if not resume:
        if is_first:
            check_is_new(out)
        return Start(threads=threads)
    if is_first:
        check_same_recipe(out, recipe, loaded, more_rounds=True)
        threads = threads or read_environment(out).get("threads")
    round_index, tensors = load_checkpoint(out)
    if tensors:
        known = HORIZON in tensors and tensors[HORIZON].shape == (2,)  # not so of earlier versions
        check_rounds(spec.rounds, type(spec.method).__name__, tensors) if known else check_same_recipe(out, recipe)
        check_fits(spec, out, round_index, tensors)
    if is_first:
        lines_up_to(out, round_index)  # are its tables whole?
    return Start(round_index, tensors, int(tensors.get(BLOCK_SIZE, 0)) or None, threads)


def check_fits(spec: RunSpec, out: Path, round_index: int, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a run cannot go on from a checkpoint: it is another run's, or no run writes such a one."""
    try:
        if round_index > spec.rounds:
            raise ValueError(f"It is of round {round_index}, and the run has {spec.rounds}.")
        state = restore_state(spec.state(round_index, spec.initial_slots(), out), tensors)
        cohort = sample_cohort(spec.population, spec.n_cohort, spec.seed, round_index, sampling=spec.cohort_sampling)
        check_learnt(replace(state, cohort=tuple(cohort)), spec.method, spec.population)
    except ValueError as error:
        raise ValueError(f"The run cannot go on from '{out}/checkpoints/round-{round_index:06d}': {error}") from error
