"""The processes of a run, and how bytes move between them. All collectives live here."""

import atexit
import functools
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from fedsim.distributed.rollcall import Board, RollCall
from fedsim.errors import Fault
from fedsim.storage.wire import pack, unpack

TIMEOUT = 1800.0
"""Seconds for which workers wait for each other."""


class LostWorker(Fault):
    """A worker has ended or hangs; the first that waits in vain says it."""

    def __init__(self, who: str, late: float | None, is_echo: bool):
        self.is_echo = is_echo
        what = "has ended" if late is None else f"did not answer for {late:g} seconds (--timeout): it hangs"
        super().__init__(
            f"{who} {what}. The rounds that were finished are kept; look for what that worker said last, then continue "
            "with --resume."
        )


@dataclass(frozen=True)
class Workers:
    """The processes of this run, `index` is this one; they wait `timeout` s for each other.

    They are all of the launch, by `fabric.global_rank`, or inside `teams.side_by_side` those of a team.
    """

    index: int = 0
    count: int = 1
    group: dist.ProcessGroup | None = None
    calls: RollCall | None = None
    """Who is where, with several workers."""
    timeout: float = TIMEOUT
    launcher: int = 0
    """The process id of `fabric run`, 0 without it."""
    first: int = 0
    """The global rank of worker 0; the others' follow."""
    n_others: int = 0
    """Workers of other teams."""
    post: Callable[[str], None] | None = None
    """Puts this team's row on the board that teams share, where they share one."""

    @property
    def is_first(self) -> bool:
        """Whether this is worker 0, the server."""
        return self.index == 0

    @staticmethod
    def is_first_or_alone() -> bool:
        """Whether this process may look at the run folder: worker 0, or any before there is a process group."""
        if _team:
            return _team[-1].is_first
        return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0

    @staticmethod
    def n_launched() -> int:
        """Return how many workers the launch has."""
        return int(os.environ.get("WORLD_SIZE", 1))

    @classmethod
    def from_environment(cls, timeout: float = TIMEOUT) -> "Workers":
        """Return this process's team, all processes of the running process group, or one worker when there is none."""
        launcher = _launcher()
        if _team:
            return _team[-1]
        if not (dist.is_available() and dist.is_initialized()):
            return cls(launcher=launcher)
        index, count = dist.get_rank(), dist.get_world_size()
        return cls(index, count, *_group(dist.group.WORLD, timeout, 0, count), timeout, launcher)

    def split(self, sizes: Sequence[int], board: Board | None = None) -> "tuple[int, Workers]":
        """Return the number of this process's team, and its workers, where teams of these sizes follow one another.

        All workers must call it alike, since each takes part in making every team's group.
        """
        firsts = [sum(sizes[:team]) for team in range(len(sizes))]
        groups = [_group(dist.group.WORLD, self.timeout, *team) for team in zip(firsts, sizes, strict=True)]
        mine = max(team for team, first in enumerate(firsts) if first <= self.index)
        index, n_others = self.index - firsts[mine], self.count - sizes[mine]
        post = functools.partial(board.post, mine) if board else None
        own = Workers(index, sizes[mine], *groups[mine], self.timeout, self.launcher, firsts[mine], n_others, post)
        return mine, own

    def broadcast(self, payload: bytes | None) -> bytes:
        """Give worker 0's bytes to everyone."""
        self._check_in()
        if self.count == 1:
            assert payload is not None
            return payload
        with self._meeting():
            length = torch.tensor([len(payload) if payload is not None else 0])
            dist.broadcast(length, self.first, group=self.group)
            buffer = bytes_as_tensor(payload) if payload is not None else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(buffer, self.first, group=self.group)
        return buffer.numpy().tobytes()

    def scatter_tensors(self, of_worker: Sequence[Mapping[str, Tensor]] | None) -> Mapping[str, Tensor]:
        """Give every worker its own of worker 0's tensors."""
        self._check_in()
        if of_worker is not None and self.count == 1:
            return of_worker[0]
        payloads = [pack(tensors) for tensors in of_worker or ()]
        with self._meeting():
            lengths = torch.tensor(list(map(len, payloads)) or [0] * self.count)
            dist.broadcast(lengths, self.first, group=self.group)
            own = torch.empty(int(lengths.max()), dtype=torch.uint8)
            padded = [F.pad(bytes_as_tensor(payload), (0, len(own) - len(payload))) for payload in payloads]
            dist.scatter(own, padded or None, self.first, group=self.group)
        return unpack(own[: int(lengths[self.index])].numpy().tobytes())

    def gather(self, payload: bytes) -> list[bytes]:
        """Return every worker's bytes on worker 0, in worker order, and nothing elsewhere."""
        self._check_in()
        if self.count == 1:
            return [payload]
        with self._meeting():
            lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.count)]
            dist.all_gather(lengths, torch.tensor([len(payload)]), group=self.group)
            widest = int(max(lengths))
            buffer = torch.zeros(widest, dtype=torch.uint8)
            buffer[: len(payload)] = bytes_as_tensor(payload)
            buffers = [torch.empty(widest, dtype=torch.uint8) for _ in range(self.count)] if self.index == 0 else None
            dist.gather(buffer, buffers, self.first, group=self.group)
        return [b[: int(n)].numpy().tobytes() for b, n in zip(buffers or [], lengths, strict=False)]

    def all_numbers(self, number: int) -> list[int]:
        """Return every worker's number, on every worker."""
        gathered = self.gather(str(number).encode())
        payload = b" ".join(gathered) if self.is_first else None
        return [int(text) for text in self.broadcast(payload).split()]

    def check_same(self, loaded: Mapping[str, str]) -> None:
        """Raise a Fault on every worker where one has loaded other data or weights than worker 0."""
        gathered = [json.loads(each) for each in self.gather(json.dumps(loaded).encode())]
        differing = [
            f"worker {worker} has other {' and '.join(name for name in loaded if each[name] != loaded[name])}"
            for worker, each in enumerate(gathered, self.first)
            if each != dict(loaded)
        ]
        if differing := json.loads(self.broadcast(json.dumps(differing).encode() if self.is_first else None)):
            fault = Fault(
                f"Not every worker has loaded what worker {self.first} has: {'; '.join(differing)}. All must read the "
                "same files, and a script must draw what is random from a seed of its own."
            )
            fault.is_echo = not self.is_first
            raise fault

    def _check_in(self) -> None:
        """Let other teams know that this worker goes on, also where it has nobody to meet."""
        self.check_launcher()
        if self.count == 1 and self.calls:
            self.calls.arrive()

    def check_launcher(self) -> None:
        """End when the launcher was killed: nobody would end these workers, who would go on beside a resumed run."""
        if self.launcher and os.getppid() != self.launcher:
            fault = Fault("The launcher (fabric run) has ended. Finished rounds are kept; continue with --resume.")
            fault.is_echo = not (self.is_first and self.first == 0)
            raise fault

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        """Let everyone arrive before they exchange; who waits for `timeout` seconds in either ends the run."""
        assert self.calls
        self.calls.arrive()
        begun = time.monotonic()
        try:
            dist.monitored_barrier(self.group, timeout=timedelta(seconds=self.timeout), wait_all_ranks=True)
            begun = time.monotonic()
            yield
            self.calls.leave()
        except RuntimeError as error:
            if "allocate memory" in str(error):  # the fault of nobody else
                raise
            is_late = time.monotonic() - begun >= self.timeout
            raise (self._waited_in_vain(self.calls) if is_late else self._left_alone(self.calls, error)) from error

    def _waited_in_vain(self, calls: RollCall) -> LostWorker:
        """Somebody hangs."""
        missing = calls.missing()
        calls.end(missing)
        who = " and ".join(map(str, missing)) or f"{self.first} … {self.first + self.count - 1}, one of them,"
        return LostWorker(f"Worker {who}", self.timeout, is_echo=not calls.is_first_to_say())

    def _left_alone(self, calls: RollCall, error: RuntimeError) -> LostWorker:
        """Somebody has ended: worker 0 knows who, unless whoever it was has said why."""
        self.check_launcher()
        missing = re.search(r"Ranks? ([\d, ]+) failed to pass", str(error))
        one, last = self.first + 1, self.first + self.count - 1
        who = f"{one}" if self.count == 2 else f"{one} … {last}, one of them,"  # in the middle of a transfer
        if missing:
            who = ", ".join(str(self.first + int(index)) for index in missing[1].split(","))
        who = f"Worker {who if self.is_first else self.first}"
        return LostWorker(who, None, is_echo=not (self.is_first and calls.is_first_to_say()))


