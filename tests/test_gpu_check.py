"""The check of a GPU runs on next to nothing: on the CPU, and on the null CUDA runtime where FEDSIM_NULL_CUDA names it.

That runtime is a program in front of others: it lends them devices on which kernels compute nothing; no number counts.
"""

import os
import re
import subprocess
import sys

import pytest
import runs
import torch
from conftest import ROOT

NULL_CUDA = os.environ.get("FEDSIM_NULL_CUDA")
needs_null_cuda = pytest.mark.skipif(not NULL_CUDA, reason="FEDSIM_NULL_CUDA does not name the null CUDA runtime")
NEEDS_A_GPU = ("kernels", "compile", "decompositions")
"""Profiler, compiler and torch.linalg, which the null CUDA runtime does not have."""
CHECK = (sys.executable, "benchmarks/gpu_check.py", "--size", "smoke")


def outcome(*options: str, runtime: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the check in the project's folder."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = runs.environment() | {"PYTHONPATH": paths}
    command = [*runtime, *CHECK, *options]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=540)


def ended(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The sections of which a table was shown."""
    return set(re.findall(r"\((\w+), \d+ s\)", done.stdout))


@pytest.fixture
def sections(monkeypatch) -> dict:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_check

    return gpu_check.SECTIONS


@pytest.mark.slow
def test_every_section_that_has_a_meaning_there_runs_on_a_cpu(sections):
    done = outcome("--accelerator", "cpu", "--skip", "compile")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ended(done) == {name for name, section in sections.items() if section.on_cpu} - {"compile"}


@needs_null_cuda
@pytest.mark.slow
def test_every_section_runs_on_the_null_cuda_runtime_but_for_what_that_does_not_have(sections):
    done = outcome("--skip", *NEEDS_A_GPU, runtime=(NULL_CUDA,))
    assert done.returncode == 0, done.stdout + done.stderr
    assert ended(done) == sections.keys() - set(NEEDS_A_GPU)


@needs_null_cuda
@pytest.mark.slow
def test_a_section_that_fails_is_shown_with_its_error_and_the_others_go_on():
    done = outcome("--only", "decompositions", "distances", runtime=(NULL_CUDA,))
    assert done.returncode == 1
    assert ended(done) == {"decompositions", "distances"}
    assert "cusolver" in done.stdout.split("ended by")[1]
    assert done.stdout.strip().endswith("failed: decompositions")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_told_so(sections):
    import gpu_check

    found = gpu_check.in_process(sections["dropout"], gpu_check.Options(size="smoke"))
    assert found.rows == []
    assert "CUDAAccelerator" in found.error


def test_results_have_a_place_for_every_section(sections):
    text = (ROOT / "RESULTS.md").read_text()
    assert re.findall(r"<!-- gpu: (\w+) -->", text) == list(sections)
    assert re.findall(r"<!-- /gpu: (\w+) -->", text) == list(sections)


def test_only_the_whole_on_a_gpu_is_written(sections):
    import gpu_check

    options = gpu_check.Options
    assert options().is_written
    assert not options(size="smoke").is_written
    assert not options(accelerator="cpu").is_written
    assert options(only=("waits", "round"), skip=("round",)).names == ["waits"]


def test_a_section_is_written_in_its_own_place_with_where_it_was_measured(sections, monkeypatch, tmp_path):
    import gpu_check
    import results

    before = (ROOT / "RESULTS.md").read_text()
    (tmp_path / "RESULTS.md").write_text(before)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "card", lambda: "some card")
    gpu_check.write_section("waits", [("images", "0 a step")], 12.4)
    head, rest = (tmp_path / "RESULTS.md").read_text().split("<!-- gpu: waits -->\n")
    block, tail = rest.split("\n<!-- /gpu: waits -->")
    assert before.startswith(head)
    assert before.endswith(tail)
    assert "some card, 12 s." in block
    assert "| images | 0 a step |" in block


def test_what_was_found_before_an_error_is_kept(sections):
    import gpu_check

    def breaks(sizes, accelerator):
        yield "first", "1"
        raise RuntimeError("no more\nthan this")

    def ends(sizes, accelerator):
        yield "first", "1"
        os._exit(3)

    options = gpu_check.Options(size="smoke", accelerator="cpu")
    for work, error in ((breaks, "RuntimeError: no more"), (ends, "its process ended without a word")):
        found = gpu_check.in_process(gpu_check.Section("", work), options)
        assert (found.rows, found.error) == ([("first", "1")], error)


def test_a_section_that_takes_too_long_is_ended(sections):
    import gpu_check

    def waits(sizes, accelerator):
        yield "first", "1"
        __import__("time").sleep(60)

    section = gpu_check.Section("", waits, limit=1)
    found = gpu_check.in_process(section, gpu_check.Options(size="smoke", accelerator="cpu"))
    assert (found.rows, found.error) == ([("first", "1")], "not done after 1 s")
    assert found.seconds < 30
