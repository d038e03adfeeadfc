"""Options of local training that would fail later, or be taken for something else, are refused."""

import pytest
from conftest import TinyAttention, tiny_data

from fedsim.local_training import LocalTraining
from fedsim.methods import FedIT
from fedsim.run_spec import RunSpec


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be a finite number"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"clip_norm": float("nan")}, "clip_norm is nan"),
        ({"optimizer": "adam"}, "optimizer is 'adam'; it must be adamw or sgd"),
        ({"epochs": 1.5}, "epochs is 1.5; it must be a whole number"),
    ],
)
def test_unsuitable_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LocalTraining(**options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 1.5}, r"rounds is 1.5; it must be a whole number \(--rounds\)"),
        ({"method": "fedit"}, "method is 'fedit'; it must be an object"),
        ({"method": FedIT}, "it must be an object"),
        ({"engine": "foo"}, "engine is 'foo'"),
    ],
)
def test_unsuitable_arguments_of_a_simulation_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RunSpec(**{"method": FedIT(), "backbone": TinyAttention(), "data": tiny_data(), "rounds": 1} | changes)
