"""A run's curves as events of TensorBoard and, when asked for, a run of Weights & Biases, through Fabric's loggers.

The table beside them is metrics.csv. Weights & Biases gets the same numbers by round, and the recipe; a run that is
resumed goes on under the id by which Weights & Biases named the folder of its first part.
"""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any, Literal

from fedsim.storage.run_folder import RunFolder, read_recipe

Wandb = Literal["offline", "online"]
"""Keep the run for `wandb sync`, or send it at once."""
_open: dict[str, Any] = {}
"""Runs of Weights & Biases that a simulation of this process began, by id; one that failed has left its own here."""
STEP = "trainer/global_step"
"""What Lightning calls the round in Weights & Biases."""


def check_wandb(mode: Wandb | None) -> None:
    """Raise ValueError where Weights & Biases is asked for and cannot be used."""
    if mode is None:
        return
    if importlib.util.find_spec("wandb") is None:
        hint = "run `pip install -e '.[wandb]'` in fedsim's checkout"
        raise ValueError(f"wandb is '{mode}' and the package is not installed; {hint} (--wandb).")
    if mode == "online":
        import wandb

        if not wandb.login(prompt=False, verify=False):
            raise ValueError("wandb is 'online' and nobody is logged in; run `wandb login`, or say --wandb offline.")


class Curves:
    """Where numbers by round go beside the tables."""

    def __init__(self, folder: RunFolder, mode: Wandb | None = None):
        from lightning.fabric.loggers import Logger, TensorBoardLogger

        self.loggers: list[Logger] = [TensorBoardLogger(root_dir=folder.path, name="tensorboard", version="")]
        self.wandb_run: Any = None
        if mode is not None:
            from lightning.pytorch.loggers import WandbLogger

            self.wandb_run = _wandb_run(folder, mode)
            self.loggers.append(WandbLogger(experiment=self.wandb_run))
            self.loggers[-1].log_hyperparams(read_recipe(folder.path))

    def log(self, values: Mapping[str, float], number: int) -> None:
        """Add the numbers of a round; rounds are counted from 1."""
        for logger in self.loggers:
            logger.log_metrics(dict(values), step=number)

    def finish(self) -> None:
        """End the curves of a run that is complete."""
        for logger in self.loggers:
            logger.finalize("success")
        if self.wandb_run is not None:
            _open.pop(self.wandb_run.id).finish()


def _wandb_run(folder: RunFolder, mode: Wandb) -> Any:
    """A run of Weights & Biases of this run folder's own, whatever else this process has open."""
    import wandb

    parts = sorted(folder.path.glob("wandb/*run-*-*"))  # offline-run-<time>-<id>, run-<time>-<id>
    run_id = parts[0].name.rpartition("-")[2] if parts else None
    if run_id in _open:  # the same run again after a failure: an id can be in use only once
        _open.pop(run_id).finish(exit_code=1)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "fedsim"),
        name=str(folder.path),
        id=run_id,
        dir=folder.path,
        mode=mode,
        resume="allow",  # offline it is the id alone that joins the parts
        reinit="create_new",
        settings=wandb.Settings(console="off", quiet=True),
    )
    _open[run.id] = run
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    return run
