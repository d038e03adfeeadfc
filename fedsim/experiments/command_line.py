"""The command line: a recipe's options, and one message for what is wrong. It comes before any process group.

A typo must fail in one line. Under `fabric run` all workers parse it, and the first one speaks.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import tyro

from fedsim.costs.availability import Availability
from fedsim.costs.devices import DeviceProfiles
from fedsim.distributed.launch import check_threads, launch, one_voice, tell_launcher
from fedsim.distributed.signals import Stopped, resume_command
from fedsim.distributed.workers import TIMEOUT, check_timeout
from fedsim.errors import Fault, OnNan
from fedsim.experiments.cell_runs import How
from fedsim.experiments.help import help_text
from fedsim.options import check_options, check_run
from fedsim.parts.downlink import Downlink
from fedsim.parts.privacy import Privacy
from fedsim.parts.privacy_loss import Sampling
from fedsim.parts.schedule import Schedule
from fedsim.parts.server_optimizer import ServerOptimizer
from fedsim.parts.uplink import Uplink
from fedsim.storage.disk import check_is_new
from fedsim.storage.run_folder import check_same_recipe, read_recipe

USAGE_ERROR = 2
ECHO_WAIT = 5
"""Seconds before a worker ends that another's fault has reached: the first to leave would end who has yet to speak."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every recipe takes."""

    out: Path | None = None
    """Run folder; default runs/<recipe>-<time>."""
    resume: Path | None = None
    """Continue the run in this folder, with the options it was started with, or more --rounds."""
    seed: int = 0
    """Seed of everything random."""
    seeds: tuple[int, ...] = ()
    """Several seeds instead of one, each with a split of its own: run them all and sum them up in one table."""
    reference: str | None = None
    """Of several methods, the one that the others are tested against; default: the best of the others."""
    cells: How = "auto"
    """Of several runs, whether some workers train one and some another where all are done sooner, or all train each
    together; bits are the same."""
    dry_run: bool = False
    """Train nothing and write nothing; print what the run would cost in steps, samples, bytes and time."""
    rounds: int = 50
    """Rounds in all."""
    cohort_size: int | None = None
    """Clients sampled in a round; default all."""
    cohort_sampling: Sampling = "fixed"
    """Whether so many clients take part in every round, or each by itself and so many on average (Poisson sampling)."""
    evaluate_every: int = 1
    """Rounds between evaluations of all seen clients; the last round always has one."""
    evaluate_clients: int | None = None
    """Evaluate so many seen clients, drawn once, and all of them after the last round only; default all."""
    engine: Literal["batched", "sequential"] = "batched"
    """How a worker trains its clients: in blocks, all of a block at once, or one after another (the reference)."""
    block_size: int | None = None
    """Clients that the batched engine trains together; default: what fits (GPU), about 128 samples (CPU)."""
    static_shapes: bool | None = None
    """Pad batches and texts to few shapes: steps of uneven clients compute more, in fewer kernels; same results to
    rounding. Default: on a GPU."""
    bank: Literal["memory", "disk"] = "memory"
    """Where worker 0 holds clients' own copies: in memory, or in files of the run folder, which may hold more."""
    compile: bool = False
    """Put the backbone through torch.compile: a minute at the start, some per cent afterwards."""
    cuda_graphs: bool = False
    """On a GPU with static shapes, record each kind of training pass once as a CUDA graph and repeat it: the host then
    starts one graph, not hundreds of kernels. The price: a recorded pass keeps its memory. No GPU has measured it."""
    deterministic: bool = False
    """On a GPU, two runs end in the same bits at the same block size, as they do on a CPU anyway. The price:
    attention's and other sums are slower, and an operation that has no such algorithm ends the run."""
    tf32: bool = False
    """On a GPU, compute fp32 products in TF32: 7 to 8 times as fast by data sheets. The price: 10 bits of mantissa, not
    23. Under --precision bf16-mixed it changes next to nothing."""
    on_nan: OnNan = "stop"
    """Where a client's loss or update is no longer finite: stop the run, or skip that update and count it."""
    threads: int | None = None
    """CPU threads of a worker, which change bits; default 1 (CPU), cores ÷ workers (GPU)."""
    timeout: float = TIMEOUT
    """Seconds for which workers wait for each other; then the run ends and names who did not come."""

    devices_profile: DeviceProfiles = dataclasses.field(default_factory=DeviceProfiles)
    """Simulated devices of the clients: how long a round would take them, and who misses its deadline."""

    availability: Availability = dataclasses.field(default_factory=Availability)
    """When the clients are there, in simulated time."""

    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    """When the server steps: in rounds, or asynchronously."""

    server: ServerOptimizer = dataclasses.field(default_factory=ServerOptimizer)
    """The server's optimiser."""

    uplink: Uplink = dataclasses.field(default_factory=Uplink)
    """How what clients send is encoded."""

    downlink: Downlink = dataclasses.field(default_factory=Downlink)
    """How what clients receive is encoded."""

    privacy: Privacy = dataclasses.field(default_factory=Privacy)
    """Differential privacy of clients."""

    wandb: Literal["offline", "online"] | None = None
    """Give the curves to Weights & Biases too: kept in the run folder for `wandb sync`, or sent at once."""

    def __post_init__(self) -> None:
        check_timeout(self.timeout)
        check_threads(self.threads)
        check_run(self)

    def arguments(self) -> dict[str, Any]:
        """Return what these options say to `fedsim.simulate`."""
        names = ("rounds", "seed", "cohort_size", "cohort_sampling", "evaluate_every", "evaluate_clients", "engine")
        also = ("block_size", "static_shapes", "bank", "compile", "cuda_graphs", "deterministic", "tf32", "on_nan")
        how = (*also, "threads", "timeout", "wandb")
        parts = ("devices_profile", "availability", "schedule", "server", "uplink", "downlink", "privacy")
        same = {name: getattr(self, name) for name in (*names, *how, *parts)}
        return {**same, "out": self.out, "resume": self.resume is not None, "recipe": to_dict(self)}


