"""Statistics of a split against SciPy's, and that every run writes and draws its own."""

import json

import numpy as np
import pytest
import torch
from conftest import tiny_data
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from fedsim.data.federated import FederatedData
from fedsim.report.figures import VARIABLE
from fedsim.report.split import describe_split
from fedsim.report.split_figures import draw_split


def data(n_clients: int = 5, **changes: object) -> FederatedData:
    random = torch.Generator().manual_seed(0)
    tables = list(torch.randperm(200, generator=random).split([70, 50, 40, 30, 10])) if n_clients == 5 else []
    tables = tables or list(torch.arange(200).split(200 // n_clients))
    targets = torch.randint(4, (200,), generator=random)
    arguments = {"class_names": list("abcd"), "unseen": frozenset({1})} | changes
    return FederatedData(torch.zeros(200, 3), arguments.pop("targets", targets), tables, tables, **arguments)


def test_entropy_and_divergence_are_those_of_scipy():
    split = data()
    counts = np.stack([np.bincount(split.targets[rows], minlength=4) for rows in split.train])
    found = describe_split(split)["train"]
    whole = counts.sum(0)
    assert found["entropy"]["mean"] == pytest.approx(entropy(counts, axis=1).mean(), abs=1e-6)
    divergence = jensenshannon(counts.T, whole[:, None]) ** 2  # SciPy gives its square root
    assert found["divergence"]["mean"] == pytest.approx(divergence.mean(), abs=1e-6)
    assert found["divergence"]["max"] == pytest.approx(divergence.max(), abs=1e-6)
    assert found["size"] == {"min": 10, "mean": 40, "max": 70}
    assert found["classes_per_client"] == {"min": (counts > 0).sum(1).min(), "mean": 4, "max": 4}


def test_clients_without_samples_and_data_without_classes_are_described_and_drawn():
    empty = torch.empty(0, dtype=torch.long)
    some = FederatedData(torch.zeros(4, 1), torch.tensor([0, 1, 0, 1]), [torch.arange(4), empty], [empty, empty], "ab")
    described = describe_split(some)
    assert described["train"]["entropy"]["mean"] == pytest.approx(np.log(2), abs=1e-6)
    assert "entropy" not in described["test"]
    assert len(draw_split(some).axes) == 3, "sizes, classes and a scale"


def test_targets_that_are_tokens_have_sizes_only():
    from fedsim.data.instructions.generation_task import Generation

    tokens = torch.tensor([-100, 7, 0]).repeat(200, 1)
    task = Generation(decode=lambda ids: "", stop=0, max_new_tokens=2, beams=1)
    split = data(targets=tokens, class_names=(), task=task)
    described = describe_split(split)
    assert described["classes"] is None
    assert set(described["train"]) == {"samples", "size"}
    assert len(draw_split(split).axes) == 1


@pytest.mark.parametrize("n_domains", [2, 10])
def test_domains_are_named_and_lie_side_by_side(n_domains: int):
    names = tuple(f"domain {k}" for k in range(n_domains))
    figure = draw_split(data(n_clients=40, domains=tuple(k % n_domains for k in range(40)), domain_names=names))
    assert {text.get_text() for text in figure.axes[0].texts} == set(names)
    sizes = figure.axes[1].images[0].get_array()
    assert sizes.shape == (4, 40)


def test_a_run_writes_its_split_and_draws_it(tiny_run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "1")
    folder = tiny_run(rounds=1).folder
    assert json.loads((folder / "split.json").read_text()) == json.loads(json.dumps(describe_split(tiny_data())))
    assert (folder / "split.svg").read_text().startswith("<?xml")
    assert (folder / "split.pdf").read_bytes().startswith(b"%PDF")


def test_pictures_can_be_switched_off(tiny_run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "0")
    folder = tiny_run(rounds=1).folder
    assert (folder / "split.json").exists()
    assert not (folder / "split.svg").exists()
