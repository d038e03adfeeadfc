"""The papers' orderings on real data, table by table: runs what is missing, judges all of it, rewrites RESULTS.md.

    fabric run benchmarks/tables.py --accelerator cpu --devices 2 --tables d1 --seeds 4     # a block of seeds
    python benchmarks/tables.py --tables d1 --no-run                                        # from the scores alone
    python benchmarks/tables.py --size smoke --out runs/smoke                               # whether all of it runs

What is compared is in settings.py, which orderings are judged and when in gates.toml, finished cells are in scores/.
A cell that is there is not run again; one that was begun goes on. `make reproduce TABLE=d1` is the first command.
"""

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from federation import Dealt, loaded_hash
from kept import Cell, Kept, code_of, described, differing
from pages import write_pages
from results import machine_line
from settings import SETTINGS, Row, Setting

import fedsim
from fedsim.distributed.workers import Workers
from fedsim.report.comparison import local_steps, scores_of
from fedsim.report.summary import Result

SCORES = Path(__file__).parent / "scores"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run."""

    tables: tuple[str, ...] = tuple(SETTINGS)
    """Which tables."""
    seeds: int | None = None
    """Seeds 0 to one less than this; default: all of the table's."""
    rows: tuple[str, ...] = ()
    """Run these rows only; default all."""
    size: Literal["full", "smoke"] = "full"
    """Tables of smoke size are written to the folder of the runs, not to RESULTS.md."""
    text_model: str = ""
    """Folder of a pre-trained text encoder with its tokenizer, for d4."""
    run: bool = True
    """Run what is missing; otherwise tables are made of what is there."""
    again: bool = False
    """Run the chosen cells that are there once more, beside their scores, and tell where they differ."""
    out: Path = Path("runs/tables")
    """Where the runs are kept."""

    def __post_init__(self) -> None:
        if unknown := set(self.tables) - SETTINGS.keys():
            raise ValueError(f"There is no table {sorted(unknown)}; there are {', '.join(SETTINGS)} (--tables).")
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}; it must be 1 or more (--seeds).")

    @property
    def is_smoke(self) -> bool:
        """Whether this is only to see that everything runs."""
        return self.size == "smoke"

    @property
    def scores(self) -> Path:
        """Where finished cells are kept."""
        return self.out / "scores" if self.is_smoke else SCORES


