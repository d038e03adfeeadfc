"""The parts of a run once more (data, backbone, method), without training: its script goes as far as `simulate`.

A run folder brings no code. What is run is the script that started the run, where it lies, and not one that lies in
the run folder itself, but where the user names it.
"""

import runpy
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from fedsim.run_folder import check_same_recipe, read_environment, read_recipe

_replayed: ContextVar[Path | None] = ContextVar("replayed", default=None)


class Found(Exception):
    """Ends a replayed script: `setting` is what was looked for."""

    def __init__(self, setting: Any):
        super().__init__("The parts of the run are found; nothing is trained.")
        self.setting = setting


def replayed_folder() -> Path | None:
    """Return the folder of the run whose parts are asked for, None while a script simulates."""
    return _replayed.get()


def offer(setting: Any, recipe: Mapping[str, Any]) -> bool:
    """Say whether a script is only replayed, so that nothing may be simulated; raises `Found` at the right run."""
    folder = _replayed.get()
    if folder is None:
        return False
    try:
        check_same_recipe(folder, recipe)
    except ValueError:
        return True
    raise Found(setting)


def setting_of(folder: Path, script: Path | None = None) -> Any:
    """Return the `Setting` of a recorded run from the script that started it, or from `script` where that has moved.

    Raises ValueError when the script is not there or does not start this run any more.
    """
    read_recipe(folder)
    started = read_environment(folder)
    script = script or _recorded_script(folder, str(started.get("script") or ""))
    if not script.is_file():
        raise ValueError(
            f"The script '{script}' that started '{folder}' is not there; say where it is by --script FILE."
        )
    arguments, token = sys.argv, _replayed.set(folder.absolute())
    sys.argv = [str(script), *map(str, started.get("arguments") or ())]
    sys.path.insert(0, str(script.parent))
    problem = ""
    try:
        runpy.run_path(str(script), run_name="__main__")
    except Found as found:
        return found.setting
    except (ValueError, SystemExit):  # which say what is wrong
        raise
    except Exception as error:  # most likely of a script that makes something of a result that is None
        problem = f" ({type(error).__name__}: {error})"
    finally:
        sys.argv = arguments
        sys.path.remove(str(script.parent))
        _replayed.reset(token)
    raise ValueError(
        f"The script '{script}' does not start the run in '{folder}'{problem}; give the one that does by --script FILE."
    )


def _recorded_script(folder: Path, recorded: str) -> Path:
    script = Path(recorded)
    if not recorded or not script.is_absolute() or script.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"'{folder}' does not name the script that started it{f' (but {recorded})' if recorded else ''}; say where "
            "it is by --script FILE, or call fedsim.export_adapter with the arguments of fedsim.simulate."
        )
    return script