HOW_NOT_WHAT = ("out", "resume", "dry_run")
"""Options that say where a run is recorded and whether, not what is run."""

NOT_EMBEDDED = {"--data.path", "--data.hub", "--data.dataset", "--model.name", "--model.weights"}
"""Options that --embedded would ignore without a word."""

RENAMED = {"--method": "--methods", "--only": "--methods", "--rung": "--methods"}
"""What options of recipes were called before."""

Recipe = TypeVar("Recipe", bound=RunOptions)


def cli(recipe_type: type[Recipe] | Callable[[], type[Recipe]], main: Callable[[Recipe], None]) -> None:
    """Parse the command line into a recipe and run `main(recipe)`; a type that depends on it may come from a function.

    A usage error, or a ValueError before the processes start, is one message and exit code 2; a later one is a bug and
    keeps its traceback. A `Fault`, which is nobody's bug, is one message and exit code 1; a worker that only hears the
    echo of another's says nothing. A run that was asked to stop says how it goes on and leaves with exit code 75. With
    `--resume DIR` the folder's own recipe is the default, and options that contradict it are refused.
    """
    try:
        recipe = parse(recipe_type if isinstance(recipe_type, type) else recipe_type())
        if _is_first():
            print(f"{Path(sys.argv[0]).stem}: loading data and model", file=sys.stderr, flush=True)
        main(recipe)
    except Stopped:
        if _is_first():
            print(f"go on with: {resume_command(recipe.out)}", file=sys.stderr, flush=True)
        raise
    except ValueError as error:
        if launch.cache_info().currsize:
            raise
        fail(str(error))
    except Fault as fault:
        if fault.is_echo:
            time.sleep(ECHO_WAIT)
        else:
            print(f"error: {fault}", file=sys.stderr, flush=True)
            tell_launcher(f"error: {fault}")
        sys.exit(1)


def parse(recipe_type: type[Recipe]) -> Recipe:
    """Return the recipe that the command line asks for."""
    check_renamed(sys.argv[1:], {field.name for field in dataclasses.fields(recipe_type)})
    folder = resume_folder(sys.argv[1:])
    default = recipe_type() if folder is None else from_dict(recipe_type(), read_recipe(folder))
    try:
        with one_voice():
            about = sys.modules["__main__"].__doc__ or ""
            if {"-h", "--help"} & set(sys.argv[1:]):
                print(help_text(recipe_type, default, sys.argv[0], about))
                sys.exit(0)
            recipe = tyro.cli(recipe_type, default=default, description=about)
    except SystemExit as error:
        if error.code:
            _wait_for_first()
        raise
    check_options(recipe)
    check_typed(recipe, default)
    if folder is None:
        out = recipe.out or Path("runs") / f"{Path(sys.argv[0]).stem}-{_start_time()}"
        check_is_new(out)
        return dataclasses.replace(recipe, out=out)
    recipe = dataclasses.replace(recipe, out=folder, seeds=_with_new_seeds(default.seeds, recipe.seeds))
    check_same_recipe(folder, to_dict(recipe), more_rounds=True)  # a comparison refuses them later
    return recipe


