"""Shared pieces: one thread, no network, a federation so small that a round takes a fraction of a second."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("FEDSIM_FIGURES", "0")

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.storage import run_folder

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)


class TinyAttention(nn.Module):
    """Two blocks with q_proj and v_proj and a classifier: the least that carries adapters."""

    def __init__(self, width: int = 12, n_classes: int = 3, depth: int = 2):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"q_proj": nn.Linear(width, width), "v_proj": nn.Linear(width, width)}) for _ in range(depth)
        )
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block["q_proj"](x)) * block["v_proj"](x)
        return self.head(x)


def tiny_data(
    n_clients: int = 6, per_client: int = 16, unseen: tuple[int, ...] = (5,), seed: int = 0
) -> fedsim.FederatedData:
    """Even and odd clients label the same inputs oppositely, so two groups matter."""
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n_clients * per_client, 12, generator=random)
    client_of_sample = torch.arange(n_clients).repeat_interleave(per_client)
    one = torch.randn(12, 3, generator=random)
    truth = torch.stack([one, -one])
    targets = torch.stack(
        [(row @ truth[client % 2]).argmax() for row, client in zip(inputs, client_of_sample, strict=True)]
    )
    return fedsim.from_tensors(inputs, targets, client_of_sample, unseen=unseen)


def tiny_method(name: str) -> object:
    """A method of fedsim by its class's name, at LoRA ranks that fit `TinyAttention`, without a proxy client."""
    kind, small = getattr(fedsim.methods, name), {"lora_rank": 2}
    if name in ("HetLoRA", "FlexLoRA"):
        small = {"ranks": fedsim.LoraRanks(values=(1, 2))}
    elif hasattr(kind(), "ranks"):
        small = {"ranks": fedsim.LoraRanks(values=(2,))}
    if hasattr(kind(), "capabilities"):
        small["capabilities"] = fedsim.Capabilities(values=(1, 2))
    others = {"FedHeLLo": {"strategy": "gd"}, "PF2LoRA": {"client_rank": 1}}
    return kind(**small | others.get(name, {}))


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """A cache folder of the module's own: images that tests decode are not kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def tiny_run(tmp_path: Path):
    """Run `fedsim.simulate` on the tiny federation; keyword arguments override."""

    def run(name: str = "run", **changes: object) -> fedsim.Result:
        arguments = {
            "method": fedsim.FedIT(lora_rank=2),
            "backbone": TinyAttention(),
            "data": tiny_data(),
            "rounds": 3,
            "out": tmp_path / name,
            "local": fedsim.LocalTraining(batch_size=4, learning_rate=1e-2),
            "threads": 1,
        }
        result = fedsim.simulate(**(arguments | changes))
        assert result is not None
        return result

    return run


class Stopped(Exception):
    pass


@pytest.fixture
def stop_after(monkeypatch):
    """Make the run stop when it has written this many checkpoints, or in the middle of the next one's round."""

    def arm(checkpoints: int) -> None:
        real, count = run_folder.RunFolder.save_checkpoint, 0

        def save(self, *arguments):
            nonlocal count
            count += 1
            if count > checkpoints:
                raise Stopped
            real(self, *arguments)

        monkeypatch.setattr(run_folder.RunFolder, "save_checkpoint", save)

    return arm
