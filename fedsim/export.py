"""Adapters that leave the program: a client's, a cluster's or the shared model as a PEFT folder, or merged weights.

    python -m fedsim.export runs/first --client 17 --to client-17
    python -m fedsim.export runs/first --cluster 2 --to cluster-2 --merged
    python -m fedsim.export runs/first --to shared

All is read from the run folder; no script is run and nothing is trained.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fedsim.experiments.command_line import fail
from fedsim.experiments.export import export_adapter


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a model of a run as a PEFT adapter folder with a model card."""

    run: tyro.conf.Positional[Path]
    """Run folder, finished or with a checkpoint."""
    to: Path
    """Folder to write; new or empty."""
    client: int | None = None
    """The model of this client: all tiers that it holds, private ones included."""
    cluster: int | None = None
    """The model of this cluster: the tiers that its clients have in common."""
    shared: Annotated[bool, tyro.conf.arg(name="global"), tyro.conf.FlagCreatePairsOff] = False
    """The tiers that all clients have in common (the default)."""
    merged: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write the backbone's own weights with the adapters merged into them, instead of a PEFT adapter."""
    backbone: Path | None = None
    """With --merged: a safetensors file with the plain backbone's weights, where they cannot be built again."""


def main() -> None:
    """Export from the command line; a ValueError is one message and exit code 2."""
    options = tyro.cli(Options, description=__doc__)
    try:
        if options.shared and (options.client is not None or options.cluster is not None):
            raise ValueError("--global and --client or --cluster name two models; choose one.")
        fields = ("client", "cluster", "merged", "backbone")
        export_adapter(options.run, options.to, **{name: getattr(options, name) for name in fields})
        print(f"wrote {options.to}", file=sys.stderr)
    except ValueError as error:
        fail(str(error))


if __name__ == "__main__":
    main()
