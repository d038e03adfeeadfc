"""Methods by name from the command line: every one that fedsim has, and classes of one's own."""

import json
import sys

import pytest
from runs import load

import fedsim
from fedsim import methods
from fedsim.experiments import command_line
from fedsim.experiments.any_method import methods_of, named

COMPARE = load("compare.py")
FEW = ("--rounds", "1", "--local.epochs", "1", "--threads", "1", "--cohort-size", "2", "--embedded")
OWN = """
from dataclasses import dataclass, replace

import fedsim


@dataclass(frozen=True, kw_only=True)
class Slow:
    lora_rank: int = 2
    lora_alpha: float | None = None
    head_policy: str = "global"
    share: float = 0.5
    tiers = ("adapter",)

    def plan(self, state, population):
        plan = fedsim.FedIT(lora_rank=self.lora_rank, head_policy=self.head_policy).plan(state, population)
        return replace(plan, rate=lambda slot, rate: self.share * rate)
"""


def compare(monkeypatch, out, *options):
    monkeypatch.setattr(sys, "argv", ["compare.py", *options, "--out", str(out)])
    fedsim.cli(COMPARE.recipe_type, COMPARE.main)


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A module with a method of one's own, in the folder where one works."""
    (tmp_path / "my_methods.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("my_methods", None)


@pytest.mark.parametrize("name", methods.__all__)
def test_every_method_has_its_name(name):
    assert named([name.lower()]) == named([name]) == {name.lower(): getattr(methods, name)}


def test_methods_of_ones_own_and_two_of_a_kind_run_with_options_of_their_own_and_are_resumed(
    own, monkeypatch, tmp_path, capsys
):
    words = ("--methods", "fedit", "mine=my_methods:Slow", "held=fedprox", "--mine.share", "0.25", "--held.mu", "3")
    out = tmp_path / "run"
    compare(monkeypatch, out, *words, *FEW, "--fedit.lora-rank", "2", "--held.lora-rank", "2")
    recipe, shown = json.loads((out / "recipe.json").read_text()), capsys.readouterr().out
    assert (recipe["mine"]["share"], recipe["held"]["mu"], recipe["fedit"]["lora_rank"]) == (0.25, 3, 2)
    assert all(label in shown for label in ("fedit", "mine", "held"))
    monkeypatch.setattr(sys, "argv", ["compare.py", "--resume", str(out), *words[:4]])
    fedsim.cli(COMPARE.recipe_type, COMPARE.main)
    assert capsys.readouterr().out.splitlines()[-1] == shown.splitlines()[-1], "the digest"
    sys.modules.pop("my_methods")
    monkeypatch.setattr(sys, "argv", ["compare.py", "--resume", str(out)])
    with pytest.raises(ValueError, match=r"not fedsim's, mine=my_methods:Slow, .* only where they are named again"):
        COMPARE.recipe_type()
    assert "my_methods" not in sys.modules, "a folder that one was given must not choose what is imported"


def test_one_head_policy_is_for_all_and_a_methods_own_is_refused(monkeypatch):
    words = ["compare.py", "--methods", "fedit", "low=fedit", "--low.head-policy", "local"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(ValueError, match=r"--low.head-policy is not used: --head-policy is that of all methods"):
        methods_of(command_line.parse(COMPARE.recipe_type()))
    monkeypatch.setattr(sys, "argv", [*words[:4], "--head-policy", "local"])
    made = methods_of(command_line.parse(COMPARE.recipe_type()))
    assert {method.head_policy for method in made.values()} == {"local"}


def test_help_shows_the_options_of_the_named_methods_among_the_common_ones(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare.py", "--methods", "flexlora", "my_own=fedprox", "local", "--help"])
    with pytest.raises(SystemExit):
        command_line.parse(COMPARE.recipe_type())
    common, advanced = capsys.readouterr().out.split("Advanced options:\n")
    for option in ("--methods", "--head-policy", "--my-own.mu", "--my-own.lora-rank", "--local-method.lora-rank"):
        assert f"\n  {option} " in common
    assert "--flexlora.lora-alpha" in common
    assert "--flexlora.ranks.values" in advanced
    assert "--my-own.head-policy" in advanced, "it is refused"
    assert "--hilora" not in common + advanced


def test_rates_are_tried_for_each_method_first(monkeypatch, tmp_path):
    out = tmp_path / "run"
    compare(monkeypatch, out, "--methods", "local", "fedit", "--rates", "1e-9", "1e-2", *FEW)
    tried = json.loads((out / "tuning.json").read_text())["methods"]
    assert tried.keys() >= {"local", "fedit"}
    assert "1e-09" in json.dumps(tried["fedit"])


@pytest.mark.parametrize("kind", ["texts", "instructions"])
def test_the_same_recipe_takes_texts_and_instructions(kind, monkeypatch, tmp_path, capsys):
    compare(monkeypatch, tmp_path / "run", "--kind", kind, "--methods", "local", "fedit", *FEW)
    assert "digest" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["hilora", "fedx"],
            r"There is no method 'fedx'; there are clusteredfedavg, .*, or module:Class",
        ),
        (["nowhere:Mine"], "'nowhere:Mine' cannot be imported: No module named 'nowhere'"),
        (["fedsim.plan:Plan"], "is no method"),
        (["fedit", "fedit"], "'fedit' names two methods; name one of them label=method"),
        (["a-b=fedit"], "'a-b' is no name"),
    ],
)
def test_names_that_cannot_be_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        named(words)


def test_a_method_whose_name_is_an_option_already_has_its_options_under_another(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["compare.py", "--methods", "local", "--local-method.lora-rank", "3"])
    recipe = command_line.parse(COMPARE.recipe_type())
    assert methods_of(recipe)["local"] == fedsim.Local(lora_rank=3, head_policy="global")
    assert isinstance(recipe.local, fedsim.LocalTraining)
