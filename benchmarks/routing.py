"""Where HiLoRA places unseen clients: by what its members' directions have in common, or by the cluster's own adapter.

    python benchmarks/routing.py --write

Trains every federation and seed once for each reading of U_{c,j} (`--method.clustering.routing`). A client is placed
well where most clients of its cluster are of its own group. Seeds begin at 100: those of other tables are smaller.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import tyro
from cluster_distances import DIGITS_TRAINING, EIGHT, IMAGE_TRAINING, Task, image_task
from results import markdown, provenance
from results import write as write_section
from settings import CIFAR

import fedsim
from fedsim.data.builtin.digits import DigitStyles
from fedsim.data.images.images import ImageOptions
from fedsim.data.protocols import Clients, Skew
from fedsim.models.digits_vit import DigitsViT
from fedsim.parts.directions import SubspaceClustering
from fedsim.randomness import numpy_generator

ROUNDS = 10
METHOD = fedsim.HiLoRA(lora_rank=4, root_share=0.4, cluster_share=0.3, tolerance=0.0)
READINGS = {
    "members": SubspaceClustering(),
    "adapter": SubspaceClustering(routing="adapter"),
}


def digits() -> Task:
    """Return 30 clients of digits in six styles, six of them unseen, and their backbone."""
    options = DigitStyles(clients_per_style=5, train_per_client=100, test_per_client=10, unseen_fraction=0.2)
    return lambda seed: options.federation(numpy_generator(seed, "data")), DigitsViT().backbone(options)


def cifar() -> Task:
    """Return 30 clients of CIFAR-100's classes by super-class, six of them unseen, and ViT-Tiny."""
    counts = {"top_classes": 40, "train_samples": 1800, "test_samples": 120}
    source = ImageOptions(**CIFAR, domain=EIGHT, **counts)  # type: ignore[arg-type]
    return image_task(Clients(source=source, split=Skew(partition="sc-dir", n_clients=30, unseen_fraction=0.2)))


FEDERATIONS: dict[str, tuple[Callable[[], Task], fedsim.LocalTraining, range]] = {
    "digits in six styles": (digits, DIGITS_TRAINING, range(100, 108)),
    "CIFAR-100, SC-Dir(3)": (cifar, IMAGE_TRAINING, range(100, 104)),
}


def placed(events: list[dict], domains: tuple[int, ...]) -> tuple[int, int, int]:
    """Return clusters, unseen clients that are placed well, and all unseen clients."""
    (clustered,) = [event for event in events if "labels" in event]
    (probed,) = [event for event in events if "routed" in event]
    groups: dict[int, Counter[int]] = {}
    for client, cluster in zip(clustered["clients"], clustered["labels"], strict=True):
        groups.setdefault(cluster, Counter())[domains[client]] += 1
    routed = [(domains[int(client)], cluster) for client, cluster in probed["routed"].items()]
    good = sum(groups[cluster][group] * 2 > groups[cluster].total() for group, cluster in routed)
    return clustered["n_clusters"], good, len(routed)


def measured(name: str, limit: int | None) -> Iterator[list[str]]:
    """Yield a line for each reading: clusters, and how many of all seeds' unseen clients are placed well."""
    make, local, seeds = FEDERATIONS[name]
    federation, backbone = make()
    for reading, clustering in READINGS.items():
        found = []
        for seed in seeds[:limit]:
            data = federation(seed)
            method = replace(METHOD, clustering=clustering)
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                common = {"rounds": ROUNDS, "evaluate_every": ROUNDS, "local": local, "seed": seed, "out": out}
                fedsim.simulate(method=method, data=data, backbone=backbone, **common)
                events = list(map(json.loads, (out / "events.jsonl").read_text().splitlines()))
            found.append(placed(events, data.domains or ()))
            print(f"{name}, {reading}, seed {seed}: {found[-1]}", flush=True)
        clusters, good, of = zip(*found, strict=True)
        yield [name, reading, f"{sum(clusters) / len(clusters):.1f}", f"{sum(good)} of {sum(of)}"]


def main(seeds: int | None = None, write: bool = False) -> None:
    """Compare the readings on so many seeds of each federation (all) and print it, into RESULTS.md too with --write."""
    rows = [row for name in FEDERATIONS for row in measured(name, seeds)]
    text = f"{provenance(1)}\n\n{markdown(('federation', 'routing', 'clusters', 'unseen clients placed well'), rows)}"
    print(text)
    if write:
        write_section("routing", text, "HiLoRA: where unseen clients go")


if __name__ == "__main__":
    tyro.cli(main)