def check_renamed(arguments: list[str], fields: set[str]) -> None:
    """Raise ValueError for an option by the name that it had before, where the recipe has it by its new one."""
    typed = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    is_known = {f"--{name.replace('_', '-')}" for name in fields}
    if old := [word for word in typed if RENAMED.get(word) in is_known]:
        raise ValueError(f"{old[0]} is called {RENAMED[old[0]]} now; it takes one name or several.")


def check_typed(recipe: RunOptions, default: RunOptions) -> None:
    """Raise ValueError for options on the command line of which one would be ignored, since another says otherwise."""
    typed = {word.partition("=")[0].replace("_", "-") for word in sys.argv[1:] if word.startswith("--")}
    problems = []
    folder = resume_folder(sys.argv[1:])
    if folder and recipe.out and folder.absolute() != recipe.out.absolute():
        problems.append(f"a resumed run goes on in '{folder}' and not in '{recipe.out}'; leave out --out or --resume")
    if "--seeds" in typed and not recipe.seeds:
        problems.append("--seeds has no seeds; give one or more")
    if recipe.seeds and ("--seed" in typed or recipe.seed != default.seed):
        problems.append("--seeds and --seed are given; leave out one of them")
    if getattr(recipe, "embedded", False) and (other := sorted(typed & NOT_EMBEDDED)):
        problems.append(f"--embedded brings data and model of its own; leave it out, or {', '.join(other)}")
    if problems:
        raise ValueError("; ".join(problems) + ".")


def _with_new_seeds(before: tuple[int, ...], now: tuple[int, ...]) -> tuple[int, ...]:
    """Return a resumed comparison's seeds, in whatever order they are given: those of before, then the new ones.

    Where one of before is left out, `now` as it is, which is refused. The first seed is the one that is tuned on.
    """
    return (*before, *(seed for seed in now if seed not in before)) if before and set(before) <= set(now) else now


def to_dict(recipe: Any) -> dict[str, Any]:
    """Return a recipe's fields, nested, without those that only say how it is carried out."""
    fields = dataclasses.asdict(recipe)
    return {name: value for name, value in fields.items() if name not in HOW_NOT_WHAT}


def from_dict(default: Recipe, values: dict[str, Any]) -> Recipe:
    """Return `default` with the fields that `to_dict` wrote, nested dataclasses included."""
    changes: dict[str, Any] = {}
    types = get_type_hints(type(default))
    for field in dataclasses.fields(default):  # type: ignore[arg-type]
        if field.name in values:
            value, current = values[field.name], getattr(default, field.name)
            if dataclasses.is_dataclass(current) and not isinstance(current, type):
                value = from_dict(current, value)  # type: ignore[type-var]
            elif isinstance(value, list):
                value = tuple(value)
            elif isinstance(value, str) and (isinstance(current, Path) or "Path" in str(types[field.name])):
                value = Path(value)
            changes[field.name] = value
    return dataclasses.replace(default, **changes)


def fail(message: str) -> None:
    """Print one message, on one worker, and leave with exit code 2.

    The other workers wait until the launcher ends them: the first to leave would end the one that has yet to speak.
    """
    if _is_first():
        print(f"error: {message}", file=sys.stderr, flush=True)
        tell_launcher(f"error: {message}")
    else:
        _wait_for_first()
    sys.exit(USAGE_ERROR)


def resume_folder(arguments: list[str]) -> Path | None:
    """Return the run that `--resume` names; None without it."""
    for index, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--resume":
            value = value or (arguments[index + 1] if index + 1 < len(arguments) else "")
            return Path(value) if value and value.lower() != "none" else None
    return None


def _start_time() -> str:
    """The launch's time; workers of one launch agree on it because the first one's parent started them all."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    started = os.stat(f"/proc/{os.getppid()}").st_ctime if run_id and os.path.exists("/proc") else time.time()
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(started))


def _is_first() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def _wait_for_first() -> None:
    if not _is_first():
        time.sleep(30)
