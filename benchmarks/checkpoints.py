"""What a checkpoint of many private adapters costs: bytes of a round's file, and of all files against the state.

    python benchmarks/checkpoints.py --write

Local with a ViT-B: each client holds a private adapter of LoRA rank 8. Pictures of 32 pixels make training quick, and
adapters are as large as with 224. Nothing is downloaded. Exit code 1 when a target is missed.
"""

import contextlib
import io
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import results
import timm
import torch
import tyro

import fedsim

MB = 1e6
LARGEST_ROUND, LARGEST_SHARE = 15.0, 2.05
"""The targets: megabytes that a round writes, and bytes of all files over those of what counts."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much to measure; the defaults are what the targets are for."""

    clients: int = 1_000
    """Clients, each with a private adapter."""
    cohort: int = 10
    """Clients in a round."""
    rounds: int = 400
    """Rounds; after 400 with the default cohort, 98 % of the clients have trained."""
    threads: int = 2
    """CPU threads."""
    write: bool = False
    """Put the table into RESULTS.md."""


@dataclass
class Watched:
    """A method that looks at the checkpoints' files before each round."""

    method: fedsim.Method
    folder: Path
    seen: dict[str, int] = field(default_factory=dict)
    on_disk: int = 0
    """The most bytes of files that were there at a time."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def look(self) -> None:
        """Note every file and how large it is."""
        now = {path.name: path.stat().st_size for path in self.folder.glob("checkpoints/round-*.safetensors")}
        self.seen |= now
        self.on_disk = max(self.on_disk, sum(now.values()))

    def plan(self, state: fedsim.ServerState, population: fedsim.Population) -> fedsim.Plan:
        """The method's own plan."""
        self.look()
        return self.method.plan(state, population)


def federation(n_clients: int) -> fedsim.FederatedData:
    """Return clients with one picture to train on and one to be tested on, of 100 that they share."""
    random = torch.Generator().manual_seed(0)
    return fedsim.FederatedData(
        inputs=torch.randint(256, (100, 3, 32, 32), generator=random, dtype=torch.uint8),
        targets=torch.randint(10, (100,), generator=random),
        train=torch.randint(100, (n_clients, 1), generator=random),
        test=torch.randint(100, (n_clients, 1), generator=random),
        class_names=[str(label) for label in range(10)],
        transform=lambda images: images.float() / 255,
    )


def main(options: Options) -> int:
    """Run it and print the table."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        method = Watched(fedsim.Local(lora_rank=8), Path(folder) / "run")
        with contextlib.redirect_stdout(io.StringIO()):
            fedsim.simulate(
                method=method,
                backbone=timm.create_model("vit_base_patch16_224", pretrained=False, img_size=32, num_classes=10),
                data=federation(options.clients),
                rounds=options.rounds,
                cohort_size=options.cohort,
                local=fedsim.LocalTraining(batch_size=1),
                out=method.folder,
                threads=options.threads,
                evaluate_every=options.rounds,
                evaluate_clients=options.cohort,
            )
        method.look()
    sizes = [size / MB for _, size in sorted(method.seen.items())]
    adapter = median(sizes[: len(sizes) // 10 or 1]) / options.cohort
    state = adapter * options.clients
    early, late = median(sizes[: len(sizes) // 4]), median(sizes[-len(sizes) // 4 :])
    columns = ["clients", "an adapter, MB", "all adapters, MB", "a round, first quarter, MB"]
    columns += ["last quarter, MB", "largest, MB", "all files at most, MB"]
    values = [adapter, state, early, late, max(sizes), method.on_disk / MB]
    rows = [[f"{options.clients:,}", *(f"{value:,.2f}" for value in values)]]
    results.show(f"Checkpoints, cohort {options.cohort}, {options.rounds} rounds", columns, rows)
    missed = [f"a round writes {late:.1f} MB"] if late > LARGEST_ROUND else []
    missed += [f"files take {values[-1] / state:.2f} times the state"] if values[-1] > LARGEST_SHARE * state else []
    print("\n".join(missed) or "all targets are met")
    if options.write:
        text = f"{results.markdown(columns, rows)}\n\n{results.provenance(options.threads)}"
        results.write("checkpoints", text, "Checkpoints of private adapters")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
