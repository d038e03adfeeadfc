"""Several methods over several seeds: one split a seed, one backbone, one budget, and one table at the end.

out/recipe.json, result.json   what was asked for; the means over seeds under `<method>.`, and one digest over all runs
out/seed-S/<method>/           the run folder of every cell
out/tuning/<method>-N/         those of a grid's trials; out/tuning.json says what each scored and which was chosen
out/comparison.{md,csv,tex}    the table
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from fedsim.data.federated import FederatedData
from fedsim.distributed.launch import check_threads, launch
from fedsim.distributed.signals import handle_signals
from fedsim.distributed.workers import TIMEOUT, Workers, check_timeout
from fedsim.experiments.cell_runs import Cell, How, check_how, finished, job_of, run_cells
from fedsim.experiments.makespan import Job
from fedsim.experiments.tuning import VALIDATION_SHARE, Grid, Trial, check_equal_trials, trials_of, with_validation
from fedsim.options import LocalTraining
from fedsim.plan import Method
from fedsim.report.comparison import Comparison, latex, markdown, table_csv
from fedsim.report.summary import Result
from fedsim.run_spec import RunSpec
from fedsim.simulation import simulate
from fedsim.storage.disk import check_is_new, write_atomically
from fedsim.storage.run_folder import FINGERPRINT, RunFolder, check_same_recipe, flat, load_checkpoint
from fedsim.storage.tables import lines_up_to

Methods = Mapping[str, Method | Grid]
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9 .,_+=-]{0,99}")


def compare(
    methods: Methods,
    data: Callable[[int], FederatedData],
    *,
    out: Path | str,
    seeds: Sequence[int] = (0,),
    recipe: Mapping[str, Any] | None = None,
    resume: bool = False,
    reference: str | None = None,
    validation_share: float = VALIDATION_SHARE,
    cells: How = "auto",
    **common: Any,
) -> Comparison | None:
    """Run every method on every seed's data; return the comparison on worker 0, None elsewhere.

    `data` makes a seed's federation; `common` are further arguments of `simulate`. A `Grid` is tuned first, on the
    first seed's training rows only. `reference` names the method that others are tested against (default: the best of
    the others). `cells` says how workers share runs: "together", all of them each, or "auto", some one and some another
    where all are done sooner; bits are the same. With `resume`, finished runs are read and unfinished ones go on, and
    `seeds` may have further ones behind those of before. Raises ValueError for anything that does not fit, before a
    file exists.
    """
    check_names(methods, seeds, reference), check_how(cells)
    check_threads(common.get("threads")), check_timeout(common.get("timeout", TIMEOUT))
    table = Cells(methods, data, tuple(seeds), Path(out), validation_share, dict(common), cells)
    recipe = dict(recipe or table.describe())
    table.check()
    if Workers.is_first_or_alone():
        table.check_folders(recipe) if resume else check_is_new(table.out)
    launch()  # from here on every worker has passed the checks, and worker 0 may write
    Workers.from_environment(common.get("timeout", TIMEOUT)).check_same(flat(table.loaded))
    if Workers.is_first_or_alone():
        (RunFolder.extend if resume else RunFolder.create)(table.out, recipe | {FINGERPRINT: table.loaded})
    with handle_signals():
        results = table.run(recipe, chosen := table.tune(recipe))
    if not Workers.is_first_or_alone():
        return None
    values = {name: trial.values for name, trial in chosen.items() if trial.values}
    budget = f"{common['rounds']} rounds; {policies_of(chosen)}"
    found = Comparison(table.out, table.seeds, results, combined_digest(results), reference, values, budget)
    write(found)
    return found


def check_names(methods: Methods, seeds: Sequence[int], reference: str | None) -> None:
    """Raise ValueError for names that make no folders, an unknown reference, no seed and one that is given twice."""
    problems = [
        f"a method is called {name!r}; names of methods name folders: letters, digits, space and . , _ + = - behind one"
        for name in methods
        if not (isinstance(name, str) and NAME.fullmatch(name))
    ]
    if not methods:
        problems.append("there is no method to run")
    if reference is not None and len(methods) == 1:
        problems.append(f"reference is '{reference}', but there is one method only, and none to test (--reference)")
    elif reference is not None and reference not in methods:
        problems.append(f"reference is '{reference}'; it must be one of several methods: {', '.join(methods)}")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        problems.append(f"seeds are {list(seeds)}; they must be distinct and 0 or more, and at least one (--seeds)")
    if problems:
        raise ValueError("; ".join(problems) + ".")


@dataclass(frozen=True)
class Cells:
    """All runs of a comparison. Workers that share a run go through it alike, and each trains its share."""

    methods: Methods
    data: Callable[[int], FederatedData]
    seeds: tuple[int, ...]
    out: Path
    validation_share: float
    common: Mapping[str, Any]
    how: How = "auto"
    trials: dict[str, list[Trial]] = field(init=False)
    loaded: dict[str, dict[str, str]] = field(init=False, default_factory=dict)
    """Fingerprints of the backbone and of every seed's data; the checks before the start find them."""
    jobs: dict[tuple[int, int], Job] = field(init=False, default_factory=dict)
    """What a trial on a seed costs, by seed and the trial's `id`; the checks find them too."""

    def __post_init__(self) -> None:
        local = self.common.get("local", LocalTraining())
        trials = {name: trials_of(entry, local) for name, entry in self.methods.items()}
        check_equal_trials(trials)
        object.__setattr__(self, "trials", trials)

    @property
    def is_tuned(self) -> bool:
        """Whether there is anything to choose."""
        return any(len(of_method) > 1 for of_method in self.trials.values())

    def folders(self) -> Iterator[Path]:
        """Yield the run folders of all cells and trials."""
        for name, of_method in self.trials.items():
            yield from (self.cell(seed, name) for seed in self.seeds)
            yield from (self.trial(name, index) for index in range(len(of_method)))

    def check_folders(self, recipe: Mapping[str, Any]) -> None:
        """Raise ValueError where one cannot go on: what is damaged must be found before the first run goes on."""
        check_same_recipe(self.out, recipe, self.loaded)
        for folder in self.folders():
            lines_up_to(folder, load_checkpoint(folder)[0])
            finished(folder)

    def cell(self, seed: int, name: str) -> Path:
        """The run folder of a method on a seed."""
        return self.out / f"seed-{seed}" / name

    def trial(self, name: str, index: int) -> Path:
        """The run folder of a method's trial."""
        return self.out / "tuning" / f"{name}-{index}"

    def describe(self) -> dict[str, Any]:
        """Return what recipe.json records of a comparison without a recipe: what the results of all cells depend on."""
        first = next(iter(self.trials.values()))[0]
        common = self._setting(first, self.data(self.seeds[0]), self.seeds[0]).describe()
        del common["method"], common["seed"]
        local = vars(self.common.get("local", LocalTraining()))
        methods = {name: {"name": type(m).__name__, **vars(m)} for name, m in self.methods.items()}
        own = {"methods": methods, "local": local, "seeds": list(self.seeds), "threads": self.common.get("threads")}
        return common | own | {"validation_share": self.validation_share}

    def _setting(self, trial: Trial, data: FederatedData, seed: int) -> RunSpec:
        fields = {name: value for name, value in self.common.items() if name not in ("threads", "timeout", "local")}
        return RunSpec(method=trial.method, local=trial.local, data=data, seed=seed, **fields)

    def check(self) -> None:
        """Raise ValueError where a method, a seed's data and the common arguments do not fit together."""
        for seed in self.seeds:
            federation = self.data(seed)
            for of_method in self.trials.values():
                for trial in of_method:
                    spec = self._setting(trial, federation, seed)
                    self.jobs[seed, id(trial)] = job_of(spec)
            self.loaded[f"seed-{seed}"] = spec.fingerprint()
        if self.is_tuned:
            with_validation(self.data(self.seeds[0]), self.validation_share, self.seeds[0])

    def tune(self, recipe: Mapping[str, Any]) -> dict[str, Trial]:
        """Run every trial on validation rows of the first seed; return each method's best, the earlier of equals."""
        if not self.is_tuned:
            return {name: of_method[0] for name, of_method in self.trials.items()}
        seed, chosen, report = self.seeds[0], {}, {}
        federation = with_validation(self.data(seed), self.validation_share, seed)
        cells = [
            self._cell(self.trial(name, index), name, trial, seed, f"trial {index + 1}/{len(of_method)} · {name}")
            for name, of_method in self.trials.items()
            for index, trial in enumerate(of_method)
        ]
        results = self._run(cells, recipe, lambda seed: federation)
        every = iter(self._agreed([result.summary["global.mean"] if result else None for result in results]))
        for name, of_method in self.trials.items():
            scores = [next(every) for _ in of_method]
            best = scores.index(max(scores))
            chosen[name] = of_method[best]
            tried = [{"values": trial.values, "score": score} for trial, score in zip(of_method, scores, strict=True)]
            report[name] = {"chosen": of_method[best].values, "trials": tried}
        if Workers.is_first_or_alone():
            about = {"seed": seed, "validation_share": self.validation_share, "score": "global.mean on validation rows"}
            text = json.dumps(about | {"methods": report}, indent=1, default=str) + "\n"
            write_atomically(self.out / "tuning.json", text.encode())
        return chosen

    def run(self, recipe: Mapping[str, Any], chosen: Mapping[str, Trial]) -> dict[str, list[Result]]:
        """Run every method on every seed; return results by method, in the order of seeds (empty but on worker 0)."""
        n = len(self.seeds) * len(chosen)
        cells = [
            self._cell(self.cell(seed, name), name, trial, seed, f"{number}/{n} · {name}, seed {seed}")
            for number, (seed, (name, trial)) in enumerate(product(self.seeds, chosen.items()), 1)
        ]
        results: dict[str, list[Result]] = {name: [] for name in chosen}
        for cell, result in zip(cells, self._run(cells, recipe, lru_cache(1)(self.data)), strict=True):
            results[cell.name] += [result] if result else []
        return results

    def _cell(self, folder: Path, name: str, trial: Trial, seed: int, title: str) -> Cell:
        return Cell(folder, name, trial, seed, title, self.jobs[seed, id(trial)])

    def _run(
        self, cells: Sequence[Cell], recipe: Mapping[str, Any], data: Callable[[int], FederatedData]
    ) -> list[Result | None]:
        timeout = self.common.get("timeout", TIMEOUT)
        return run_cells(cells, lambda cell: self._simulate(cell, data, recipe), self.how, self.out, timeout)

    def _simulate(self, cell: Cell, data: Callable[[int], FederatedData], recipe: Mapping[str, Any]) -> Result | None:
        """Run one cell; where it is finished read it, where it was begun go on."""
        folder, trial, seed = cell.folder, cell.trial, cell.seed
        result, is_begun = finished(folder), (folder / "recipe.json").exists()
        is_finished, is_begun = self._agreed([result is not None, is_begun])
        if is_finished:
            return result
        own = cell_recipe(recipe, cell.name, trial, seed)
        arguments = {**self.common, "method": trial.method, "local": trial.local, "data": data(seed), "seed": seed}
        return simulate(out=folder, recipe=own, resume=is_begun, title=cell.title, **arguments)

    def _agreed(self, values: list[Any]) -> list[Any]:
        """Return worker 0's values on every worker: other machines may not have the folder that they come from."""
        workers = Workers.from_environment(self.common.get("timeout", TIMEOUT))
        found: list[Any] = json.loads(workers.broadcast(json.dumps(values).encode() if workers.is_first else None))
        return found


