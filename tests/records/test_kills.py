"""kill -9 at twenty moments, every other one in the middle of a checkpoint: the same bits, rows and events."""

import json
import multiprocessing
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TinyAttention, tiny_data

import fedsim
from fedsim.storage import run_folder
from fedsim.storage.run_folder import load_checkpoint

KILLS = 20


def in_a_fork(work: Callable[[], object]) -> int:
    """Start `work()` in a process of its own, which has nothing to import any more; return its id."""
    if child := os.fork():
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def die_in_a_checkpoint(count: int, suffix: str) -> None:
    """Let this process be killed half-way through its checkpoint number `count`, its tensors or their manifest."""
    real, written = run_folder.write_atomically, 0

    def write(path: Path, payload: bytes) -> None:
        nonlocal written
        written += path.parent.name == "checkpoints" and path.suffix == suffix
        if written == count:
            path.with_name(f".{path.name}.partial").write_bytes(payload[: len(payload) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        real(path, payload)

    run_folder.write_atomically = write


def kill_and_resume(out: Path, start: Callable[[bool], object], rounds_done: Callable[[], int]) -> None:
    """Run `start(resume)` in forks, of which twenty are killed and the last may finish."""
    moments = random.Random(0)
    for kill in range(KILLS):
        before, is_begun = rounds_done(), (out / "recipe.json").exists()
        count, suffix = moments.choice((1, 2)), moments.choice((".safetensors", ".json"))

        def work(is_inside=kill % 2, count=count, suffix=suffix, is_begun=is_begun):
            if is_inside:
                die_in_a_checkpoint(count, suffix)
            start(is_begun)

        child, deadline = in_a_fork(work), time.monotonic() + 2 * moments.random()
        if not kill % 2:
            while time.monotonic() < deadline and rounds_done() <= before:
                time.sleep(0.005)
            time.sleep(0.05 * moments.random())
            os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "it was not to end by itself"
    last = in_a_fork(lambda: start((out / "recipe.json").exists()))
    assert os.waitstatus_to_exitcode(os.waitpid(last, 0)[1]) == 0


def newest(folder: Path) -> int:
    """The round of the newest manifest; the process that is still writing may drop the file meanwhile."""
    names = [path.stem for path in (folder / "checkpoints").glob("round-*.json")]
    return max((int(name.removeprefix("round-")) for name in names), default=0)


def killed_run(folder: Path) -> None:
    """A run that is killed twenty times against one that is not."""
    common = {"method": fedsim.HiLoRA(lora_rank=2), "rounds": 60, "cohort_size": 3, "evaluate_every": 5}
    common |= {"backbone": TinyAttention(), "data": tiny_data(), "threads": 1}
    common |= {"local": fedsim.LocalTraining(batch_size=4, learning_rate=1e-2)}
    whole, out = fedsim.simulate(out=folder / "whole", **common), folder / "killed"
    kill_and_resume(out, lambda is_begun: fedsim.simulate(out=out, resume=is_begun, **common), lambda: newest(out))
    assert json.loads((out / "result.json").read_text())["digest"] == whole.digest
    for name in ("metrics.csv", "clients.csv", "costs.csv", "events.jsonl"):
        assert (out / name).read_bytes() == (whole.folder / name).read_bytes(), name


def killed_comparison(folder: Path) -> None:
    """The same of a comparison of two methods over two seeds."""

    def start(name: str, is_begun: bool):
        methods = {"fedit": fedsim.FedIT(lora_rank=2), "hilora": fedsim.HiLoRA(lora_rank=2)}
        common = {"backbone": TinyAttention(), "rounds": 15, "cohort_size": 3, "threads": 1}
        common |= {"seeds": (0, 1), "out": folder / name, "resume": is_begun}
        return fedsim.compare(methods, lambda seed: tiny_data(seed=seed), **common)

    whole, out = start("whole", False), folder / "killed"
    cells = [Path(f"seed-{seed}") / name for seed in (0, 1) for name in ("fedit", "hilora")]
    kill_and_resume(out, lambda is_begun: start("killed", is_begun), lambda: sum(newest(out / cell) for cell in cells))
    assert json.loads((out / "result.json").read_text())["digest"] == whole.digest
    assert sum(load_checkpoint(out / cell)[0] for cell in cells) == 60
    for cell in cells:
        for name in ("metrics.csv", "clients.csv", "costs.csv"):
            assert (out / cell / name).read_bytes() == (whole.folder / cell / name).read_bytes(), (cell, name)


@pytest.mark.slow
@pytest.mark.parametrize("study", [killed_run, killed_comparison])
def test_twenty_kills_end_in_the_same_bits_rows_and_events(tmp_path, study):
    """In a process of its own: threads that other tests left in autograd do not survive a fork."""
    process = multiprocessing.get_context("spawn").Process(target=study, args=(tmp_path,))
    process.start()
    process.join(timeout=540)
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0
