"""Asked to stop: a signal becomes a request, on which all workers agree between rounds, and an exit code of its own.

SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 let the round be finished; its checkpoint is what the run goes on from. A round is
the unit since nothing inside one is kept: whoever cannot wait loses this round and no other.
"""

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from fedsim.distributed.workers import Workers

STOPPED = 75
"""Exit code of a run that stopped because it was asked to: EX_TEMPFAIL of sysexits.h, "try again later"."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ONE_REQUEST = 1.0
"""Seconds within which signals count as one: a batch system tells the launcher, which tells the workers again."""
INTERRUPTED = 128 + signal.SIGINT
LAUNCHER = ("accelerator", "strategy", "devices", "num-nodes", "precision")
"""Options of `fabric run` as it leaves them in the environment of its workers, LT_NUM_NODES and so on."""

DEFAULT_PORT = "29400"
"""The port that `fabric run` takes if none is said."""
STANDALONE = "PET_STANDALONE"
"""Where torch's launcher is told by 1 that there is one machine: it then takes a free port whatever it was given."""


class Stopped(SystemExit):
    """The run was asked to stop and did so between two rounds. Nobody who does not catch it sees a traceback."""


@dataclass
class StopRequest:
    """What this process was asked for: the first signal (0: nothing) and when it came."""

    signal: int = 0
    time: float = 0.0
    before: dict[int, Any] = field(default_factory=dict)
    """The handlers that are put back in the end."""

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal: remember the first; leave at once when Ctrl-C comes after another or is followed by one."""
        now = time.monotonic()
        if not self.signal:
            self.signal, self.time = number, now
            if int(os.environ.get("RANK", 0)) == 0:
                again = ", Ctrl-C again to leave at once" if number == signal.SIGINT else ""
                _say(f"{name(number)}: stopping when this round is finished{again}")
        elif signal.SIGINT in (self.signal, number) and now - self.time > ONE_REQUEST:
            os._exit(INTERRUPTED)  # no clean-up: another worker may hang; checkpoints are whole or not there


_request = StopRequest()


@contextmanager
def handle_signals() -> Iterator[None]:
    """While inside, take the three signals as the request to stop; an outer `handle_signals` keeps them."""
    is_main = threading.current_thread() is threading.main_thread()  # others may not set handlers
    if not is_main or signal.getsignal(signal.SIGTERM) == _request.note:
        yield
        return
    _request.signal, _request.before = 0, {number: signal.signal(number, _request.note) for number in SIGNALS}
    try:
        yield
    finally:
        _request.signal = 0
        for number, handler in _request.before.items():
            signal.signal(number, handler)


def stop_if_asked(workers: Workers, done: int, rounds: int, title: str = "") -> None:
    """Raise `Stopped` on every worker when any of them was asked to stop. All must call this at the same place.

    `title` says which run it is, where several run side by side.
    """
    number = max(workers.all_numbers(_request.signal))
    if not number:
        return
    if workers.is_first:
        which = f"{title} " if workers.n_others else ""
        _say(f"{name(number)}: {which}stopped after {done} of {rounds} rounds; the run can be resumed")
    leave()


def leave() -> NoReturn:
    """Raise `Stopped`."""
    if is_launched():  # it ends all workers when the first has left, and worker 0 may have something to say yet
        _request.before = dict.fromkeys(SIGNALS, signal.SIG_IGN)
    raise Stopped(STOPPED)


def resume_command(folder: Path) -> str:
    """Return the command that continues the run of a recipe in this folder as it was started, but for --node-rank."""
    if not is_launched():
        return shlex.join(["python", sys.argv[0], "--resume", str(folder)])
    said = {option: os.environ.get("LT_" + option.upper().replace("-", "_")) for option in LAUNCHER}
    said |= {"main-address": os.environ.get("MASTER_ADDR"), "main-port": os.environ.get("MASTER_PORT")}
    if said["num-nodes"] == "1":
        del said["num-nodes"], said["main-address"]
    is_standalone = os.environ.get(STANDALONE) == "1"
    if is_standalone or said["main-port"] == DEFAULT_PORT:
        del said["main-port"]
    options = [part for option, value in said.items() if value for part in (f"--{option}", value)]
    chosen = [f"{STANDALONE}=1"] if is_standalone else []
    return shlex.join([*chosen, "fabric", "run", sys.argv[0], *options, "--resume", str(folder)])


def is_launched() -> bool:
    """Whether `fabric run` started this process."""
    return os.environ.get("LT_CLI_USED") == "1"


def name(number: int) -> str:
    """Return what a signal is called."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _say(text: str) -> None:
    """Write a line to standard error; safe in a signal handler, where print may be in the middle of another line."""
    os.write(2, f"{text}\n".encode())