class Table:
    """A table's cells: those that are kept, and how to run the others."""

    def __init__(self, name: str, options: Options):
        self.name, self.options = name, options
        self.setting: Setting = SETTINGS[name](options.is_smoke)
        unknown = set(options.rows) - self.setting.rows.keys()
        if unknown and options.tables == (name,):
            listed = ", ".join(self.setting.rows)
            raise ValueError(f"Table {name} has no row {sorted(unknown)}; it has {listed} (--rows).")
        self.kept, self.hashes = Kept(options.scores, name), dict[str, str]()
        self.others = {place.split("/")[0]: Table(place.split("/")[0], replace(options, rows=()))
                       for place in self.setting.same.values()}  # fmt: skip

    @property
    def seeds(self) -> range:
        """All seeds of the table."""
        return range(self.setting.seeds)

    def settings_of(self, row: str) -> str:
        """Return the hash of all that the numbers of a row's cells depend on, but for fedsim's code."""
        if row in self.hashes:
            return self.hashes[row]
        setting, about = self.setting, self.setting.rows[row]
        model = {name: value for name, value in described(setting.model, "model").items() if name != "model.name"}
        shared = {"data", "cohort_size", "test", "per_class"}
        federation = {n: v for name in sorted(shared) for n, v in described(getattr(setting, name), name).items()}
        own = described(about.method, "method") | described(about.local or setting.local, "local")
        own |= described(about.rounds or setting.rounds, "rounds")
        self.hashes[row] = self.kept.hash_of([federation | model, own])
        return self.hashes[row]

    def cell(self, row: str, seed: int) -> Cell | None:
        """Return a cell that is kept, here or in the table that has the same."""
        if place := self.setting.same.get(row):
            table, name = place.split("/")
            return self.others[table].cell(name, seed)
        return self.kept.get(row, seed, self.settings_of(row))

    def chosen(self) -> Iterator[tuple[int, str]]:
        """Yield the cells that the options name, seed by seed."""
        rows = [name for name in self.setting.rows if name not in self.setting.same]
        rows = [name for name in rows if name in self.options.rows] if self.options.rows else rows
        for seed in self.seeds[: self.options.seeds]:
            yield from ((seed, row) for row in rows)

    def folder(self, row: str, seed: int) -> Path:
        """Return the run folder of a cell."""
        parts = ("again",) if self.options.again else ()
        return self.options.out.joinpath(*parts, self.name, f"seed-{seed}", row.replace("/", "of"))

    @cached_property
    def task(self) -> Dealt:
        """The federations of all seeds and the backbone, found when a cell is first run."""
        setting, model = self.setting, self.setting.model
        if hasattr(model, "tokenizer"):
            if not self.options.text_model:
                raise ValueError(f"Table {self.name} needs the folder of a text encoder (--text-model).")
            model = replace(model, name=self.options.text_model)
        return Dealt(setting.data, model, setting.test, setting.per_class)

    def run(self) -> int:
        """Run the chosen cells that are missing, or all again; return how many came out otherwise than kept."""
        n_other = 0
        wanted = [(s, r) for s, r in self.chosen() if (self.cell(r, s) is None) != self.options.again]
        for number, (seed, row) in enumerate(wanted, 1):
            cell = self._run(seed, row, f"{self.name} {number}/{len(wanted)} · {row}, seed {seed}")
            if cell is None:  # another worker than the first
                continue
            if not self.options.again:
                self.kept.add(cell)
            elif told := differing(self.kept.get(row, seed, cell.settings) or cell, cell):
                n_other += 1
                print(f"{self.name} · {told} The kept scores stay; to replace them, delete their line.", flush=True)
        return n_other

    def _run(self, seed: int, row: str, title: str) -> Cell | None:
        setting, about = self.setting, self.setting.rows[row]
        folder, fields = self.folder(row, seed), self._fields(about, seed)
        self._check_same_data(seed, loaded := loaded_hash(fields))
        if self.options.again and Workers.is_first_or_alone():
            shutil.rmtree(folder, ignore_errors=True)
        result = self._finished(folder) if not self.options.again else None
        result = result or fedsim.simulate(
            out=folder, resume=(folder / "recipe.json").exists() and not self.options.again, title=title, **fields
        )
        if not Workers.is_first_or_alone():
            return None
        assert result is not None
        evaluations = [name for name in setting.evaluations if name == "global" or fields["data"].unseen]
        return Cell(
            row,
            seed,
            self.settings_of(row),
            loaded,
            code_of(type(about.method)),
            machine_line(),
            float(result.summary["seconds"]),
            result.digest[:12],
            facts_of(result),
            {name: scores_by_client(result, name) for name in evaluations},
        )

    def _fields(self, about: Row, seed: int) -> dict[str, Any]:
        rounds = about.rounds or self.setting.rounds
        return {
            "method": about.method,
            "backbone": self.task.backbone,
            "data": self.task.federation(seed),
            "sites": self.setting.model.sites,
            "rounds": rounds,
            "evaluate_every": rounds,
            "local": about.local or self.setting.local,
            "cohort_size": self.setting.cohort_size,
            "seed": seed,
        }

    @staticmethod
    def _finished(folder: Path) -> Result | None:
        """Return the result of a run that ended before its scores were kept."""
        path = folder / "result.json"
        if not path.exists():
            return None
        summary = json.loads(path.read_text())
        return Result(folder, summary, str(summary.get("digest", "")))

    def _check_same_data(self, seed: int, loaded: str) -> None:
        """Raise ValueError where a seed's kept cells had other data or another backbone: they would not be paired."""
        cells = (self.cell(row, seed) for row in self.setting.rows if row not in self.setting.same)
        others = [cell for cell in cells if cell is not None and cell.loaded != loaded]
        if others:
            rows = ", ".join(cell.row for cell in others)
            raise ValueError(
                f"Table {self.name}, seed {seed}: the data or the backbone differ from those of the kept cells "
                f"({rows}; {others[0].machine}). Run the seed's other cells there, or delete its lines and run all."
            )


def facts_of(result: Result) -> dict[str, Any]:
    """Return what a table says of a cell beside its scores."""
    of = result.summary
    facts: dict[str, Any] = {"MB up": round(of["bytes.up"] / 1e6, 2), "MB down": round(of["bytes.down"] / 1e6, 2)}
    facts["steps"] = round(of["rounds"] * (local_steps([result]) or 0.0), 1)
    for name, key in (("K", "clusters.count"), ("ARI", "clusters.ari"), ("routed", "unseen.routing_agreement")):
        if of.get(key) is not None:
            facts[name] = round(float(of[key]), 3)
    lines = (result.folder / "events.jsonl").read_text().splitlines()
    cuts = [event["cuts"] for event in map(json.loads, lines) if "cuts" in event]
    return facts | ({"groups": cuts[0]} if cuts else {})


def scores_by_client(result: Result, evaluation: str) -> dict[int, float]:
    """Return each client's accuracy in its last evaluation of a kind."""
    with (result.folder / "clients.csv").open(newline="") as file:
        clients = {int(row["client"]) for row in csv.DictReader(file) if row["evaluation"] == evaluation}
    return dict(zip(sorted(clients), scores_of(result, evaluation).tolist(), strict=True))


def main(options: Options) -> int:
    """Run what is missing, then print and write all tables that were asked for; return how many cells differ."""
    tables = {name: Table(name, options) for name in options.tables}
    n_other = sum(table.run() for table in tables.values()) if options.run or options.again else 0
    if Workers.is_first_or_alone():
        everything = tables if options.is_smoke else {name: Table(name, options) for name in SETTINGS}
        write_pages(tables, everything, options.out / "RESULTS.md" if options.is_smoke else None)
    return n_other


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(min(main(tyro.cli(Options)), 1))
