"""Checkpoints by change: a round's file holds what the round changed and names the file before it.

Files are written once and renamed into place, so that they can be read without a lock on any file system. Of a table,
tensors `<table>|rows`, `|groups`, `|rounds` and `|width`, a file has the rows that were written; any other tensor is
there where it has changed: whole, or as places and values, `<name>|at` and `<name>|to`, where few of many have. What
counts is the last one of each. Where files hold more than about twice what counts, the oldest goes, and what of it
still counts is written again with the round's own: after a while that is all, so no file stays for ever.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from fedsim.storage import disk
from fedsim.storage.wire import structure_of, unpack

PARTS = ("rows", "groups", "rounds", "width")
"""Of a table: rows (n, *shape), their numbers (n,), the rounds in which they were written, how many there may be."""
SLACK = 2**16
"""Bytes of files beside twice what counts: of small states names are most of a file."""
SPARSE = 4096
"""Entries from which on a tensor may be written as places and values."""


@dataclass(frozen=True)
class File:
    """A checkpoint's file: the round that it begins, what it holds and how it hangs together with others."""

    round_index: int
    tensors: Mapping[str, Tensor]
    manifest: Mapping[str, Any]
    size: int

    @property
    def first(self) -> int:
        """The round of the oldest file that counts; its own in those of earlier versions, which hold all."""
        return int(self.manifest.get("from", self.round_index))


