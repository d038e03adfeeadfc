"""Who of the workers is missing: how far each has come, on a board that the launcher keeps."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

GRACE = 4.0
"""Seconds in which a worker that waits in vain may say so, and in which the board must answer."""
KILL_WAIT = 2
"""Seconds that a worker that hangs is left, so that the launcher hears first of the one that says so."""


class Board:
    """A row of text from each of the teams that work side by side, which any worker may read."""

    def __init__(self, calls: "RollCall", n_teams: int) -> None:
        self.store, self.rows = dist.PrefixStore(f"rows/{calls.waits}", calls.store), [""] * n_teams

    def post(self, team: int, row: str) -> None:
        """Let all read a team's row."""
        with suppress(RuntimeError):  # where the launcher is gone, which is noticed elsewhere
            self.store.set(str(team), row)

    def read(self) -> list[str]:
        """Return the latest row of every team, empty where it has none."""
        with suppress(RuntimeError):
            for team in range(len(self.rows)):
                if self.store.check([str(team)]):
                    self.rows[team] = self.store.get(str(team)).decode()
        return self.rows


class RollCall:
    """Every worker writes down how often it has arrived at a meeting and has left one.

    It is the launcher's memory that is written to, so it is there whichever worker hangs; where worker 0 keeps it (no
    `fabric run`), a board that does not answer is worker 0's hanging.
    """

    def __init__(self, index: int, members: Sequence[int]) -> None:
        self.index, self.members, self.meeting, self.waits = index, members, 0, 0
        store = dist.distributed_c10d._get_default_store().clone()
        store.set_timeout(timedelta(seconds=GRACE))
        self.store = dist.PrefixStore("fedsim", store)
        self.store.set(f"process/{index}", f"{os.getpid()} {socket.gethostname()}")
        self._write(0)

    @property
    def name(self) -> str:
        """What tells the meetings of these workers from those of others."""
        return f"{self.members[0]}-{self.members[-1]}"

    def arrive(self) -> None:
        """Say that this worker is at the next meeting."""
        self.meeting += 1
        self._write(2 * self.meeting)

    def leave(self) -> None:
        """Say that this worker has done with the meeting, or waits in it in vain."""
        self._write(2 * self.meeting + 1)

    def missing(self) -> list[int]:
        """Return who is furthest behind; whoever waits for others has `GRACE` seconds to get beyond them."""
        self.leave()
        end = time.monotonic() + GRACE
        try:
            while len(behind := self._furthest_behind()) > 1 and time.monotonic() < end:
                time.sleep(0.1)
            return behind
        except (RuntimeError, ValueError):  # whoever keeps the board hangs or has ended
            return [0] if self.index else []

    def is_first_to_say(self) -> bool:
        """Whether nobody has yet said why this run ends; from now on somebody has."""
        try:
            return self.store.add("said", 1) == 1
        except RuntimeError:
            return True

    def end(self, workers: list[int]) -> None:
        """Kill those of them that are on this machine, a little later: the launcher would wait for them for long."""
        try:
            here = list(self._processes(workers).values())
        except RuntimeError:
            return
        if here:
            command = f'sleep {KILL_WAIT}; kill -{signal.SIGKILL.value} "$@"'
            subprocess.Popen(["sh", "-c", command, "sh", *here], start_new_session=True, stderr=subprocess.DEVNULL)

    def ended(self) -> list[int]:
        """Return whose processes, of those on this machine, are gone."""
        return [worker for worker, process in self._processes(self.members).items() if not _is_there(int(process))]

    def _processes(self, workers: Sequence[int]) -> dict[int, str]:
        """The process ids of those of them that are on this machine."""
        said = {worker: self.store.get(f"process/{worker}").decode().split(maxsplit=1) for worker in workers}
        return {worker: process for worker, (process, host) in said.items() if host == socket.gethostname()}

    def _write(self, steps: int) -> None:
        with suppress(RuntimeError):  # where the launcher is gone, which is noticed elsewhere
            self.store.set(f"{self.name}/steps/{self.index}", str(steps))
            self.store.add("beats", 1)

    def _furthest_behind(self) -> list[int]:
        steps = {worker: int(self.store.get(f"{self.name}/steps/{worker}")) for worker in self.members}
        return [worker for worker, each in steps.items() if each == min(steps.values()) and each < steps[self.index]]


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True
