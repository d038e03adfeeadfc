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

METHOD = '''"""Median: the median of factors instead of their mean; the last depth never leaves its client."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fedsim.adapters.layout import HeadPolicy, Slot
from fedsim.parts.aggregation import Merged
from fedsim.parts.sharing import alone, one_copy
from fedsim.plan import Plan
from fedsim.round import Population, ServerState


def median_factors(B: Tensor, A: Tensor, weights: Tensor) -> Merged:
    """Return the median of B (n, O, R) and that of A (n, R, I)."""
    return Merged(B.median(0).values, A.median(0).values, 0.0)


@dataclass(frozen=True, kw_only=True)
class Median:
    """One robust adapter for all."""

    lora_rank: int = 8
    """Width R of the adapter."""
    lora_alpha: float | None = None
    """α of the scale α/R; None means α = R."""
    head_policy: HeadPolicy = "tier"
    """Who trains the classifier."""

    tiers = ("adapter",)

    def plan(self, state: ServerState, population: Population) -> Plan:
        """FedAvg, but for who shares what and how it is merged."""
        last = max(depth for site, depth in state.depths.items() if site != "head")
        own = {site for site, depth in state.depths.items() if depth == last and site != "head"}
        return Plan(population=population, sharing=partial(self._sharing, own), combine=median_factors)

    def _sharing(self, own: set[str], slot: Slot, population: Population) -> Tensor:
        return alone(population) if slot.site in own else one_copy(self.head_policy, slot, population)
'''
"""What a newcomer writes after reading CONTRIBUTING.md."""


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
