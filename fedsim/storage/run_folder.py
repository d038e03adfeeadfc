"""The files of a run: recipe, tables, events, checkpoints, result. Knows how to write safely, not what to write.

recipe.json    what was asked for, with versions and git revision      metrics.csv  a row a round
events.jsonl   what a method found out (stages, clusters, gaps)        clients.csv  a row per client and evaluation
costs.csv      a row per client and round: bytes, steps, simulated time
timing.csv     seconds, which differ from run to run                   result.json  the summary, at the end
checkpoints/   round-N.safetensors, what round N - 1 changed, made valid by round-N.json, which names the one before
tensorboard/   the same curves as events
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsim.storage import disk
from fedsim.storage.checkpoints import Chain, File, damage, read_files, replayed
from fedsim.storage.disk import (
    FolderInUse,
    append,
    check_is_new,
    open_own,
    read_json,
    to_disk,
    write_atomically,
    writing,
)
from fedsim.storage.provenance import environment
from fedsim.storage.tables import TABLES, header, lines_up_to
from fedsim.storage.wire import digest_of as digest_of
from fedsim.storage.wire import pack, structure_of

SEEDS = "seeds"
"""The field of a recipe that may grow when a comparison is resumed."""
ROUNDS = "rounds"
"""The field that may grow when a single run is resumed."""
MAY_CHANGE = frozenset({"on_nan", "timeout", "bank", "cells"})
"""What a run does where it would end, where it holds its copies, how workers share runs: bits depend on none."""
FINGERPRINT = "fingerprint"
"""The field of recipe.json that says what was loaded; it is no part of the recipe, which is what was asked for."""


class RunFolder:
    """One run's folder. Open it with `create` or `reopen`."""

    def __init__(self, path: Path, newest: int = 0, files: Sequence[File] = ()):
        self.path, self.newest = path, newest
        self.chain = Chain.of(path / "checkpoints", files)

    @classmethod
    def create(cls, folder: Path, recipe: Mapping[str, Any], machine: Mapping[str, Any] | None = None) -> "RunFolder":
        """Start a run folder; raises ValueError when there is a run in it already.

        Beside the recipe it notes versions, the git revision and what is said of the machine; of these only the number
        of threads is kept when the run is resumed.
        """
        check_is_new(folder)
        with writing(folder):
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_atomically(
            folder / "recipe.json", _json(dict(recipe) | {"environment": environment() | dict(machine or {})})
        )
        return cls(folder)

    @classmethod
    def extend(cls, folder: Path, recipe: Mapping[str, Any]) -> None:
        """Let recipe.json say what may differ on resuming as `recipe` does; everything else there stays as it was."""
        recorded = read_json(folder / "recipe.json")
        changes = {name: recipe[name] for name in (*MAY_CHANGE, SEEDS, ROUNDS, FINGERPRINT) if name in recipe}
        now = recorded | json.loads(_json(changes))
        if now != recorded:
            write_atomically(folder / "recipe.json", _json(now))

    @classmethod
    def reopen(cls, folder: Path, round_index: int, recipe: Mapping[str, Any]) -> "RunFolder":
        """Continue a run folder after so many rounds; rows and events of later ones will be written again, so they go.

        Raises `FolderInUse` when another run has written further checkpoints since the round was looked up.
        """
        if newest_round(folder) != round_index:
            raise FolderInUse(folder)
        (folder / "result.json").unlink(missing_ok=True)  # first: a run that goes on is not complete
        cls.extend(folder, recipe)
        (folder / "clients.parquet").unlink(missing_ok=True)
        for path, kept in lines_up_to(folder, round_index).items():
            if path.exists():
                with open_own(path) as file:
                    write_atomically(path, file.read(kept))
        return cls(folder, round_index, read_files(folder))

    def check_is_ours(self) -> None:
        """Raise `FolderInUse` where another run has written a checkpoint: not every file system has locks."""
        if newest_round(self.path) != self.newest:
            raise FolderInUse(self.path)

    def append(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to a CSV table, whose header is the first row's keys."""
        path = self.path / table
        fields, text = header(path), io.StringIO()
        writer = csv.DictWriter(text, fields or list(rows[0]), restval="", lineterminator="\n")
        if not fields:
            writer.writeheader()
        writer.writerows(rows)
        append(path, text.getvalue())

    def log_event(self, round_index: int, event: Mapping[str, Any]) -> None:
        """Add a line to events.jsonl, whose rounds count from 1; what JSON does not know (infinity, NaN) is null."""
        event = {name: value if _is_json(value) else None for name, value in event.items()}
        append(self.path / "events.jsonl", json.dumps({"round": round_index + 1, **event}) + "\n")

    def read_table(self, table: str) -> list[dict[str, str]]:
        """Return the rows of a CSV table so far."""
        return list(self.rows_of(table))

    def rows_of(self, table: str) -> Iterator[dict[str, str]]:
        """Yield the rows of a CSV table so far, none of which stays in memory."""
        path = self.path / table
        if path.exists():
            with open_own(path, "r", newline="") as file:
                yield from csv.DictReader(file)

    def read_events(self) -> list[dict[str, Any]]:
        """Return the lines of events.jsonl so far."""
        path = self.path / "events.jsonl"
        return [disk.parse_json(line) for line in disk.own_bytes(path).decode().splitlines()] if path.exists() else []

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file of the run."""
        write_atomically(self.path / name, _json(value))

    def save_checkpoint(self, round_index: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the state with which `round_index` will begin, whole or not at all: what has changed of it.

        `tensors` are all of it, but for tables (see checkpoints.py), of which they are the rows that were written.
        Files that neither this checkpoint nor the one before it needs are dropped.
        """
        changed, links = self.chain.change(round_index, tensors)
        payload = pack(changed)
        path = self.path / "checkpoints" / f"round-{round_index:06d}"
        write_atomically(path.with_suffix(".safetensors"), payload)
        for name in TABLES:
            to_disk(self.path / name)
        inside, sha256 = structure_of(changed), hashlib.sha256(payload).hexdigest()
        manifest = {"round_index": round_index, "sha256": sha256, "inside": inside, "run": _run_of(self.path)} | links
        write_atomically(path.with_suffix(".json"), _json(manifest))
        self.newest = round_index
        self.chain.done(round_index, sha256, len(payload))
        for old in self.chain.unneeded(links["from"]):
            old.unlink()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json."""
        write_atomically(self.path / "result.json", _json(result))


def _is_json(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def read_recipe(folder: Path) -> dict[str, Any]:
    """Return the recipe that a run folder was started with; raises ValueError when it is no run folder."""
    path = folder / "recipe.json"
    if not path.exists():
        raise ValueError(f"'{folder}' is no run folder: it has no recipe.json (--resume).")
    return {name: value for name, value in read_json(path).items() if name not in ("environment", FINGERPRINT)}


def read_environment(folder: Path) -> dict[str, Any]:
    """Return what `environment` said when a run was started, {} where that was not recorded."""
    return read_json(folder / "recipe.json").get("environment") or {}


def check_same_recipe(
    folder: Path, recipe: Mapping[str, Any], loaded: Mapping[str, Any] | None = None, more_rounds: bool = False
) -> None:
    """Raise ValueError that lists every field in which a run folder's recipe differs from this one.

    With the fingerprint of what is `loaded` now, also one that says what of weights and data is not as it was.
    But for those of `MAY_CHANGE`, in which a run may go on differently from how it began; and a comparison over several
    seeds may have further ones behind those that it was started with; with `more_rounds` a run may have more of them.
    """
    disk.check_own_files(folder)
    before, now = flat(read_recipe(folder)), flat(json.loads(_json(recipe)))
    seeds = before.get(SEEDS)
    if seeds and now.get(SEEDS, [])[: len(seeds)] == seeds:
        now[SEEDS] = seeds
    if more_rounds and before.get(ROUNDS, math.inf) <= now.get(ROUNDS, 0):
        now[ROUNDS] = before[ROUNDS]
    names = sorted((before.keys() | now.keys()) - MAY_CHANGE)
    differing = [name for name in names if before.get(name) != now.get(name)]
    if differing:
        listed = "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in differing[:8])
        way_out = "Resume it with its own options."
        way_out += " Rounds can only grow, and not those of a comparison (--rounds)." if ROUNDS in differing else ""
        raise ValueError(f"'{folder}' is the run folder of another recipe: {listed}. {way_out}")
    begun, now = flat(read_json(folder / "recipe.json").get(FINGERPRINT) or {}), flat(loaded or {})
    differing = [name for name in begun if begun[name] != now.get(name)] if now else []
    if differing:
        raise ValueError(
            f"'{folder}' was begun with other data or weights; not the same: {', '.join(differing)}. Resume it with "
            "those that it was begun with, or start a run of its own in another folder (--out)."
        )


def newest_round(folder: Path) -> int:
    """Return the round with which the newest checkpoint begins, by its name alone; 0 before the first."""
    stems = (manifest.stem.removeprefix("round-") for manifest in (folder / "checkpoints").glob("round-*.json"))
    return max((int(stem) for stem in stems if stem.isdecimal()), default=0)


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Tensor]]:
    """Return (round, tensors) of the newest checkpoint, (0, {}) before the first.

    Raises ValueError for one that is damaged, or lacks a file from which it goes on, or that another run wrote.
    """
    files = read_files(folder)
    if not files:
        return 0, {}
    newest = files[-1]
    stem = folder / "checkpoints" / f"round-{newest.round_index:06d}"
    try:
        tensors = replayed(files)
    except (IndexError, RuntimeError, TypeError) as error:
        raise damage(stem, f"its files do not fit together ({error})") from None
    of_earlier_versions = (None, _run_of(folder, MAY_CHANGE | {SEEDS}))
    if newest.manifest.get("run") not in (_run_of(folder), *of_earlier_versions):
        raise ValueError(str(damage(stem, "")).replace("damaged: .", "that of another run."))
    return newest.round_index, tensors


def _run_of(folder: Path, may_change: frozenset[str] = MAY_CHANGE | {SEEDS, ROUNDS}) -> str:
    """What tells a run from others: the SHA-256 of what may not change in its recipe, "" where there is none."""
    if not (folder / "recipe.json").exists():
        return ""
    recorded = read_json(folder / "recipe.json").items()
    fixed = {name: value for name, value in recorded if name not in may_change | {"environment"}}
    return hashlib.sha256(_json(fixed)).hexdigest()


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, default=str) + "\n").encode()


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested recipe as dotted names to values."""
    found: dict[str, Any] = {}
    for name, entry in value.items():
        found |= flat(entry, f"{prefix}{name}.") if isinstance(entry, dict) else {f"{prefix}{name}": entry}
    return found
