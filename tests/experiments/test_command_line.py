"""What a person types: options, mistakes, messages. In this process where possible, since a new one takes seconds."""

import dataclasses
import json
import sys
from functools import cache
from pathlib import Path

import pytest
from runs import QUICKSTART, SMALL, fabric, load, python, run
from test_recipes import recipe_type

import fedsim
from fedsim.data.images.images import ImageOptions
from fedsim.data.protocols import Clients, Skew
from fedsim.experiments import Experiment, chosen, command_line
from fedsim.models.backbones import TimmModel

IMAGES = Clients(source=ImageOptions(), split=Skew())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(fedsim.RunOptions):
    """A recipe for these tests."""

    method: fedsim.HiLoRA = dataclasses.field(default_factory=fedsim.HiLoRA)
    """The method."""
    local: fedsim.LocalTraining = dataclasses.field(default_factory=fedsim.LocalTraining)
    """Local training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Experiment):
    """A recipe for images."""

    data: Clients[ImageOptions, Skew] = IMAGES
    """The images."""
    model: TimmModel = dataclasses.field(default_factory=TimmModel)
    """The backbone."""


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """Parse these options as `python recipe.py …` would."""
    monkeypatch.chdir(tmp_path)

    def parse(*options: object) -> Recipe:
        monkeypatch.setattr(sys, "argv", ["recipe.py", *map(str, options)])
        return command_line.parse(Recipe)

    return parse


def test_dotted_options_reach_nested_settings(parse):
    recipe = parse("--method.gamma-c", 0.5, "--method.clustering.k-max", 4, "--local.batch-size", 7, "--seed", 3)
    assert (recipe.method.gamma_c, recipe.method.clustering.k_max) == (0.5, 4)
    assert (recipe.local.batch_size, recipe.seed) == (7, 3)


def test_the_run_folder_defaults_to_recipe_and_time(parse):
    assert parse().out.parent == Path("runs")
    assert parse().out.name.startswith("recipe-20")


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_worker_says_at_once_that_it_has_begun(monkeypatch, capsys, tmp_path, rank):
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--out", str(tmp_path / "run")])
    monkeypatch.setenv("RANK", str(rank))
    said = []
    command_line.cli(Recipe, lambda recipe: said.append(capsys.readouterr().err))
    assert said == ["recipe: loading data and model\n" * (rank == 0)]


def test_help_shows_what_most_runs_set_before_all_other_options(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        command_line.parse(Images)
    assert stop.value.code == 0
    common, advanced = capsys.readouterr().out.split("Advanced options:\n")
    for option in ("--rounds", "--seeds", "--embedded", "--data.path", "--data.partition", "--model.name"):
        assert f"\n  {option}" in common
    for option in ("--compile", "--data.crop", "--model.sites", "--local.momentum", "--devices-profile.gflops"):
        assert f"\n  {option}" in f"\n{advanced}"


@pytest.mark.parametrize("option", ["--gama", "--method.gama-c", "--engine=parallel", "--seed=x"])
def test_a_mistyped_option_is_a_usage_error(parse, capsys, option):
    with pytest.raises(SystemExit) as error:
        parse(option)
    assert error.value.code == 2
    assert option.split("=")[0] in capsys.readouterr().err


def test_a_mistyped_option_gets_a_suggestion(parse, capsys):
    with pytest.raises(SystemExit):
        parse("--method.gama-c", 1)
    assert "--method.gamma-c" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rounds", 0), "rounds is 0"),
        (("--threads", 0), "threads is 0"),
        (("--cohort-size", -1), "cohort_size is -1"),
        (("--local.learning-rate", 0), "learning_rate is 0"),
        (("--method.root-share", 0.9), "root_share and cluster_share are (0.9, 0.4)"),
        (("--method.clustering.k-min", 5, "--method.clustering.k-max", 3), "is no range of cluster numbers"),
    ],
)
def test_a_value_out_of_range_is_one_message_with_exit_code_2(monkeypatch, capsys, options, message):
    monkeypatch.setattr(sys, "argv", ["recipe.py", *map(str, options)])
    with pytest.raises(SystemExit) as error:
        fedsim.cli(Recipe, lambda recipe: None)
    assert error.value.code == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in said


@pytest.mark.parametrize("typed", [("--method", "hilora"), ("--only", "hilora", "local"), ("--rung=all",)])
@pytest.mark.parametrize("recipe", ["quickstart.py", "compare_cifar100.py", "ilora_text.py", "compare.py"])
def test_an_option_by_its_old_name_is_told_the_new_one(monkeypatch, capsys, recipe, typed):
    monkeypatch.setattr(command_line, "launch", cache(lambda: None))  # nothing has started
    monkeypatch.setattr(sys, "argv", [recipe, *typed])
    module = load(recipe)
    with pytest.raises(SystemExit) as stop:
        fedsim.cli(recipe_type(module), module.main)
    assert stop.value.code == 2
    assert f"error: {typed[0].partition('=')[0]} is called --methods now" in capsys.readouterr().err


def test_one_name_is_a_run_several_are_compared_and_unknown_ones_refused():
    there = {"fedit": fedsim.FedIT(), "local": fedsim.Local()}
    assert chosen(there, ["local"]) == there["local"]
    assert chosen(there, ["local", "fedit"]) == there
    for names, message in (([], "No method is named; there are fedit, local"), (["fedit", "x"], "no method x; there")):
        with pytest.raises(ValueError, match=message):
            chosen(there, names)


def test_resume_takes_the_options_of_the_folder(parse, tmp_path):
    first = parse("--seed", 5, "--method.gamma-l", 0.7, "--out", tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(command_line.to_dict(first)))
    resumed = parse("--resume", tmp_path / "run")
    assert command_line.to_dict(resumed) == command_line.to_dict(first)
    assert resumed.out == tmp_path / "run"
    with pytest.raises(ValueError, match=r"another recipe: seed was 5 and is 6"):
        parse("--resume", tmp_path / "run", "--seed", 6)


def test_a_resumed_comparison_may_be_given_more_seeds_in_any_order_but_not_fewer(parse, tmp_path):
    first = parse("--seeds", 2, 0, "--out", tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(command_line.to_dict(first)))
    assert parse("--resume", tmp_path / "run").seeds == (2, 0)
    assert parse("--resume", tmp_path / "run", "--seeds", 0, 1, 2).seeds == (2, 0, 1)
    with pytest.raises(ValueError, match=r"another recipe: seeds was \[2, 0\] and is \[0, 1\]"):
        parse("--resume", tmp_path / "run", "--seeds", 0, 1)
    with pytest.raises(ValueError, match=r"another recipe: rounds was 50 and is 3"):
        parse("--resume", tmp_path / "run", "--seeds", 0, 1, 2, "--rounds", 3)


def test_a_single_run_does_not_become_a_comparison(parse, tmp_path):
    first = parse("--out", tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(command_line.to_dict(first)))
    with pytest.raises(ValueError, match=r"another recipe: seeds was \[\] and is \[0, 1\]"):
        parse("--resume", tmp_path / "run", "--seeds", 0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", 0, 1, "--seed", 3), "--seeds and --seed are given; leave out one of them"),
        (("--seeds", 0, 1, "--seed=0"), "--seeds and --seed are given"),
        (("--seeds",), "--seeds has no seeds; give one or more"),
        (("--embedded", "--data.path", "x"), r"--embedded brings data and model of its own; .* --data.path"),
        (("--embedded", "--data.n_clients", 3, "--model.name", "x"), r"leave it out, or --model.name"),
    ],
)
def test_options_of_which_one_would_be_ignored_are_refused(monkeypatch, options, message):
    monkeypatch.setattr(sys, "argv", ["recipe.py", *map(str, options)])
    with pytest.raises(ValueError, match=message):
        command_line.parse(Images)


def test_a_resumed_run_goes_on_in_its_own_folder(parse, tmp_path):
    first = parse("--out", tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(command_line.to_dict(first)))
    with pytest.raises(ValueError, match=r"goes on in '.*run' and not in 'other'; leave out --out or --resume"):
        parse("--resume", tmp_path / "run", "--out", "other")
    assert parse("--out", "run", "--resume", tmp_path / "run").out == tmp_path / "run"  # as slurm/fabric.sbatch does


def test_resume_of_no_run_folder_is_refused(parse, tmp_path):
    with pytest.raises(ValueError, match="is no run folder"):
        parse("--resume", tmp_path)


@pytest.mark.parametrize("options", [("--sed", 1), ("--threads", 0), ("--seeds",)])
def test_the_launcher_gets_the_message_so_that_it_is_last(monkeypatch, tmp_path, capsys, options):
    monkeypatch.setattr(command_line, "launch", cache(lambda: None))  # nothing has started
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setattr(sys, "argv", ["recipe.py", *map(str, options)])
    with pytest.raises(SystemExit) as error:
        fedsim.cli(Recipe, lambda recipe: None)
    assert error.value.code == 2
    told = json.loads((tmp_path / "error.json").read_text())["message"]["extraInfo"]["py_callstack"]
    assert options[0].lstrip("-") in told
    assert told.strip() in capsys.readouterr().err


@pytest.mark.slow
def test_several_workers_print_one_message_before_the_launcher_speaks():
    done = run(fabric(2, QUICKSTART, "--sed", 1))
    assert done.returncode != 0
    assert done.stderr.count("Unrecognized options: --sed") == 2, "by itself, and in the launcher's words"
    assert "╰" in "".join(done.stderr.splitlines()[-4:]), "its message is last"
    assert "Traceback" not in done.stderr[: done.stderr.index("Unrecognized options")]
    assert "process group" not in done.stderr[: done.stderr.index("Unrecognized options")]


def test_plain_python_is_one_worker_and_its_mistakes_have_exit_code_2(tmp_path):
    out = tmp_path / "run"
    done = run(python(QUICKSTART, *SMALL, "--methods", "hilora", "--cohort-size", 99, "--out", out))
    assert done.returncode == 2
    started, message = done.stderr.splitlines()[:2]
    assert started == "quickstart: loading data and model"
    assert message.startswith("error: cohort_size is 99; it must lie in 1 … 10")
    assert "Traceback" not in done.stderr
    assert not out.exists()
