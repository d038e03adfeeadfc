"""A recipe whose rounds last as long as a file says, so that a signal finds it at work on any machine.

The file is $PAUSE; it holds seconds to wait wherever a round is planned, and the first round that waits. A file of its
name and `.reached` says that one waits.
"""

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))

import quickstart

import fedsim


def pause(round_index: int) -> None:
    """Wait as the file says; it may be gone by now."""
    path = Path(os.environ.get("PAUSE", ""))
    seconds, first = path.read_text().split() if path.is_file() else (0, 0)
    if round_index >= int(first) and float(seconds):
        path.with_name(f"{path.name}.reached").touch()
        time.sleep(float(seconds))


@dataclass(frozen=True, kw_only=True)
class Paused(fedsim.FedIT):
    """FedIT that takes its time; the bits are FedIT's."""

    def plan(self, state: fedsim.ServerState, population: fedsim.Population) -> fedsim.Plan:
        """Wait, then plan."""
        pause(state.round_index)
        return super().plan(state, population)


@dataclass(frozen=True, kw_only=True)
class Recipe(quickstart.Quickstart):
    """FedIT, and Local for a comparison, on the embedded digits."""

    evaluate_every: int = 1
    """Rounds between evaluations of all seen clients."""
    fedit: Paused = field(default_factory=lambda: Paused(lora_rank=4))
    """What takes its time."""

    methods: tuple[str, ...] = ("fedit", "local")
    """Which of them to train."""

    def by_name(self) -> dict[str, fedsim.Method]:
        """Return the two methods."""
        return {"fedit": self.fedit, "local": fedsim.Local(lora_rank=4)}


if __name__ == "__main__":
    gpus, port = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("MASTER_PORT")
    print(f"gpus {gpus} port {port}", flush=True)
    fedsim.cli(Recipe, quickstart.main)