@dataclass
class Chain:
    """What counts in the files of a run: by table the file of every row, and every other tensor as it is."""

    folder: Path
    sizes: dict[int, int] = field(default_factory=dict)
    """Bytes of each file that counts, by its round, ascending."""
    live: dict[int, int] = field(default_factory=dict)
    """Those of them that count."""
    place: dict[str, Tensor] = field(default_factory=dict)
    """The file (n,) of each row of a table, 0 for none. Zeros take no memory until they are written."""
    shapes: dict[str, torch.Size] = field(default_factory=dict)
    plain: dict[str, Tensor] = field(default_factory=dict)
    held: dict[str, dict[int, int]] = field(default_factory=dict)
    """Bytes of a tensor by file: where it is whole, then its changes."""
    link: tuple[int, str] | None = None
    """The newest file and its checksum."""
    kept_from: int = 0

    @classmethod
    def of(cls, folder: Path, files: Iterable[File]) -> "Chain":
        """Return what counts in these files, the oldest first."""
        chain = cls(folder)
        for file in files:
            chain._note(file.round_index, file.tensors, file.manifest.get("gone", ()))
            chain.done(file.round_index, file.manifest["sha256"], file.size)
            chain.kept_from = file.first
        return chain

    def change(self, round_index: int, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what the file of a round holds, and what its manifest says of the others.

        `tensors` are the rows of tables that were written since the last one, and all others as they are now.
        """
        tables = tables_of(tensors)
        others = {name: t for name, t in tensors.items() if name.rpartition("|")[0] not in tables}
        gone = sorted(self.plain.keys() - others.keys())
        own = {f"{table}|{part}": tensors[f"{table}|{part}"] for table in tables for part in PARTS}
        for name, tensor in others.items():
            own |= self._changed(name, tensor)
        self._note(round_index, own, gone)
        older = sorted(self.sizes)
        while older and self._is_too_much(older, own):
            again = self._again(older.pop(0))
            self._note(round_index, again)
            own = _joined(own, again)
        self.sizes = {index: self.sizes[index] for index in older}
        self.live = {index: self.live[index] for index in (*older, round_index)}
        links = {"from": older[0] if older else round_index, "before": self.link if older else None, "gone": gone}
        return own, links

    def done(self, round_index: int, sha256: str, size: int) -> None:
        """Count a file that is there now."""
        self.sizes[round_index], self.link = size, (round_index, sha256)

    def unneeded(self, first: int) -> list[Path]:
        """Return what neither the checkpoint that begins with this file nor the one before it needs."""
        before, self.kept_from = self.kept_from, first
        found = sorted(self.folder.glob("round-*.json")) + sorted(self.folder.glob("round-*.safetensors"))
        return [path for path in found if path.stem[6:].isdecimal() and int(path.stem[6:]) < min(before, first)]

    def _is_too_much(self, older: Sequence[int], own: Mapping[str, Tensor]) -> bool:
        """Whether the oldest of these files has to go."""
        total = sum(self.sizes[index] for index in older) + _bytes(own.values())
        return not self.live.get(older[0]) or total > 2 * sum(self.live.values()) + SLACK

    def _changed(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """What is written of a tensor: nothing, few places and their values, or all."""
        before = self.plain.get(name)
        if before is None or before.dtype != tensor.dtype or before.shape != tensor.shape:
            return {name: tensor}
        if not len(places := (before != tensor).flatten().nonzero().flatten()):
            return {}
        parts = {f"{name}|at": places, f"{name}|to": tensor.flatten()[places]}
        is_sparse = (
            tensor.numel() >= SPARSE and sum(self.held[name].values()) + _bytes(parts.values()) < 2 * tensor.nbytes
        )
        return parts if is_sparse else {name: tensor}

    def _note(self, round_index: int, tensors: Mapping[str, Tensor], gone: Iterable[str] = ()) -> None:
        """Let what a file holds count from now on, and what it replaces no longer."""
        self.live.setdefault(round_index, 0)
        for name in gone:
            self._forget(name)
            self.plain.pop(name, None)
        for table in (tables := tables_of(tensors)):
            self._note_rows(round_index, table, tensors)
        sparse = sparse_of(tensors)
        for name, tensor in tensors.items():
            if (stem := name.rpartition("|")[0]) in tables or stem in sparse:
                continue
            self._forget(name)
            self.plain[name] = tensor.clone(memory_format=torch.contiguous_format)
            self._hold(name, round_index, tensor.nbytes)
        for name in self.plain.keys() & set(sparse):  # of others all is written again in a later file
            places, values = tensors[f"{name}|at"], tensors[f"{name}|to"]
            self.plain[name].view(-1)[places] = values
            self._hold(name, round_index, places.nbytes + values.nbytes)

    def _note_rows(self, round_index: int, table: str, tensors: Mapping[str, Tensor]) -> None:
        rows, groups = tensors[f"{table}|rows"], tensors[f"{table}|groups"]
        width, place = int(tensors[f"{table}|width"]), self.place.get(table, torch.zeros(0, dtype=torch.int32))
        if self.shapes.get(table, rows.shape[1:]) != rows.shape[1:]:  # of another LoRA rank: it is written whole
            self._uncount(place, self.shapes[table])
            place = place[:0]
        self.shapes[table] = rows.shape[1:]
        if len(place) < width:
            wider, was = torch.zeros(width, dtype=torch.int32), place.nonzero().flatten()
            wider[was] = place[was]
            place = wider
        self._uncount(place[groups], rows.shape[1:])
        place[groups] = round_index
        self.place[table] = place
        self.live[round_index] += rows.nbytes

    def _uncount(self, places: Tensor, shape: torch.Size) -> None:
        for index, n in zip(*(found.tolist() for found in places[places > 0].unique(return_counts=True)), strict=True):
            self.live[index] -= n * shape.numel() * 4

    def _hold(self, name: str, round_index: int, size: int) -> None:
        by_file = self.held.setdefault(name, {})
        by_file[round_index] = by_file.get(round_index, 0) + size
        self.live[round_index] += size

    def _forget(self, name: str) -> None:
        for index, size in self.held.pop(name, {}).items():
            self.live[index] -= size

    def _again(self, index: int) -> dict[str, Tensor]:
        """What still counts of a file."""
        found: dict[str, Tensor] = {name: self.plain[name] for name, by_file in self.held.items() if index in by_file}
        if not self.live.get(index):
            return found
        tensors = unpack(disk.own_bytes(self.folder / f"round-{index:06d}.safetensors"))
        for table in tables_of(tensors):
            rows, groups, rounds = (tensors[f"{table}|{part}"] for part in PARTS[:3])
            counts = self.place[table][groups] == index
            if bool(counts.any()):
                width = torch.tensor(len(self.place[table]))
                parts = zip(PARTS, (rows[counts], groups[counts], rounds[counts], width), strict=True)
                found |= {f"{table}|{part}": tensor for part, tensor in parts}
        return found


def tables_of(tensors: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the tables of which there is every part."""
    found = {name.rpartition("|")[0] for name in tensors if name.endswith("|rows")}
    return {table for table in found if all(f"{table}|{part}" in tensors for part in PARTS)}


def sparse_of(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of those tensors of which there are places and values."""
    return [stem for name in tensors if f"{(stem := name.removesuffix('|at'))}|to" in tensors and stem != name]


def read_files(folder: Path) -> list[File]:
    """Return the files of which a run's newest checkpoint consists, the oldest first; none before the first one.

    Raises ValueError where one is damaged or missing.
    """
    manifests = sorted((folder / "checkpoints").glob("round-*.json"))
    files = [_read(manifests[-1].with_suffix(""))] if manifests else []
    while files and files[0].round_index > files[-1].first:
        before, checksum = files[0].manifest["before"]
        stem, newest = folder / "checkpoints" / f"round-{before:06d}", files[-1].round_index
        file = _read(stem, newest)
        if file.manifest["sha256"] != checksum:
            raise damage(stem, f"it is not the one from which round-{newest:06d} goes on", newest)
        files.insert(0, file)
    return files


def _read(stem: Path, newest: int | None = None) -> File:
    """Read a file, of which round and checksum must be those of its manifest."""
    try:
        manifest = disk.parse_json(disk.own_bytes(stem.with_suffix(".json")))
        payload = disk.own_bytes(stem.with_suffix(".safetensors"))
        if hashlib.sha256(payload).hexdigest() != manifest["sha256"]:
            raise ValueError(f"its {len(payload)} bytes do not have the checksum they were written with")
        file = File(manifest["round_index"], unpack(payload), manifest, len(payload))
        if type(file.round_index) is not int or stem.name != f"round-{file.round_index:06d}" or file.round_index < 1:
            raise ValueError(f"its manifest is that of round {manifest['round_index']!r}")
        if manifest.get("inside", structure_of(file.tensors)) != structure_of(file.tensors):
            raise ValueError("its tensors have other names, types or shapes than it was written with")
        before = manifest.get("before")
        is_link = isinstance(before, list) and list(map(type, before)) == [int, str] and before[0] < file.round_index
        if file.first < file.round_index and not is_link:
            raise ValueError("its manifest does not say from which one it goes on")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise damage(stem, str(error), newest) from None
    return file


def damage(stem: Path, what: str, newest: int | None = None) -> ValueError:
    """Return the error for a checkpoint that is not as it was written; the newest one may be another that needs it."""
    way_out = f"Delete {stem.name}.json and {stem.name}.safetensors to resume from the checkpoint before it."
    if newest is not None:
        way_out = f"round-{newest:06d} goes on from it: put back a copy of it, or start the run anew."
    return ValueError(f"The checkpoint '{stem}.safetensors' is damaged: {what}. {way_out}")


def replayed(files: Sequence[File]) -> dict[str, Tensor]:
    """Return the tensors that files hold together, rows of tables by their numbers; raises ValueError as `read_files`.

    What only one file has of a table comes as it is.
    """
    found: dict[str, Tensor] = {}
    pieces: dict[str, list[Mapping[str, Tensor]]] = {}
    for file in files:
        tables = tables_of(file.tensors)
        for name in file.manifest.get("gone", ()):
            found.pop(name, None)
        for table in tables:
            pieces.setdefault(table, []).append({part: file.tensors[f"{table}|{part}"] for part in PARTS})
        sparse = sparse_of(file.tensors)
        for name, tensor in file.tensors.items():
            if (stem := name.rpartition("|")[0]) not in tables and stem not in sparse:
                found[name] = tensor
        for name in found.keys() & set(sparse):  # of others all is written again in a later file
            found[name] = found[name].clone()
            found[name].view(-1)[file.tensors[f"{name}|at"]] = file.tensors[f"{name}|to"]
    for table, parts in pieces.items():
        found |= {f"{table}|{part}": tensor for part, tensor in _overlaid(parts).items()}
    return found


def _overlaid(pieces: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """The last row of each number, ascending; rows before one of another shape do not count."""
    if len(pieces) == 1:
        return pieces[0]
    shape = pieces[-1]["rows"].shape[1:]
    start = max((i + 1 for i, piece in enumerate(pieces) if piece["rows"].shape[1:] != shape), default=0)
    rows, groups, rounds = (torch.cat([piece[part] for piece in pieces[start:]]) for part in PARTS[:3])
    order = groups.argsort(stable=True)
    is_last = groups[order].diff(append=torch.tensor([-1])) != 0
    chosen = order[is_last]
    return dict(zip(PARTS, (rows[chosen], groups[chosen], rounds[chosen], pieces[-1]["width"]), strict=True))


def _joined(own: dict[str, Tensor], again: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors, and what is written again beside them; rows by their numbers."""
    for table in (tables := tables_of(again)):
        of_both = [each for each in (own, again) if f"{table}|groups" in each]
        order = torch.cat([each[f"{table}|groups"] for each in of_both]).argsort()
        own |= {f"{table}|{part}": torch.cat([t[f"{table}|{part}"] for t in of_both])[order] for part in PARTS[:3]}
        own[f"{table}|width"] = again[f"{table}|width"]
    for name in [name for name in again if name.rpartition("|")[0] not in tables]:
        own.pop(f"{name}|at", None), own.pop(f"{name}|to", None)
        own[name] = again[name]
    return own


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
