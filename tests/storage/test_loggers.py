"""Curves beside the tables: TensorBoard always, Weights & Biases when asked for, without a network."""

import importlib.util
import socket
import time
from types import SimpleNamespace

import pytest
from conftest import Stopped

import fedsim
from fedsim.storage import loggers as curves
from fedsim.storage.loggers import check_wandb
from fedsim.storage.run_folder import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*pydantic.*", "ignore::ResourceWarning")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, no key, and no settings of whoever runs the tests."""

    def refuse(self, address, *rest):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"a connection to {address}")
        return connect(self, address, *rest)

    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def recorded(result: fedsim.Result) -> list[bytes]:
    """What the offline runs of a run folder hold."""
    return [path.read_bytes() for path in sorted(result.folder.glob("wandb/offline-run-*/*.wandb"))]


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_weights_and_biases_gets_the_curves_without_a_network_and_goes_on_under_one_id(
    tiny_run,
    stop_after,
    monkeypatch,
):
    plain = tiny_run("plain")
    stop_after(1)
    with pytest.raises(Stopped):
        tiny_run("run", wandb="offline")
    monkeypatch.undo()
    time.sleep(1.1)  # parts of one run are told apart by the second in which they begin
    resumed = tiny_run("run", wandb="offline", resume=True)
    assert resumed.digest == plain.digest
    first, second = recorded(resumed)
    for part in (first, second):
        assert b"global.mean" in part
        assert b"lora_rank" in part
    names = [path.name for path in resumed.folder.glob("wandb/offline-run-*/*.wandb")]
    assert len(names) == 2
    assert len(set(names)) == 1, "the id is in the name"
    assert list((resumed.folder / "tensorboard").glob("events.out.tfevents.*"))
    assert not list(plain.folder.glob("wandb*"))


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_part_is_begun_under_the_id_of_the_part_before_and_joined_to_it_by_weights_and_biases(
    tmp_path, monkeypatch, mode
):
    asked = []

    def init(**options):
        asked.append((options["id"], options["resume"], options["mode"]))
        name = f"run-2026010{len(asked)}_120000-a1b2"
        (tmp_path / "wandb" / (name if mode == "online" else f"offline-{name}")).mkdir(parents=True)
        return SimpleNamespace(id="a1b2", define_metric=lambda *names, **how: None, finish=lambda exit_code: None)

    monkeypatch.setattr("wandb.init", init)
    for _ in range(3):
        curves._wandb_run(RunFolder(tmp_path), mode)
    curves._open.clear()
    assert asked == [(None, "allow", mode), ("a1b2", "allow", mode), ("a1b2", "allow", mode)]


def test_what_is_asked_for_and_not_there_is_one_message_before_anything_is_written(tiny_run, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(curves.importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    with pytest.raises(
        ValueError,
        match=r"wandb is 'offline' and the package is not installed; run .* in fedsim's checkout \(--wandb\)",
    ):
        tiny_run(wandb="offline")
    with pytest.raises(ValueError, match="wandb is 'on'; it must be offline, online or None"):
        tiny_run(wandb="on")
    assert not (tmp_path / "run").exists()
    assert check_wandb(None) is None


@pytest.mark.usefixtures("offline")
def test_online_needs_a_login(tiny_run, tmp_path):
    with pytest.raises(ValueError, match="nobody is logged in; run `wandb login`, or say --wandb offline"):
        tiny_run(wandb="online")
    assert not (tmp_path / "run").exists()
