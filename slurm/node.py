"""What every node of a SLURM job runs (see fabric.sbatch): `fabric run` for its share of the workers.

Its exit code is that of the worker that failed first, where `fabric run` would leave with 1 whatever happened.
"""

import importlib.metadata
import os
import signal
import sys

from click import ClickException
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

FIRST_PORT, PORTS = 10000, 20000
"""Below those that systems give away by themselves; jobs that run together have numbers close to each other."""


def options() -> list[str]:
    """Return what `fabric run` must know of this node and its job; GPUs are those that SLURM gives the job."""
    job = os.environ
    n_gpus, n_cpus = int(job.get("SLURM_GPUS_ON_NODE") or 0), int(job.get("SLURM_CPUS_PER_TASK") or 1)
    accelerator, devices = ("cuda", n_gpus) if n_gpus else ("cpu", n_cpus)
    found = {"accelerator": accelerator, "devices": devices, "num-nodes": job["SLURM_NNODES"]}
    found |= {"node-rank": job["SLURM_NODEID"], "main-address": job["SLURM_LAUNCH_NODE_IPADDR"]}
    found |= {"main-port": FIRST_PORT + int(job["SLURM_JOB_ID"]) % PORTS}
    return [part for name, value in found.items() for part in (f"--{name}", str(value))]


def too_few_cores(arguments: list[str], cores: int) -> str:
    """Return a warning where the workers that `fabric run` is told to start here share fewer cores; else nothing."""
    devices = arguments[len(arguments) - 1 - arguments[::-1].index("--devices") + 1]
    if not devices.isdecimal() or int(devices) <= cores:
        return ""
    what = "one CPU core" if cores == 1 else f"{cores} CPU cores"
    return (
        f"{devices} workers share {what} on this node, which makes them slow: sbatch --cpus-per-task {devices} or more"
    )


def main(arguments: list[str]) -> int:
    """Run this node's workers; return the exit code. Of an option that is given twice the second counts."""
    command = [*options(), *arguments]
    if warning := too_few_cores(command, len(os.sched_getaffinity(0))):
        print(warning, file=sys.stderr, flush=True)
    # srun signals the workers too, who know what to do; the launcher would be ended by it and leave them orphaned.
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    (fabric,) = importlib.metadata.entry_points(group="console_scripts", name="fabric")
    try:
        fabric.load()(["run", *command], standalone_mode=False)
    except ChildFailedError as error:
        worker, failure = error.get_first_failure()
        print(f"worker {worker} left with exit code {failure.exitcode}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    except ClickException as error:  # a mistake in what `fabric run` is told
        error.show()
        return error.exit_code
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # other handlers are gone when Python takes its leave
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
