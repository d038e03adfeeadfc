"""Distances between clients' subspaces after HiLoRA's root stage, with the groups that the data were made of.

    python benchmarks/cluster_distances.py

Trains the root tier of every federation and seed that is not in benchmarks/scores/cluster_distances/ yet, one file
each, so that what was stopped goes on. Images and ViT-Tiny are taken from $FEDSIM_DATA. The rules that choose the
number of clusters are compared on these files in seconds: benchmarks/cluster_rules.py. An IID control has its
federation's samples, dealt anew. Seeds begin at 100: those of other tables are smaller.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from results import ROOT
from settings import CIFAR, IMAGES, VIT, WEIGHTS
from torch import nn

import fedsim
from fedsim.data.builtin.digits import DigitStyles
from fedsim.data.federated import FederatedData
from fedsim.data.images.images import ImageOptions
from fedsim.data.protocols import Clients, Domains, Skew
from fedsim.models.backbones import TimmModel
from fedsim.models.digits_vit import DigitsViT
from fedsim.parts.directions import SubspaceClustering
from fedsim.randomness import generator, numpy_generator

FOLDER = ROOT / "benchmarks/scores/cluster_distances"
ROOT_ONLY = fedsim.HiLoRA(
    lora_rank=4,
    root_share=1 - 1e-6,
    cluster_share=1e-6,
    tolerance=0.0,
    clustering=SubspaceClustering(probe_steps=1),
)
DIGITS_TRAINING = fedsim.LocalTraining(epochs=2, batch_size=25, learning_rate=3e-3)
IMAGE_TRAINING = fedsim.LocalTraining(epochs=1, batch_size=10, learning_rate=5e-3)
Task = tuple[Callable[[int], FederatedData], nn.Module]
"""From a seed to the clients' data, and the backbone."""
FOUR = ("flowers", "fruit_and_vegetables", "vehicles_1", "large_carnivores")
EIGHT = (*FOUR, "fish", "household_furniture", "people", "trees")


@dataclass(frozen=True)
class Federation:
    """What is trained: data and backbone, how, for how many root rounds; `is_iid`: its samples dealt anew."""

    task: Callable[[], Task]
    local: fedsim.LocalTraining
    rounds: int
    seeds: range
    is_iid: bool = False


def image_task(data: Clients) -> Task:
    """Return images over clients, and ViT-Tiny."""
    model = TimmModel(name=VIT, weights=WEIGHTS)
    found = data.federations(model)
    return lambda seed: found.federation(numpy_generator(seed, "data")), model.backbone(found)


def digits(clients_per_style: int) -> Task:
    """Return digits in six styles and their backbone."""
    options = DigitStyles(clients_per_style=clients_per_style, test_per_client=10, unseen_fraction=0.0)
    model = DigitsViT().backbone(options)
    return lambda seed: options.federation(numpy_generator(seed, "data")), model


def cifar(superclasses: tuple[str, ...], n_clients: int) -> Task:
    """Return fine classes of some super-classes of CIFAR-100 by SC-Dir(3), and ViT-Tiny."""
    counts = {"top_classes": 5 * len(superclasses), "train_samples": 60 * n_clients, "test_samples": 4 * n_clients}
    source = ImageOptions(**CIFAR, domain=superclasses, **counts)  # type: ignore[arg-type]
    return image_task(Clients(source=source, split=Skew(partition="sc-dir", n_clients=n_clients, unseen_fraction=0.0)))


def pacs() -> Task:
    """Return PACS with three clients a domain, and ViT-Tiny."""
    where = {"dataset": "pacs", "path": Path("pacs_1680_128px"), "domain_column": "domain"}
    source = ImageOptions(**IMAGES, **where, train_samples=720, test_samples=48)  # type: ignore[arg-type]
    return image_task(Clients(source=source, split=Domains(clients_per_domain=3, unseen_fraction=0.0)))


