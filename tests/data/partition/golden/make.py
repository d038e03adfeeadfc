"""Writes flower_dirichlet.json: what the DirichletPartitioner of flwr-datasets deals. Run once, where it is installed:

pip install --target /tmp/flwr --no-deps flwr-datasets==0.6.1
PYTHONPATH=/tmp/flwr python tests/data/partition/golden/make.py
"""

import json
import sys
import types
from pathlib import Path

import datasets
import numpy as np

# The partitioners' package imports plotting and downloading, which need more packages and are not used here.
for name in ("flwr_datasets", "flwr_datasets.partitioner"):
    package = types.ModuleType(name)
    package.__path__ = [str(Path(folder) / name.replace(".", "/")) for folder in sys.path]
    sys.modules[name] = package
from flwr_datasets.partitioner.dirichlet_partitioner import DirichletPartitioner  # noqa: E402

CASES = (
    {"n_clients": 3, "alpha": 0.3, "min_train": 10, "seed": 42, "n_classes": 5, "n_samples": 400},
    {"n_clients": 10, "alpha": 0.5, "min_train": 10, "seed": 7, "n_classes": 10, "n_samples": 1000},
    {"n_clients": 6, "alpha": 0.3, "min_train": 20, "seed": 0, "n_classes": 4, "n_samples": 600},
    {"n_clients": 20, "alpha": 1.0, "min_train": 0, "seed": 1, "n_classes": 3, "n_samples": 100},
)


def targets_of(case: dict) -> np.ndarray:
    """Unequal classes in random order; the second to last class has no sample."""
    rng = np.random.default_rng(case["seed"] + 1000)
    labels = rng.choice(case["n_classes"], size=case["n_samples"], p=rng.dirichlet(np.full(case["n_classes"], 5.0)))
    labels[labels == case["n_classes"] - 2] = 0
    return labels


def tables_of(case: dict) -> list[list[int]]:
    targets = targets_of(case)
    partitioner = DirichletPartitioner(
        num_partitions=case["n_clients"],
        partition_by="label",
        alpha=case["alpha"],
        min_partition_size=case["min_train"],
        self_balancing=False,
        shuffle=False,
        seed=case["seed"],
    )
    partitioner.dataset = datasets.Dataset.from_dict({"label": targets.tolist(), "row": range(len(targets))})
    return [partitioner.load_partition(client)["row"][:] for client in range(case["n_clients"])]


if __name__ == "__main__":
    cases = [case | {"targets": targets_of(case).tolist(), "tables": tables_of(case)} for case in CASES]
    path = Path(__file__).with_name("flower_dirichlet.json")
    path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
