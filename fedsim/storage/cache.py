"""What is made once and then kept on disk, whoever needs it first and however many processes ask at once."""

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def cache_folder() -> Path:
    """Where things are kept: $FEDSIM_CACHE, else ~/.cache/fedsim."""
    return Path(os.environ.get("FEDSIM_CACHE") or Path.home() / ".cache" / "fedsim")


def cached_file(name: str, make: Callable[[Path], None], is_whole: Callable[[Path], bool] = Path.exists) -> Path:
    """Return the file `name` of the cache folder, which `make(path)` writes if it is not there and whole.

    Several processes may call this at once: one makes the file, the others wait. Raises ValueError when the folder
    cannot be written.
    """
    path = cache_folder() / name
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not (path.exists() and is_whole(path)):
                make(partial)
                partial.replace(path)
    except OSError as error:
        raise ValueError(f"'{path}' cannot be written: {error}. Name another folder by $FEDSIM_CACHE.") from error
    return path