@functools.cache
def _launcher() -> int:
    """Return the process id of `fabric run` as it was when this process began its first run; 0 without it."""
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else 0


_team: list[Workers] = []
"""The team of this process, while there are several."""


@contextmanager
def working_as(team: Workers) -> Iterator[None]:
    """Inside, let the workers of any run be those of a team."""
    _team.append(team)
    try:
        yield
    finally:
        _team.pop()


@functools.cache
def _group(world: object, timeout: float, first: int, count: int) -> tuple[Any, RollCall]:
    """Return what all runs of these processes share: nothing would give a group's thread and sockets back.

    Every worker of the launch must call it, also where it is none of them.
    """
    atexit.unregister(_end_groups)
    atexit.register(_end_groups)
    ranks = list(range(first, first + count))
    group = dist.new_group(ranks, backend="gloo", timeout=timedelta(seconds=timeout))
    return group, RollCall(dist.get_rank(), ranks)


def _end_groups() -> None:
    """End the groups' threads while Python is there: one that lets go of a tensor after that aborts the process."""
    _group.cache_clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def check_timeout(timeout: float) -> None:
    """Raise ValueError for a time-out that is not a positive number of seconds."""
    if not 0 < timeout < 1e9:
        raise ValueError(f"timeout is {timeout}; it must be a positive number of seconds (--timeout).")


def bytes_as_tensor(payload: bytes) -> Tensor:
    """Return bytes as a tensor (len(payload),) of uint8."""
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8)
