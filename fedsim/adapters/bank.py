"""The bank holds every copy of every slot, on worker 0, in CPU memory. It knows groups, not methods.

Each slot is one stack (G, *shape): row g is the copy that group g holds. A row that was never written is the slot's
initial value, so a population of a million clients costs nothing until clients have trained. Stacks are allocated
uninitialised: the operating system hands out pages only for rows that are written. With a `folder` the stacks of
several groups lie in files there (see mapped_rows.py), where they may be larger than memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fedsim.adapters.layout import Slot, fit_rank, parse_slot
from fedsim.adapters.mapped_rows import MappedRows

NEVER = -1
"""The round in which a row was written that never was; also the group of a client that has none yet."""


@dataclass
class Bank:
    """Copies of slots by group.

    `initial` maps a slot to its (*shape) starting value, `rows` to its stack (G, *shape), and `written` to the round
    in which each row was last written (G,), `NEVER` where it was not.
    """

    initial: dict[Slot, Tensor]
    rows: dict[Slot, Tensor | MappedRows] = field(default_factory=dict)
    written: dict[Slot, Tensor] = field(default_factory=dict)
    fresh: dict[Slot, set[int]] = field(default_factory=dict)
    """The groups of each slot that were written since the last `changes`."""
    folder: Path | None = None
    """Where stacks lie that memory need not hold; None keeps all in memory."""

    def read(self, slot: Slot, groups: Tensor) -> Tensor:
        """Return the copies (len(groups), *shape) of these groups; a group without a copy has the initial value."""
        has_copy = self.written_in(slot, groups) != NEVER
        if len(groups) and bool(has_copy.all()):
            return self.rows[slot][groups]
        values = self.initial[slot].expand(len(groups), *self.initial[slot].shape).clone()
        if bool(has_copy.any()):
            values[has_copy] = self.rows[slot][groups[has_copy]]
        return values

    def written_in(self, slot: Slot, groups: Tensor) -> Tensor:
        """Return the round in which each of these groups' copies was last written, `NEVER` for the initial value."""
        if slot not in self.rows:
            return torch.full_like(groups, NEVER)
        rounds = self.written[slot]
        is_held = (groups != NEVER) & (groups < len(rounds))
        return torch.where(is_held, rounds[groups.clamp(0, len(rounds) - 1)], NEVER)

    def write(self, slot: Slot, values: Mapping[int, Tensor], n_groups: int, round_index: int) -> None:
        """Store new copies `{group: (*shape)}` of a slot that `n_groups` groups hold; a smaller stack is widened.

        A copy may have another LoRA rank than the initial value where there is only one group, written as a whole.
        """
        shape = next(iter(values.values())).shape if values else self.initial[slot].shape
        if slot in self.rows and self.rows[slot].shape[1:] != shape:
            assert len(values) == len(self.rows[slot]), "all copies of a slot have one shape"
            del self.rows[slot], self.written[slot]
        if slot not in self.rows or len(self.rows[slot]) < n_groups:
            self._widen(slot, n_groups, shape)
        self.fresh.setdefault(slot, set()).update(values)
        for group, value in values.items():
            self.rows[slot][group] = value
            self.written[slot][group] = round_index

    def _widen(self, slot: Slot, n_groups: int, shape: torch.Size) -> None:
        written, before = torch.full((n_groups,), NEVER), self.rows.get(slot)
        if before is not None:
            written[: len(before)] = self.written[slot]
        had = (written != NEVER).nonzero().flatten()
        if isinstance(before, MappedRows):
            before.widen(n_groups)
        else:
            on_disk = self.folder if n_groups > 1 else None
            rows = torch.empty(n_groups, *shape) if on_disk is None else MappedRows(on_disk, n_groups, shape)
            if before is not None:
                rows[had] = before[had]
            self.rows[slot] = rows
        self.written[slot] = written

    def state_tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold: for each slot its written rows, their groups, rounds and the width."""
        return {name: make() for name, make in self.state_parts().items()}

    def state_parts(self) -> dict[str, Callable[[], Tensor]]:
        """Return the same as functions that make them: all of them at once may be more than memory holds."""
        return self._parts({slot: (self.written[slot] != NEVER).nonzero().flatten() for slot in sorted(self.rows)})

    def changes(self) -> dict[str, Tensor]:
        """Return the same of those rows only that were written since this was last asked for."""
        held = {slot: torch.tensor(sorted(groups)) for slot, groups in sorted(self.fresh.items()) if groups}
        self.fresh.clear()
        return {name: make() for name, make in self._parts(held).items()}

    def _parts(self, held: Mapping[Slot, Tensor]) -> dict[str, Callable[[], Tensor]]:
        parts: dict[str, Callable[[], Tensor]] = {}
        for slot, groups in held.items():
            parts[f"{slot}|rows"] = partial(self.rows[slot].__getitem__, groups)
            parts[f"{slot}|groups"] = groups.clone
            parts[f"{slot}|rounds"] = partial(self.written[slot].__getitem__, groups)
            parts[f"{slot}|width"] = partial(torch.tensor, len(self.rows[slot]))
        return parts

    def load_state_tensors(
        self, tensors: Mapping[str, Tensor], round_index: int | None = None, widest: int | None = None
    ) -> None:
        """Restore what `state_tensors` returned before this round.

        Raises ValueError when a slot is not one of this bank's, or when its tensors do not fit together: a part that
        is missing, of another type or not finite, groups or rounds out of range, a stack of more than `widest` groups.
        """
        self.rows.clear()
        self.written.clear()
        self.fresh.clear()
        for name in dict.fromkeys(key.rpartition("|")[0] for key in tensors):
            parts = {part: tensors[key] for part in PARTS if (key := f"{name}|{part}") in tensors}
            if problem := _problem(parts, round_index, widest):
                raise ValueError(f"The checkpoint's slot '{name}' is damaged: {problem}.")
            slot, rows = parse_slot(name), parts["rows"]
            if slot not in self.initial or not _differ_in_rank_only(slot, rows, self.initial[slot]):
                raise ValueError(f"The checkpoint holds slot '{name}' {tuple(rows.shape[1:])}, which this run has not.")
            width, is_usual = int(parts["width"]), rows.shape[1:] == self.initial[slot].shape
            if not is_usual and len(rows) != width:
                raise ValueError(f"The checkpoint's slot '{name}' is damaged: of another LoRA rank, it must be whole.")
            self._widen(slot, width, rows.shape[1:])
            self.rows[slot][parts["groups"]] = rows
            self.written[slot][parts["groups"]] = parts["rounds"]


PARTS = ("rows", "groups", "rounds", "width")
"""What a checkpoint holds of a slot."""


def _problem(parts: Mapping[str, Tensor], round_index: int | None, widest: int | None) -> str:
    """Why a slot's tensors are none that `Bank.state_tensors` returns; "" where they may be."""
    if missing := [part for part in PARTS if part not in parts]:
        return f"it has no {' and no '.join(missing)}"
    rows, groups, rounds, width = (parts[part] for part in PARTS)
    types = [torch.float32, torch.int64, torch.int64, torch.int64]
    shapes = [rows.shape[1:], groups.shape, rounds.shape, width.shape]
    if [tensor.dtype for tensor in (rows, groups, rounds, width)] != types:
        return f"its {', '.join(PARTS)} must be float32 and int64"
    if rows.ndim < 1 or shapes[1:] != [rows.shape[:1], rows.shape[:1], ()]:
        return f"its {', '.join(PARTS)} are of unequal lengths"
    n_groups = int(width)
    if n_groups < 1 or (widest is not None and n_groups > widest):
        return f"it is {n_groups} groups wide" + (f", and 1 … {widest} are possible" if widest else "")
    if len(groups) and (
        int(groups.min()) < 0 or int(groups.max()) >= n_groups or len(set(groups.tolist())) < len(groups)
    ):
        return f"its groups are not distinct and in 0 … {n_groups - 1}"
    if len(rounds) and (int(rounds.min()) < 0 or (round_index is not None and int(rounds.max()) >= round_index)):
        return "it was written in rounds that have not been"
    return "" if bool(rows.isfinite().all()) else "it holds numbers that are not finite"


def _differ_in_rank_only(slot: Slot, rows: Tensor, value: Tensor) -> bool:
    if rows.ndim != value.ndim + 1:
        return False
    return fit_rank(rows, slot.factor, 0).shape[1:] == fit_rank(value, slot.factor, 0).shape