def cell_recipe(recipe: Mapping[str, Any], name: str, trial: Trial, seed: int) -> dict[str, Any]:
    """Return what a cell's recipe.json records."""
    return {**recipe, "seed": seed, "method_name": name, "values": dict(trial.values)}


def policies_of(chosen: Mapping[str, Trial]) -> str:
    """Return in words how the methods share the classifier, which decides much of an accuracy."""
    policies = {name: trial.method.head_policy for name, trial in chosen.items()}
    if len(set(policies.values())) == 1:
        return f"head policy {next(iter(policies.values()))}"
    return "head policies " + ", ".join(f"{name}: {policy}" for name, policy in policies.items())


def combined_digest(results: Mapping[str, Sequence[Result]]) -> str:
    """Return the SHA-256 over names and digests of all runs, in the order of names and seeds."""
    lines = [f"{name} {' '.join(run.digest for run in results[name])}\n" for name in sorted(results)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write(comparison: Comparison) -> None:
    """Write result.json and the table in its three forms."""
    for suffix, text in (("md", markdown), ("tex", latex), ("csv", table_csv)):
        write_atomically(comparison.folder / f"comparison.{suffix}", text(comparison).encode())
    RunFolder(comparison.folder).finish(comparison.summary() | {"digest": comparison.digest})
