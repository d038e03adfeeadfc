"""Reads run folders as they are: finished or still going, with whatever a crash left of their last lines."""

import csv
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from fedsim.report.summary import MODELS, SIMULATED, Result, summarise_run
from fedsim.storage.disk import check_own_folder, open_own, own_bytes, parse_json, read_json
from fedsim.storage.tables import check_counts_from_one

PERSONAL, GLOBAL = MODELS
EVALUATIONS = {
    GLOBAL: "global",
    PERSONAL: "personal",
    "unseen.untuned": "unseen, untuned",
    "unseen.tuned": "unseen, tuned",
}
"""Which models of a client are evaluated, and what figures and tables call them."""
PRICES = {
    "MB": ("bytes", "MB sent so far, up and down", "bytes sent"),
    "s": ("time", "seconds of simulated time", "simulated time"),
}
"""What a run can be charged for, by unit: the name of its figures, its axis, and the word for it."""
BESIDE_RUNS = ("tuning",)
"""Folders of a comparison whose runs are none of its cells."""


@dataclass(frozen=True)
class Run:
    """What a run folder holds so far; `finished` is its result.json, None while there is none.

    `written` is when its last row was written, in seconds since the epoch.
    """

    path: Path
    name: str
    recipe: Mapping[str, Any]
    rounds: Sequence[Mapping[str, str]]
    clients: Iterable[Mapping[str, str]]
    timing: Sequence[Mapping[str, str]]
    events: Sequence[Mapping[str, Any]]
    finished: Mapping[str, Any] | None
    written: float

    @cached_property
    def domain_names(self) -> Mapping[str, str]:
        """Domains' names by their numbers, as split.json has them."""
        path = self.path / "split.json"
        return dict(read_json(path)["domains"]) if path.exists() else {}

    @cached_property
    def metrics(self) -> list[str]:
        """The names of the metrics by client, the headline first."""
        prefix, suffix = f"{GLOBAL}.", ".mean"
        columns = list(self.rounds[0]) if self.rounds else []
        names = [c[len(prefix) : -len(suffix)] for c in columns if c.startswith(prefix) and c.endswith(suffix)]
        return [self._headline, *(name for name in names if name)]

    @property
    def _headline(self) -> str:
        if self.finished:
            return str(self.finished.get("metric", "accuracy"))
        columns = list(next(iter(self.clients), {}))
        return columns[columns.index("evaluation") + 1] if columns else "accuracy"

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """result.json, or what it would hold if the run ended here."""
        if self.finished:
            return self.finished
        seconds = sum(number(row, "seconds") for row in self.timing)
        return summarise_run(self.rounds, self.clients, self.metrics) | {"seconds": seconds}

    @property
    def result(self) -> Result:
        """The run as other tables take it."""
        return Result(self.path, self.summary, str(self.summary.get("digest", "")))

    @property
    def seed(self) -> int:
        """The seed it was started with."""
        return int(self.recipe.get("seed", 0))

    @cached_property
    def model(self) -> Mapping[str, Any]:
        """What model.json says of its method and backbone; empty where there is none."""
        path = self.path / "model.json"
        return dict(read_json(path)) if path.exists() else {}

    @property
    def method(self) -> str:
        """What its method is called: in a comparison, as a word of Python's, or the class's name."""
        names = (self.recipe.get("method_name"), self.recipe.get("method"), self.model.get("method", {}).get("name"))
        return next((name for name in names if isinstance(name, str) and name), "")

    @property
    def data(self) -> str:
        """What its data are called: a known set, the hub's name or the folder; "" where the recipe does not say."""
        options = self.recipe.get("data")
        if not isinstance(options, dict):
            return ""
        if self.recipe.get("embedded") or "clients_per_style" in options:
            return "the embedded data"
        known = [options.get(name) for name in ("dataset", "task") if options.get(name) != "own"]
        names = [*known, options.get("hub"), Path(str(options.get("path") or "")).name]
        return next((str(name) for name in names if name), "")

    @property
    def backbone(self) -> str:
        """What its backbone is called: the name that the recipe gives, else its class."""
        options = self.recipe.get("model")
        named = options.get("name") if isinstance(options, dict) and not self.recipe.get("embedded") else ""
        return str(named or self.model.get("backbone", {}).get("class", ""))

    @property
    def date(self) -> str:
        """The day on which its last row was written."""
        return time.strftime("%Y-%m-%d", time.localtime(self.written))

    @property
    def status(self) -> str:
        """How far it is, in words; whether a run without a result still goes on, its folder cannot tell."""
        if self.finished:
            return f"finished after {len(self.rounds)} rounds"
        total = self.recipe.get("rounds")
        of = f" of {total}" if total else ""
        last = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.written))
        return f"round {len(self.rounds)}{of}, no result yet; last {'row' if self.rounds else 'written'} at {last}"

    def latest(self, evaluation: str) -> dict[int, Mapping[str, str]]:
        """Return every client's most recent row of an evaluation."""
        return {int(row["client"]): row for row in self.clients if row["evaluation"] == evaluation}

    def curve(self, column: str) -> tuple[list[int], list[float]]:
        """Return rounds and the values of a column of metrics.csv, where it has one."""
        points = [(int(row["round"]), number(row, column)) for row in self.rounds if row.get(column)]
        return [x for x, _ in points], [y for _, y in points]

    def spent(self, price: str) -> list[float]:
        """Return what was spent by the end of each round: MB sent up and down, or seconds of simulated time."""
        if price == "MB":
            each = [sum(int(row[f"bytes.{way}"] or 0) for way in ("up", "down")) / 1e6 for row in self.rounds]
        else:
            each = [number(row, SIMULATED) for row in self.rounds if row.get(SIMULATED)]
        return list(accumulate(each))


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Read all runs of some folders, of which each holds one run or a comparison; raises ValueError when one does not.

    Runs of one name are told apart by the folders above them.
    """
    folders = list(dict.fromkeys(folder.resolve() for path in paths for folder in _folders(path)))
    names = {folder: folder.name for folder in folders}
    depth = 1
    while len(set(names.values())) < len(folders):
        depth += 1
        names = {folder: "/".join(folder.parts[-depth:]) for folder in folders}
    return [read_run(folder, names[folder]) for folder in folders]


def _folders(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        raise ValueError(f"'{path}' is no run folder: there is no such folder.")
    inside = [
        folder
        for folder in sorted(path.iterdir(), key=_in_order)
        if folder.is_dir() and folder.name not in BESIDE_RUNS and (_is_run(folder) or folder.name.startswith("seed-"))
    ]
    if not inside and not _is_run(path):
        raise ValueError(f"'{path}' is no run folder: it has no recipe.json, nor has any folder in it.")
    for folder in inside:
        check_own_folder(folder)
        yield from _folders(folder)
    if not inside:
        yield path


def _in_order(folder: Path) -> tuple[str, int, str]:
    """seed-2 before seed-10."""
    stem, _, last = folder.name.rpartition("-")
    return (stem, int(last), "") if last.isdecimal() else (folder.name, 0, "")


def _is_run(folder: Path) -> bool:
    return (folder / "recipe.json").exists()


def read_run(folder: Path, name: str) -> Run:
    """Read one run folder; a line that was not finished is left out, a damaged one raises ValueError."""
    check_counts_from_one(folder)
    tables = [Table(folder / f"{table}.csv") for table in ("metrics", "clients", "timing")]
    rounds, clients, timing = list(tables[0]), tables[1], list(tables[2])
    for _ in clients:  # is it whole?
        pass
    recipe, metrics, finished = (folder / name for name in ("recipe.json", "metrics.csv", "result.json"))
    return Run(
        folder, name, _json(recipe), rounds, clients, timing, _events(folder / "events.jsonl"),
        _json(finished) if finished.exists() else None,
        (metrics if metrics.exists() else recipe).stat().st_mtime,
    )  # fmt: skip


def number(row: Mapping[str, str], column: str) -> float:
    """Return a cell as a number, NaN where it is empty or missing."""
    return float(row.get(column) or "nan")


def _whole_lines(path: Path) -> Iterator[str]:
    if path.exists():
        with open_own(path, "r", newline="", errors="replace") as file:
            yield from (line for line in file if line.endswith("\n"))


@dataclass(frozen=True)
class Table:
    """A CSV table that is read anew whenever one goes through its rows: those of many clients are millions."""

    path: Path

    def __iter__(self) -> Iterator[dict[str, str]]:
        try:
            for index, row in enumerate(csv.DictReader(_whole_lines(self.path))):
                if None in row or None in row.values():
                    what = f"line {index + 2} has not as many columns as the header"
                    raise ValueError(f"'{self.path}' is damaged: {what}.")
                yield row
        except csv.Error as error:
            raise ValueError(f"'{self.path}' is damaged: {error}.") from None


def _events(path: Path) -> list[dict[str, Any]]:
    events = []
    for index, line in enumerate(_whole_lines(path)):
        try:
            events.append(parse_json(line))
        except ValueError as error:
            raise ValueError(f"'{path}' is damaged: line {index + 1} is no JSON ({error}).") from None
        if not isinstance(events[-1], dict):
            raise ValueError(f"'{path}' is damaged: line {index + 1} holds no object.")
    return events


def _json(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(own_bytes(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' cannot be read: {error}.") from None
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' cannot be read: it holds no object.")
    return found
