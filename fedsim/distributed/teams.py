"""Workers in teams, each with a worker 0 of its own: a team runs something while the others run something else.

Whoever has done with a team's work waits for the others as long as anybody goes on. What ends one team ends all.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

from fedsim.distributed.rollcall import Board, RollCall
from fedsim.distributed.signals import Stopped, leave
from fedsim.distributed.workers import LostWorker, Workers, working_as
from fedsim.errors import Fault

LOOK = 1.0
"""Seconds between two looks at the other teams."""


@contextmanager
def side_by_side(workers: Workers, sizes: Sequence[int], board: Board | None = None) -> Iterator[int]:
    """Inside, this process's workers are its team, one of these sizes; yields the team's number.

    What teams are at is written on the `board` where there is one, in all workers or in none.
    On leaving all teams meet. Raises `Stopped` in all where one was stopped, and a Fault where one has failed.
    """
    if len(sizes) == 1:
        yield 0
        return
    assert workers.calls
    number, team = workers.split(sizes, board)
    workers.calls.waits += 1
    is_stopped = False
    try:
        with working_as(team):
            yield number
    except Stopped:
        is_stopped = True
    except BaseException:
        with suppress(RuntimeError):  # whoever keeps the board has ended
            workers.calls.store.set(f"wait/{workers.calls.waits}/failed", "1")
        raise
    wait_for_all(workers, workers.calls)
    if any(workers.all_numbers(int(is_stopped))):
        leave()


def wait_for_all(workers: Workers, calls: RollCall) -> None:
    """Return when every worker is at the wait that `calls` counts.

    Raises a Fault where another team has failed, or a worker of this machine has ended, and where nobody at all goes on
    for the workers' time-out.
    """
    store, place = calls.store, f"wait/{calls.waits}"
    beats, since = 0, time.monotonic()
    try:
        store.set(f"{place}/{calls.index}", "1")
        if store.add(place, 1) == workers.count:
            store.set(f"{place}/all", "1")
        while not _comes(calls, f"{place}/all"):
            workers.check_launcher()
            if store.check([f"{place}/failed"]):
                raise _echo("Another team has failed.")
            if lost := calls.ended():
                raise LostWorker(_named(lost), None, is_echo=not calls.is_first_to_say())
            if (now := store.add("beats", 0)) != beats:
                beats, since = now, time.monotonic()
            elif time.monotonic() - since > workers.timeout:
                missing = [w for w in calls.members if not store.check([f"{place}/{w}"])]
                calls.end(missing)
                raise LostWorker(_named(missing), workers.timeout, is_echo=not calls.is_first_to_say())
    except RuntimeError as error:
        if isinstance(error, Fault):
            raise
        workers.check_launcher()
        raise _echo("Whoever keeps the board has ended.") from error


def _comes(calls: RollCall, key: str) -> bool:
    """Whether something is on the board, or comes there soon."""
    with suppress(RuntimeError):
        calls.store.wait([key], timedelta(seconds=LOOK))
        return True
    return False


def _named(workers: Sequence[int]) -> str:
    return f"Worker {' and '.join(map(str, workers))}"


def _echo(message: str) -> Fault:
    fault = Fault(f"{message} The rounds that were finished are kept; continue with --resume.")
    fault.is_echo = True
    return fault
