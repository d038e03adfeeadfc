"""How a GPU computes: settings of the process that hold during a run, and not longer."""

import os

import pytest
import torch
from conftest import TinyAttention

from fedsim.distributed.launch import arithmetic


def settings():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.cudnn_sdp_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


def test_settings_hold_inside_and_are_those_of_before_afterwards(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = settings()
    with arithmetic(True, True, False):
        assert settings() == (True, "high", False, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert settings() == before
    with arithmetic(False, False, True):
        assert settings() == before
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


@pytest.mark.parametrize("options", [{}, {"deterministic": True}, {"tf32": True}])
def test_a_run_computes_as_it_is_told(tiny_run, options):
    backbone, seen = TinyAttention(), []
    backbone.register_forward_hook(lambda *_: seen.append(settings()))
    before = settings()
    tiny_run("it", backbone=backbone, rounds=1, **options)
    is_deterministic, precision, attention, _ = seen[-1]
    assert is_deterministic == bool(options.get("deterministic"))
    assert precision == ("high" if "tf32" in options else "highest")
    assert not attention, "shapes are not static on a CPU"
    assert settings() == before