FEDERATIONS = {
    "digits-24": Federation(lambda: digits(4), DIGITS_TRAINING, 4, range(100, 103)),
    "digits-24-early": Federation(lambda: digits(4), DIGITS_TRAINING, 2, range(100, 103)),
    "digits-24-early-iid": Federation(lambda: digits(4), DIGITS_TRAINING, 2, range(100, 103), is_iid=True),
    "digits-18-early": Federation(lambda: digits(3), DIGITS_TRAINING, 2, range(100, 103)),
    "digits-18-early-iid": Federation(lambda: digits(3), DIGITS_TRAINING, 2, range(100, 103), is_iid=True),
    "pacs-12": Federation(pacs, IMAGE_TRAINING, 2, range(100, 103)),
    "pacs-12-iid": Federation(pacs, IMAGE_TRAINING, 2, range(100, 103), is_iid=True),
    "cifar-16": Federation(lambda: cifar(FOUR, 16), IMAGE_TRAINING, 2, range(100, 103)),
    "cifar-24": Federation(lambda: cifar(EIGHT, 24), IMAGE_TRAINING, 2, range(100, 102)),
    "cifar-16-iid": Federation(lambda: cifar(FOUR, 16), IMAGE_TRAINING, 2, range(100, 103), is_iid=True),
}


@dataclass(frozen=True)
class Cell:
    """One federation of one seed: distances (n, n), and each client's group; none in an IID control."""

    federation: str
    seed: int
    distances: torch.Tensor
    groups: list[int]


def dealt_anew(data: FederatedData, seed: int) -> FederatedData:
    """Return the same training samples, dealt to as many clients at random and in equal numbers."""
    rows = torch.cat(list(data.train))
    order = torch.randperm(len(rows), generator=generator(seed, "iid"))
    return replace(data, train=list(rows[order].tensor_split(data.n_clients)), domains=None, domain_names=())


def trained(federation: Federation, task: Task, seed: int) -> dict[str, object]:
    """Train the root tier and return the clients' groups and the upper triangle of their distances, row by row."""
    federated, backbone = task
    data = federated(seed)
    groups = [0] * data.n_clients if federation.is_iid else list(data.domains or ())
    data = dealt_anew(data, seed) if federation.is_iid else data
    common = {"rounds": federation.rounds, "evaluate_every": federation.rounds, "local": federation.local}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        fedsim.simulate(method=ROOT_ONLY, data=data, backbone=backbone, seed=seed, out=out, **common)
        events = map(json.loads, (out / "events.jsonl").read_text().splitlines())
        (found,) = [torch.tensor(event["distances"]) for event in events if "distances" in event]
    above = torch.triu_indices(len(found), len(found), 1)
    return {"groups": groups, "distances": [round(d, 6) for d in found[above[0], above[1]].tolist()]}


def cell_path(name: str, seed: int) -> Path:
    """Return where a cell is kept."""
    return FOLDER / f"{name}-{seed}.json"


def read(name: str, seed: int) -> Cell:
    """Return a cell that has been trained."""
    kept = json.loads(cell_path(name, seed).read_text())
    n = len(kept["groups"])
    distances = torch.zeros(n, n, dtype=torch.float64)
    distances[*torch.triu_indices(n, n, 1)] = torch.tensor(kept["distances"], dtype=torch.float64)
    return Cell(name, seed, distances + distances.mT, kept["groups"])


def main(only: tuple[str, ...] = tuple(FEDERATIONS)) -> None:
    """Train what is missing of these federations, first seeds first."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    tasks: dict[str, Task] = {}
    for seed in sorted({seed for name in only for seed in FEDERATIONS[name].seeds}):
        for name in only:
            path, federation = cell_path(name, seed), FEDERATIONS[name]
            if seed in federation.seeds and not path.exists():
                tasks[name] = tasks.get(name) or federation.task()
                text = json.dumps(trained(federation, tasks[name], seed))
                path.with_suffix(".tmp").write_text(text)
                path.with_suffix(".tmp").replace(path)
                print(f"{name}, seed {seed}: kept", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
