"""Every recipe shows its help and runs two rounds on the embedded data."""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from conftest import ROOT, TinyAttention, tiny_data
from runs import SMALL, load, run

import fedsim
from fedsim.experiments import Experiment, run_experiment
from fedsim.models.sites import QUERY_VALUE

RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.py"))
LONG = ("compare_cifar100.py", "hilora_allocated.py", "hilora_domainnet.py", "hilora_cifar100.py")
HEAVY = (
    "datasets", "lightning", "matplotlib", "pandas", "peft", "scipy", "sklearn", "timm", "torchmetrics", "torchvision",
    "transformers", "triton", "wandb",
)  # fmt: skip
"""Libraries that a run needs sooner or later and that take long to load."""
SHOW_HELP = """
import runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        runpy.run_path(name, run_name="__main__")
    except SystemExit as stop:
        print("loaded", stop.code, name, *{module.partition(".")[0] for module in sys.modules})
"""
FEW = ("--rounds", "2", "--local.epochs", "1", "--threads", "1", "--cohort-size", "3")


def recipe_type(module):
    (found,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, fedsim.RunOptions) and value.__module__ == module.__name__
    ]
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_another_set_of_images_may_be_named(name):
    """Options that belong to a known set come with its name, lest another name leaves them as they are."""
    recipe = recipe_type(load(name))()
    if hasattr(source := getattr(recipe.data, "source", None), "stored_size"):
        other = replace(source, dataset="mnist").resolved()
        assert (other.hub, other.label_column, other.stored_size) == ("ylecun/mnist", "label", 28)


@pytest.mark.parametrize("name", RECIPES)
def test_it_shows_its_help(name, monkeypatch, capsys):
    module = load(name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        fedsim.cli(recipe_type(module), module.main)
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    wanted = (
        "--out",
        "--seed",
        "--rounds",
        "--resume",
        "--engine",
        "--cohort-size",
        "--threads",
        "--method",
        "--data.",
    )
    assert all(option in shown for option in (*wanted, "--model.", "--local."))


def test_the_help_of_a_recipe_loads_none_of_the_libraries_that_take_long():
    """In a process of its own: here the tests have loaded them all."""
    done = run([sys.executable, "-c", SHOW_HELP, *(f"recipes/{name}" for name in RECIPES)])
    loaded = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("loaded ")]
    assert [line[:2] for line in loaded] == [["0", f"recipes/{name}"] for name in RECIPES], done.stderr
    assert not {line[1]: found for line in loaded if (found := sorted({*line[2:]} & {*HEAVY}))}
    assert "torch" in loaded[0]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in RECIPES]
)
def test_it_runs_two_rounds_on_the_embedded_data(name, monkeypatch, capsys, tmp_path):
    module, out = load(name), tmp_path / "run"
    embedded = SMALL if name == "quickstart.py" else ("--embedded",)
    monkeypatch.setattr(sys, "argv", [name, *embedded, *FEW, "--out", str(out)])
    fedsim.cli(recipe_type(module), module.main)
    assert capsys.readouterr().out.splitlines()[-1].startswith("digest ")
    assert (out / "result.json").exists()


def test_what_the_release_ran_with_is_recorded_and_nothing_that_was_given_is_lost(monkeypatch, capsys, tmp_path):
    module, out = load("fedhello_cifar100.py"), tmp_path / "run"
    command = ["fedhello_cifar100.py", *FEW, "--embedded", "--released", "--method.strategy", "rgd", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    fedsim.cli(recipe_type(module), module.main)
    recorded = json.loads((out / "recipe.json").read_text())
    assert recorded["method"]["head_policy"] == "local"
    assert recorded["method"]["fim"]["measures"] == "fisher_logit"
    assert recorded["method"]["strategy"] == "rgd"
    assert (recorded["data"]["split"]["proxy_samples"], recorded["local"]["batch_size"]) == (1, 1024)
    other = module.FedHeLLoCifar100(local=fedsim.LocalTraining(batch_size=64))
    with pytest.raises(ValueError, match=r"--released sets local.batch_size to 1024, and 64 was given"):
        module.as_released(other)


@pytest.mark.parametrize(
    "name",
    ["quickstart.py", "ilora_text.py", "fedtreelora_instructions.py", "compare_cifar100.py", "fedhello_cifar100.py"],
)
def test_a_dry_run_prints_what_it_would_cost_and_writes_nothing(name, monkeypatch, capsys, tmp_path):
    module, out = load(name), tmp_path / "run"
    embedded = () if name == "quickstart.py" else ("--embedded",)
    monkeypatch.setattr(sys, "argv", [name, *FEW, *embedded, "--dry-run", "--out", str(out)])
    fedsim.cli(recipe_type(module), module.main)
    shown = capsys.readouterr().out
    assert "MB down" in shown
    assert "Nothing was trained or written." in shown
    assert (" ~ " in shown.split("All methods")[0]) == (name != "ilora_text.py"), (
        "its plan asks for nothing that is learnt"
    )
    assert not out.exists()


@dataclass(frozen=True)
class NewData:
    """Data of a kind that fedsim does not have."""

    def federations(self, model, dry_run):
        return self

    def federation(self, rng):
        return tiny_data()


@dataclass(frozen=True)
class NewModel:
    """A backbone for them."""

    sites: str = QUERY_VALUE
    adapter: Path | None = None

    def backbone(self, found, dry_run):
        assert isinstance(found, NewData)
        return TinyAttention()


@dataclass(frozen=True, kw_only=True)
class NewExperiment(Experiment):
    """A recipe for them."""

    method: fedsim.FedIT = field(default_factory=fedsim.FedIT)
    data: NewData = field(default_factory=NewData)
    model: NewModel = field(default_factory=NewModel)


def test_a_new_kind_of_data_needs_nothing_but_its_own_two_classes(tmp_path, capsys):
    run_experiment(NewExperiment(rounds=1, out=tmp_path / "run"))
    assert capsys.readouterr().out.splitlines()[-1].startswith("digest ")
