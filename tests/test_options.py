"""Options that would fail later, or that only Python lets through: words outside their lists, numbers that are none."""

import math
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Annotated

import pytest
from conftest import TinyAttention, tiny_data
from tyro.conf import arg

import fedsim
from fedsim.data.builtin.digits import DigitStyles
from fedsim.data.images.images import ImageOptions
from fedsim.data.instructions.instructions import Instructions
from fedsim.data.protocols import Skew
from fedsim.data.texts.texts import TextOptions
from fedsim.experiments import command_line
from fedsim.options import LocalTraining, check_options
from fedsim.parts.directions import SubspaceClustering
from fedsim.run_spec import RunSpec


def setting(**changes):
    return RunSpec(
        **{"method": fedsim.FedIT(), "backbone": TinyAttention(), "data": tiny_data(), "rounds": 1} | changes
    )


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (fedsim.FedIT(lora_alpha=math.nan), r"lora_alpha is nan; .* finite number or None \(--method.lora-alpha\)"),
        (fedsim.FedIT(lora_alpha=0), r"lora_alpha is 0; it must be positive"),
        (fedsim.FedIT(lora_alpha=-1.0), r"lora_alpha is -1.0; it must be positive"),
        (fedsim.FedIT(lora_rank=2.5), r"method.lora_rank is 2.5; it must be a whole number"),
        (fedsim.FedIT(head_policy="foo"), r"head_policy is 'foo'; it must be frozen, global, tier or local"),
        (fedsim.HiLoRA(gamma_c=math.inf), r"gamma_c is inf; it must be a finite number \(--method.gamma-c\)"),
        (fedsim.HiLoRA(clustering=SubspaceClustering(by="foo")), r"clustering.by is 'foo'; .* subspaces or updates"),
        (fedsim.FedSALoRA(shared=("A", "C")), r"shared is \('A', 'C'\); it must be A or B \(--method.shared\)"),
        (fedsim.FedDPA(variant="X"), "variant is 'X'; it must be F or T"),
    ],
)
def test_what_no_method_can_be_is_refused(method, message):
    with pytest.raises(ValueError, match=message):
        setting(method=method)


def test_more_clusters_than_clients_can_make_are_refused():
    few, some = SubspaceClustering(k_min=5), SubspaceClustering(k_min=4)
    with pytest.raises(ValueError, match=r"k_min is 5 and 5 clients take part; it must be below .*clustering.k-min"):
        setting(method=fedsim.HiLoRA(clustering=few))
    assert setting(method=fedsim.HiLoRA(clustering=some))


METHODS = [getattr(fedsim.methods, name) for name in fedsim.methods.__all__]


@pytest.mark.parametrize("kind", METHODS)
def test_every_number_of_every_method_must_be_finite(kind):
    names = [name for name, value in vars(kind()).items() if isinstance(value, float)]
    for name in (*names, "lora_alpha"):
        try:
            method = replace(kind(), **{name: math.nan})
        except ValueError:  # its own check came first
            continue
        with pytest.raises(ValueError, match=rf"method.{name} is nan"):
            setting(method=method)


@pytest.mark.parametrize("kind", METHODS)
def test_the_defaults_of_every_method_pass(kind):
    check_options(kind(), "method")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Skew(partition="foo"),
            r"data.partition is 'foo'; it must be gl-dir, .* \(--data.par",
        ),
        (lambda: ImageOptions(normalise="foo"), "data.normalise is 'foo'"),
        (lambda: TextOptions(task="foo"), "data.task is 'foo'"),
        (lambda: Instructions(template="foo"), "data.template is 'foo'"),
        (lambda: Skew(n_clients=2.5), "data.n_clients is 2.5; it must be a whole number"),
        (lambda: DigitStyles(clients_per_style=0), "clients_per_style is 0; it must be 1 or more"),
        (lambda: DigitStyles(alpha=math.nan), "data.alpha is nan; it must be a finite number"),
        (lambda: DigitStyles(unseen_fraction=1.0), "unseen_fraction is 1.0"),
    ],
)
def test_what_no_options_of_data_can_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "foo"}, r"engine is 'foo'; it must be batched or sequential \(--engine\)"),
        ({"evaluate_every": 0.5}, "evaluate_every is 0.5; it must be a whole number"),
        ({"cohort_size": "all"}, "cohort_size is 'all'; it must be a whole number or None"),
        ({"sites": ["q_proj", "v_proj"]}, r"sites is \['q_proj', 'v_proj'\]; it must be one regular expression"),
    ],
)
def test_what_no_setting_can_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        setting(**changes)


@pytest.mark.parametrize("name", ["rounds", "evaluate_every", "cohort_size", "block_size"])
@pytest.mark.parametrize("make", [fedsim.RunOptions, setting])
def test_a_recipe_and_a_call_in_python_refuse_numbers_of_a_run_in_the_same_words(make, name):
    option = name.replace("_", "-")
    with pytest.raises(ValueError, match=rf"^{name} is 0; it must be 1 or more \(--{option}\)\.$"):
        make(**{name: 0})


@dataclass(frozen=True, kw_only=True)
class Recipe(fedsim.RunOptions):
    """A recipe."""

    method: Annotated[fedsim.FedIT, arg(name="one")] = field(default_factory=fedsim.FedIT)
    """The method, under another name."""


def test_a_recipe_is_checked_before_anything_is_loaded_and_an_option_is_called_as_it_is_typed(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "launch", cache(lambda: None))  # nothing has started
    monkeypatch.setattr("sys.argv", ["recipe.py", "--one.lora-alpha", "nan"])
    with pytest.raises(SystemExit) as error:
        fedsim.cli(Recipe, lambda recipe: pytest.fail("it has started"))
    assert error.value.code == 2
    assert "one.lora_alpha is nan; it must be a finite number or None (--one.lora-alpha)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be a finite number"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"clip_norm": float("nan")}, "clip_norm is nan"),
        ({"sample_clip": 0.0, "sample_noise": 1.0}, "sample_clip is 0.0; it must be positive"),
        ({"sample_clip": math.nan, "sample_noise": 1.0}, "sample_clip is nan; it must be a number or None"),
        ({"sample_clip": 1.0, "sample_noise": -1.0}, "sample_noise is -1.0; it must be 0 or more"),
        ({"sample_clip": 1.0, "sample_noise": math.inf}, "sample_noise is inf; it must be a finite number"),
        ({"sample_clip": 1.0}, r"sample_clip is 1.0 without any noise; say sample_noise \(0 for none\) \(--local"),
        ({"sample_noise": 1.0}, "sample_clip is None and sample_noise is in proportion to it"),
        ({"sample_batches": "poisson"}, "sample_clip is None and sample_batches is of DP-SGD alone"),
        ({"sample_batches": "fixed"}, "sample_batches is 'fixed'; it must be shuffled or poisson"),
        ({"sample_clip": math.inf, "sample_noise": 1.0}, "sample_clip is inf and sample_noise is 1.0 times it"),
        ({"optimizer": "adam"}, "optimizer is 'adam'; it must be adamw or sgd"),
        ({"epochs": 1.5}, "epochs is 1.5; it must be a whole number"),
    ],
)
def test_unsuitable_options_of_local_training_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LocalTraining(**options)
