"""Writing that loses nothing: whole or not at all, by one run at a time; a full disk or a damaged file is named.

A run folder may come from somebody else: its files are read and written as what they are, never through a link.
"""

import errno
import fcntl
import functools
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fedsim.errors import Fault

LOCK_WAIT = 15.0
"""Seconds that a run waits for its folder: workers whose launcher was killed may need a moment to notice."""
DEEPEST = 64
"""Levels of lists and objects in a JSON that is read; a run writes fewer than ten."""
FOREIGN = ("wandb",)
"""Folders of a run that another program keeps, with links of its own."""


class DiskFull(Fault):
    """There is no space left, or no quota."""

    def __init__(self, path: Path):
        there = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
        free = shutil.disk_usage(there).free
        super().__init__(
            f"The disk is full: '{path}' could not be written ({free / 2**20:.1f} MiB are free there). What was "
            "finished before is kept whole. Free some space, then continue with --resume."
        )


class FolderInUse(Fault):
    """Another run writes to the folder."""

    def __init__(self, folder: Path):
        super().__init__(
            f"Another run is still writing to '{folder}'. Wait for its end or end it, then continue with --resume."
        )


def check_is_new(folder: Path) -> None:
    """Raise ValueError when the folder holds a run or other files, or cannot be written.

    What a killed start may leave there, hidden files and what a job writes to `logs` do not count.
    """
    if folder == Path():
        raise ValueError("out is the current folder, or empty; name a folder for the run, such as runs/first (--out).")
    try:
        (folder / "checkpoints" / ".round-000000.safetensors.partial").stat()  # the longest name that there will be
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"The run cannot be kept in '{str(folder)[:200]}': {why} (--out).") from None
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written to" if there.is_dir() else "is no folder"
        raise ValueError(f"The run cannot be kept in '{folder}': '{there}' {why} (--out).")
    if (folder / "recipe.json").exists():
        raise ValueError(
            f"The folder '{folder}' already holds a run. Continue it with --resume {folder}, or choose another --out."
        )
    names = sorted(path.name for path in folder.iterdir()) if there == folder else []
    if others := [name for name in names if name not in ("checkpoints", "logs") and not name.startswith(".")]:
        raise ValueError(
            f"The folder '{folder}' holds other files, {others[:5]}; choose another one, or none yet (--out)."
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the error of whatever finds the disk full into one that names this file or folder."""
    try:
        yield
    except Exception as error:
        if isinstance(error, Fault) or not _is_full(error):
            raise
        raise DiskFull(path) from error


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder for this process, however it may end; raises `FolderInUse` when another one holds it."""
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file = open_own(folder / ".lock", "a")
    except OSError as error:  # what nobody could know without trying
        raise Fault(f"The run folder '{folder}' cannot be made: {error.strerror} (--out).") from error
    with file:  # closing it gives the lock back, and so does the end of this process
        _lock(file, folder)
        yield


def _lock(file: IO[str], folder: Path) -> None:
    """Lock a file for this process; raises `FolderInUse` after a while. Without locks on a file system it is said once.

    A library's lock would leave a mark there instead, which outlives a process that is killed.
    """
    end = time.monotonic() + LOCK_WAIT
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise FolderInUse(folder) from None
            time.sleep(0.1)
        except OSError as error:
            _say_no_locks(str(folder.absolute().parent), error.strerror or str(error))
            return


@functools.cache
def _say_no_locks(place: str, why: str) -> None:
    """Once for each place."""
    print(
        f"No lock can be had in '{place}' ({why}). Let one run write to a folder at a time; a second one is noticed "
        "by its checkpoints only.",
        file=sys.stderr,
        flush=True,
    )


def write_atomically(path: Path, payload: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)  # a leftover, or a link that somebody put there
        with writing(path), partial.open("xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)  # on a full disk the more so
        raise
    partial.replace(path)


def open_own(path: Path, mode: str = "rb", **options: Any) -> IO[Any]:
    """Open a file of a run; raises ValueError for a link, a pipe, a device or a folder in its place."""
    return open(path, mode, opener=_own, **options)


def _own(name: str, flags: int) -> int:
    try:
        found = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)  # a pipe would let us wait for ever
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise ValueError(_no_file(name)) from None
        raise
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise ValueError(_no_file(name))
    return found


def _no_file(path: Path | str) -> str:
    return f"'{path}' is a link, a pipe, a device or a folder, where a run has a file. Put the file itself there."


def own_bytes(path: Path) -> bytes:
    """Return what a file of a run holds; raises ValueError as `open_own` does."""
    with open_own(path) as file:
        found: bytes = file.read()
    return found


def check_own_folder(folder: Path) -> None:
    """Raise ValueError where a folder that is to be written to is a link, which may lead anywhere."""
    if folder.is_symlink():
        raise ValueError(f"'{folder}' is a link; what is written there would end elsewhere. Remove the link.")


def check_own_files(folder: Path) -> None:
    """Raise ValueError where a run folder, or a folder in it, holds a link, a pipe or a device."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if not stat.S_ISREG(mode := path.lstat().st_mode) and not stat.S_ISDIR(mode):
                raise ValueError(
                    f"'{path}' is a link, a pipe or a device; a run has only files and folders, and would write "
                    "elsewhere through it. Remove it, or put the file itself there."
                )
        folders[:] = [name for name in folders if name not in FOREIGN]


def to_disk(path: Path) -> None:
    """Let what was appended to a file outlive a crash of the machine."""
    if path.exists():
        with open_own(path) as file:
            os.fsync(file.fileno())


def append(path: Path, text: str) -> None:
    """Add whole lines to a file; a last one that is torn all the same has no end, and is dropped on resuming."""
    with writing(path), open_own(path, "a", newline="") as file:
        file.write(text)


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text says; raises ValueError for one that is none, or nested more than `DEEPEST` deep."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} deep") from None
    level, depth = [value], 0
    while level := [entry for entry in level if isinstance(entry, dict | list)]:
        if (depth := depth + 1) > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
        level = [inner for entry in level for inner in (entry.values() if isinstance(entry, dict) else entry)]
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file of a run, which was written whole; raises ValueError where it has been damaged since."""
    try:
        value = parse_json(own_bytes(path))
        if not isinstance(value, dict):
            raise ValueError("it holds no object")
    except ValueError as error:
        raise ValueError(f"'{path}' is damaged: {error}. Put back a copy of it, or start the run anew.") from None
    return value


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error: loggers wrap it in errors of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
