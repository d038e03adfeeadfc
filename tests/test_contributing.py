"""CONTRIBUTING.md is true: a method is one short file that touches no other, and everything works with it."""

import importlib.util
import inspect
import re
import shlex
import sys

import pytest
import torch
from conftest import ROOT, TinyAttention, tiny_data
from runs import load

import fedsim
from fedsim.experiments import command_line
from fedsim.experiments.dry_run import estimate
from fedsim.run_spec import RunSpec
from fedsim.storage.run_folder import load_checkpoint

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


GUIDE = (ROOT / "CONTRIBUTING.md").read_text().split("### Three examples")[1].split("\n## ")[0]
PROX, DEEP = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The two examples as a module of one's own, in the folder where one works."""
    (tmp_path / "my_module.py").write_text(f"{PROX}\n\n{DEEP}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("my_module")
    sys.modules.pop("my_module")


def own_lines(code: str, start: str) -> list[str]:
    """The lines from a definition on that are no blank ones."""
    return [line for line in code[code.index(start) :].splitlines() if line.strip()]


def test_fedprox_is_at_most_fifteen_lines_and_sharing_deep_layers_three():
    assert len(own_lines(PROX, "def held_back")) <= 15
    assert len(own_lines(DEEP, "def plan")) - 1 == 3


@pytest.mark.parametrize("engine", ["batched", "sequential"])
def test_the_examples_fedprox_is_fedsims(example, tiny_run, engine):
    runs = {
        name: load_checkpoint(tiny_run(name, method=method, engine=engine, rounds=2).folder)[1]
        for name, method in {
            "mine": example.MyFedProx(lora_rank=2, mu=3.0),
            "ours": fedsim.FedProx(lora_rank=2, mu=3.0),
            "without": fedsim.FedIT(lora_rank=2),
        }.items()
    }
    rows = [key for key in runs["ours"] if key.endswith("|rows")]
    for key in rows:
        torch.testing.assert_close(runs["mine"][key], runs["ours"][key], rtol=1e-4, atol=1e-5)
    assert any((runs["mine"][key] - runs["without"][key]).abs().max() > 1e-3 for key in rows)


def test_a_server_optimiser_is_an_option_of_the_example_too(example, tiny_run, monkeypatch):
    (command,) = re.findall(r"```bash\npython (.*?)\n```", GUIDE)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    recipe = command_line.parse(load("quickstart.py").Quickstart)
    assert (recipe.server.optimizer, recipe.server.rate) == ("adam", 0.01)
    small = example.MyFedProx(lora_rank=2)
    stepped, plain = (
        tiny_run(str(n), method=small, rounds=2, **o) for n, o in enumerate(({"server": recipe.server}, {}))
    )
    assert stepped.digest != plain.digest
    assert stepped.summary["bytes.down"] == plain.summary["bytes.down"]


def test_the_example_that_shares_deep_layers_sends_half_of_the_adapter(example, tiny_run):
    """Two depths: of the lower one every client has copies of its own, of the upper one there is one."""
    options = {"lora_rank": 2, "head_policy": "local"}
    found = tiny_run("deep", method=example.ShareDeep(**options))
    assert found.summary["bytes.up"] == tiny_run("all", method=fedsim.FedIT(**options)).summary["bytes.up"] / 2
    state = load_checkpoint(found.folder)[1]
    copies = {
        key: len(rows) for key, rows in state.items() if key.startswith("bank|adapter/") and key.endswith("|rows")
    }
    assert {key.split(".")[1]: n for key, n in copies.items()} == {"0": 5, "1": 1}
    assert tiny_run("deep", method=example.ShareDeep(**options), resume=True).digest == found.digest


def test_every_field_of_a_plan_is_in_the_guide():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    fields = [name for name in inspect.signature(fedsim.Plan).parameters if name not in ("population", "stage")]
    assert not [name for name in fields if f"`{name}" not in guide]
