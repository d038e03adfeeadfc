"""Federations with random weights and random samples, one prepared engine for each, and how their steps are timed."""

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from statistics import median
from typing import Any

import torch
from rows.simulated import RoundLoop
from torch import Tensor, nn

import fedsim
from fedsim.data.images.transforms import ImageTransform
from fedsim.distributed.launch import launch
from fedsim.models.decoding import attention_mask
from fedsim.round import Assignment
from fedsim.simulation import RunSpec
from gpu.sizes import Sizes, Vit

Row = tuple[str, str]
"""What is measured, and what came out."""
LOCAL = {"optimizer": "sgd", "learning_rate": 0.01}
"""Not AdamW: where a gradient is nearly zero that magnifies rounding."""


def use(accelerator: str, precision: str = "bf16-mixed") -> torch.device:
    """Let what is built from here on run on this accelerator in this precision; return its device."""
    options = {"CLI_USED": "1", "ACCELERATOR": accelerator, "DEVICES": "1", "NUM_NODES": "1", "PRECISION": precision}
    os.environ.update({f"LT_{name}": value for name, value in options.items()})
    launch.cache_clear()
    return launch().device


def vit(sizes: Sizes) -> nn.Module:
    """Return a ViT, the same whenever it is asked for."""
    return deepcopy(_vit(sizes.vit))


@cache
def _vit(shape: Vit) -> nn.Module:
    import timm

    torch.manual_seed(0)
    sizes = {"img_size": shape.image} | ({"depth": shape.depth} if shape.depth else {})
    return timm.create_model(shape.name, pretrained=False, num_classes=10, **sizes).eval()


class Texts(nn.Module):
    """A classifier of transformers as fedsim's own text backbones call it, from ids padded with 0 to logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """Attend to whatever is no padding."""
        return self.model(input_ids=ids.long(), attention_mask=attention_mask(self.model, ids != 0)).logits


def bert(sizes: Sizes) -> nn.Module:
    """Build the BERT."""
    from transformers import BertConfig, BertForSequenceClassification

    return Texts(BertForSequenceClassification(BertConfig(**sizes.bert_config))).eval()


def tables(sizes: Sequence[int], n_rows: int, begin: int = 0) -> list[Tensor]:
    """Return rows of clients with so many samples, one client after another; beyond `n_rows` they begin again."""
    starts = [begin + sum(sizes[:k]) for k in range(len(sizes))]
    return [torch.arange(start, start + n) % n_rows for start, n in zip(starts, sizes, strict=True)]


def federation(inputs: Tensor, sizes: Sequence[int], n_test: int = 0, **fields: Any) -> fedsim.FederatedData:
    """Return clients with so many training samples, and `n_test` test samples each."""
    targets = torch.arange(len(inputs)) % 10
    train, test = tables(sizes, len(inputs)), tables([n_test] * len(sizes), len(inputs), sum(sizes))
    return fedsim.FederatedData(inputs, targets, train, test, [str(label) for label in range(10)], **fields)


def images(sizes: Sizes, per_client: Sequence[int], n_test: int = 0, n_rows: int = 1024) -> fedsim.FederatedData:
    """Return clients with random images, which are flipped, cut and normalised as recipes do."""
    side, random = sizes.vit.image, torch.Generator().manual_seed(0)
    n_rows = min(n_rows, sum(per_client) + n_test * len(per_client))
    inputs = torch.randint(256, (n_rows, 3, side, side), generator=random, dtype=torch.uint8)
    transform = ImageTransform(side, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    fields = {"transform": transform, "augment": transform.augment, "n_draws": transform.n_draws}
    return federation(inputs, per_client, n_test, **fields)


def texts(sizes: Sizes, per_client: Sequence[int]) -> fedsim.FederatedData:
    """Return clients with random texts, the shortest an eighth of the longest."""
    random, n = torch.Generator().manual_seed(0), sum(per_client)
    tokens = torch.randint(1, sizes.bert["vocab_size"], (n, sizes.text), generator=random, dtype=torch.int32)
    lengths = torch.randint(max(1, sizes.text // 8), sizes.text + 1, (n, 1), generator=random)
    return federation(tokens * (torch.arange(sizes.text) < lengths), per_client, pad_token=0)


class Loop(RoundLoop):
    """A federation that is ready to train: FedIT at LoRA rank 8, all clients in one block unless said otherwise."""

    def __init__(self, backbone: nn.Module, data: fedsim.FederatedData, local: dict[str, Any], **fields: Any):
        defaults = {"method": fedsim.FedIT(lora_rank=8), "rounds": 10**6, "block_size": data.n_clients}
        spec = defaults | {"local": fedsim.LocalTraining(**(LOCAL | local)), "evaluate_every": 10**6} | fields
        super().__init__(RunSpec(backbone=backbone, data=data, **spec))
        self.engine, self.device = self.simulation.engine, self.simulation.engine.module.device

    def dispatch(self, n_clients: int | None = None) -> list[Assignment]:
        """Return the work of the first clients in the first round."""
        clients = list(range(n_clients or self.simulation.spec.n_cohort))
        dispatched = self.simulation.aggregator.dispatch(self.state, clients)
        self.plan = dispatched.plan
        return [assignment for block in dispatched.blocks for assignment in block]

    def train(self, block: list[Assignment]) -> None:
        """Train clients together."""
        with self.computing():
            self.engine.local_update(self.plan, [block])

    def test(self, block: list[Assignment]) -> None:
        """Test clients together, as they are."""
        with self.computing():
            self.engine.evaluate(self.plan, [block])

    def step_seconds(self, repeats: int) -> float:
        """Return the seconds of one local step of all clients, the median of so many trainings."""
        block = self.dispatch()
        return timed(lambda: self.train(block), self.device, repeats) / max(each.steps for each in block)


def timed(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median seconds of something after it was done once."""
    work()
    seconds = []
    for _ in range(repeats):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def wait(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], str]]:
    """Inside, the returned function tells the peak of the device's memory since the start, as a text."""
    release()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield lambda: f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB" if device.type == "cuda" else "–"
    release()


def release() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def milliseconds(seconds: float) -> str:
    """Return a text."""
    return f"{1e3 * seconds:.1f} ms"
