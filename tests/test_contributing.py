"""CONTRIBUTING.md is true: a method is one short file that touches no other, and everything works with it."""

import importlib.util
import inspect
import sys

import pytest
import torch
from conftest import ROOT, TinyAttention, tiny_data

import fedsim
from fedsim.experiments.dry_run import estimate
from fedsim.run_spec import RunSpec

METHOD = (ROOT / "docs/tutorials/201_own_method.py").read_text().split("# %%\n")[1].split("# %% [")[0].strip()
"""What a newcomer writes after reading CONTRIBUTING.md: the tutorial's own method."""


@pytest.fixture(scope="module")
def median(tmp_path_factory):
    path = tmp_path_factory.mktemp("methods") / "median.py"
    path.write_text(METHOD)
    spec = importlib.util.spec_from_file_location("median", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["median"] = module
    spec.loader.exec_module(module)
    return module


def test_a_method_is_one_file_of_at_most_sixty_lines_that_fedsim_does_not_know():
    assert len(METHOD.splitlines()) <= 60
    assert not hasattr(fedsim, "Median")


def test_it_runs_and_does_what_its_plan_says(median, tiny_run):
    result = tiny_run(method=median.Median(lora_rank=2), rounds=2)
    other = tiny_run("fedit", method=fedsim.FedIT(lora_rank=2), rounds=2)
    assert 0 < result.summary["bytes.up"] < other.summary["bytes.up"], "half of the adapter does not travel"
    merged = median.median_factors(torch.tensor([[[1.0]], [[2.0]], [[9.0]]]), torch.zeros(3, 1, 1), torch.ones(3))
    assert merged.B.item() == 2


def test_it_resumes_counts_and_agrees_on_both_engines(median, tiny_run):
    method = median.Median(lora_rank=2)
    results = [tiny_run(engine, method=method, engine=engine, rounds=2) for engine in ("batched", "sequential")]
    assert results[0].summary["global.mean"] == pytest.approx(results[1].summary["global.mean"], abs=0.05)
    assert tiny_run("batched", method=method, engine="batched", rounds=2, resume=True).digest == results[0].digest
    local = fedsim.LocalTraining(batch_size=4, learning_rate=1e-2)
    cost = estimate(RunSpec(method=method, backbone=TinyAttention(), data=tiny_data(), rounds=2, local=local))
    assert cost.up == results[0].summary["bytes.up"]


def test_it_is_compared_and_tuned_like_any_other(median, tmp_path):
    rates = {"local.learning_rate": (1e-3, 1e-2)}
    methods = {"median": median.Median(lora_rank=2), "fedit": fedsim.FedIT(lora_rank=2)}
    found = fedsim.compare(
        {name: fedsim.Grid(method, rates) for name, method in methods.items()},
        lambda seed: tiny_data(seed=seed),
        out=tmp_path / "run",
        seeds=(0, 1),
        backbone=TinyAttention(),
        rounds=1,
        threads=1,
    )
    assert set(found.differences) == set(methods)
    assert "| median |" in (tmp_path / "run" / "comparison.md").read_text()


def test_every_field_of_a_plan_is_in_the_guide():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    fields = [name for name in inspect.signature(fedsim.Plan).parameters if name not in ("population", "stage")]
    assert not [name for name in fields if f"`{name}" not in guide]
