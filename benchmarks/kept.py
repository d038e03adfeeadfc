"""Scores of finished cells, kept as text: a line for each row of a table and seed, from which tables are rebuilt.

benchmarks/scores/TABLE.csv             row, seed, settings, what ran it, and each client's score
benchmarks/scores/TABLE.settings.json   what the numbers of a cell depend on, by the hashes that the lines name

A cell is there when a line has its row, its seed and its settings. Options that fedsim gained since then do not count
while they stand at their defaults, those that it lost do not count at all. Of fedsim's code a hash is noted; whether it
computes the same is told by running a cell again, which compares the two.
"""

import ast
import csv
import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fedsim

COLUMNS = ("row", "seed", "settings", "loaded", "code", "machine", "seconds", "digest", "facts", "scores")
COMPUTING = (
    *("adapters", "data", "distributed", "engines", "models", "parts", "server"),
    *("options.py", "plan.py", "randomness.py", "round.py", "run_spec.py", "simulation.py"),
)
"""What of fedsim decides the numbers of every method; its own module comes on top."""
Settings = Mapping[str, tuple[Any, bool]]
"""What a cell is made with, by dotted name: the value, and whether it is the default."""


@dataclass(frozen=True)
class Cell:
    """A finished cell: how it was made, what it says, and each client's score by evaluation, {client: score}."""

    row: str
    seed: int
    settings: str
    loaded: str
    code: str
    machine: str
    seconds: float
    digest: str
    facts: Mapping[str, Any]
    scores: Mapping[str, Mapping[int, float]]

    def of(self, evaluation: str) -> np.ndarray:
        """Return the clients' scores, (C,), in client order; raises ValueError where that was not kept."""
        if evaluation not in self.scores:
            raise ValueError(f"No scores of '{evaluation}' are kept for {self.row}, seed {self.seed}.")
        return np.array([score for _, score in sorted(self.scores[evaluation].items())])

    def as_line(self) -> dict[str, str]:
        """Return the cell as texts by column."""
        line = {name: str(getattr(self, name)) for name in COLUMNS[:-2]}
        listed = (f"{name} {' '.join(f'{c}:{s:.6g}' for c, s in by.items())}" for name, by in self.scores.items())
        return line | {"seconds": f"{self.seconds:.0f}", "facts": json.dumps(self.facts), "scores": "; ".join(listed)}


def cell_of(line: Mapping[str, str]) -> Cell:
    """Return the cell that a line holds."""
    scores: dict[str, dict[int, float]] = {}
    for part in line["scores"].split("; "):
        name, *pairs = part.split(" ")
        split = (pair.split(":") for pair in pairs)
        scores[name] = {int(client): float(score) for client, score in split}
    words = {name: line[name] for name in ("row", "settings", "loaded", "code", "machine", "digest")}
    facts = json.loads(line["facts"])
    return Cell(seed=int(line["seed"]), seconds=float(line["seconds"]), facts=facts, scores=scores, **words)


class Kept:
    """The cells of one table."""

    def __init__(self, folder: Path, table: str):
        self.path, self.about = folder / f"{table}.csv", folder / f"{table}.settings.json"
        self.known: dict[str, dict[str, Any]] = json.loads(self.about.read_text()) if self.about.exists() else {}
        self.cells: dict[tuple[str, int, str], Cell] = {}
        for line in self._lines():
            cell = cell_of(line)
            known = self.cells.setdefault((cell.row, cell.seed, cell.settings), cell)
            if told := differing(known, cell):
                raise ValueError(f"{self.path} holds two results of one cell. {told} Keep one of the two lines.")

    def _lines(self) -> Iterator[dict[str, str]]:
        if self.path.exists():
            with self.path.open(newline="") as file:
                yield from csv.DictReader(file)

    def hash_of(self, parts: Sequence[Settings]) -> str:
        """Return the hash of settings: that under which compatible ones are known, or a new one."""
        return "+".join(self._hash_of(part) for part in parts)

    def _hash_of(self, settings: Settings) -> str:
        for name, known in self.known.items():
            if all(known[at] == value if at in known else default for at, (value, default) in settings.items()):
                return name
        values = {at: value for at, (value, _) in settings.items()}
        made = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
        self.known[made] = values
        return made

    def get(self, row: str, seed: int, settings: str) -> Cell | None:
        """Return a cell, where it is there."""
        return self.cells.get((row, seed, settings))

    def add(self, cell: Cell) -> None:
        """Keep one more cell, on disk too."""
        self.cells[cell.row, cell.seed, cell.settings] = cell
        self.path.parent.mkdir(parents=True, exist_ok=True)
        used = {part for row, seed, name in self.cells for part in name.split("+")}
        known = {name: values for name, values in self.known.items() if name in used}
        self.about.write_text(json.dumps(known, indent=1) + "\n")
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(cell.as_line())


def differing(kept: Cell, again: Cell) -> str:
    """Return in words that a cell's two runs differ, empty where they do not: in scores, of which six digits count."""
    gaps = [
        abs(score - again.scores.get(name, {}).get(client, np.inf))
        for name, by in kept.scores.items()
        for client, score in by.items()
    ]
    n_other = sum(gap > 1e-5 for gap in gaps)
    if not n_other:
        return ""
    return (
        f"{kept.row}, seed {kept.seed}: {n_other} of {len(gaps)} scores differ, by {max(gaps):.3f} at most; means "
        f"{kept.of('global').mean():.4f} as kept (code {kept.code}, {kept.machine}) and "
        f"{again.of('global').mean():.4f} now (code {again.code}, {again.machine})."
    )


def described(part: Any, name: str, is_default: bool = False) -> dict[str, tuple[Any, bool]]:
    """Return what a dataclass, or a plain value, is, by dotted name; with whether it is the default."""
    if not dataclasses.is_dataclass(part):
        return {name: (json.loads(json.dumps(part, default=str)), is_default)}
    found: dict[str, tuple[Any, bool]] = {f"{name}.kind": (type(part).__name__, is_default)}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        has_factory = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if has_factory else field.default  # type: ignore[misc]
        found |= described(value, f"{name}.{field.name}", is_default or value == default)
    return found


@functools.cache
def code_of(kind: type) -> str:
    """Return the hash of fedsim's code that decides a method's numbers, without comments and docstrings."""
    root, own = Path(fedsim.__file__).parent, sys.modules[kind.__module__].__file__
    places = [root / name for name in COMPUTING]
    files = [file for place in places for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    digest = hashlib.sha256()
    for file in [*files, Path(str(own))]:
        digest.update(ast.unparse(_Silent().visit(ast.parse(file.read_text()))).encode())
    return digest.hexdigest()[:8]


class _Silent(ast.NodeTransformer):
    """Leaves out texts that stand alone: docstrings."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return ast.Pass() if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node
