"""Texts: BERT on uneven lengths, and a LLaMA that trains and writes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

import fedsim
from fedsim.data.instructions.generation_task import Generation
from fedsim.data.task import Model
from fedsim.options import IGNORED
from gpu.federations import Loop, Row, bert, milliseconds, peak_memory, tables, texts, timed, use
from gpu.sizes import Sizes

BATCH = 4
"""Samples of a LLaMA's local step."""
STOP = 2


def uneven_texts(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Time a local step of all clients on texts of uneven lengths under both engines."""
    device = use(accelerator)
    batch = sizes.batches[0]
    even, uneven = [sizes.steps * batch] * sizes.clients, [batch * (1 + k % sizes.steps) for k in range(sizes.clients)]
    for name, each in (("equally many texts", even), ("1 to n batches a client", uneven)):
        for engine in ("batched", "sequential"):
            data = texts(sizes, each)
            with peak_memory(device) as peak:
                loop = Loop(bert(sizes), data, {"batch_size": batch}, head="model.classifier", engine=engine)
                seconds = loop.step_seconds(sizes.repeats)
                mean = data.lengths.double().mean() / sizes.text
                yield (
                    f"{name}, {engine}",
                    f"{milliseconds(seconds)} a step of the longest client, peak {peak()}; "
                    f"texts fill {mean:.0%} of the longest",
                )


def llama(sizes: Sizes, device: torch.device) -> nn.Module:
    """Build the LLaMA on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**sizes.llama, max_position_embeddings=2 * sizes.prompt + sizes.answer, use_cache=False)
    with torch.device(device):
        return LlamaForCausalLM(config).eval()


class Writing(Generation):
    """Let the model write answers of full length, and score nothing."""

    def score(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """Write behind the first half of each sample."""
        half = max(1, inputs.shape[1] // 2)
        lengths = torch.full((len(inputs),), half, device=inputs.device)
        model.generate(inputs[:, :half], lengths, self.max_new_tokens, self.stop)
        return torch.zeros(len(inputs), self.n_scores, device=inputs.device)

    def summary(self, totals: Sequence[float], n_samples: int) -> dict[str, float]:
        """Nothing."""
        return {}


def answers(sizes: Sizes, accelerator: str) -> Iterator[Row]:
    """Time a local step of a LLaMA and the tokens that it writes, for all clients at once."""
    device = use(accelerator)
    with peak_memory(device) as peak:
        model = llama(sizes, device)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        loop = Loop(model, instructions(sizes), {"batch_size": BATCH})
        seconds = loop.step_seconds(sizes.repeats)
        name = f"{parameters / 1e9:.2f} · 10⁹ parameters, {sizes.clients} clients × {BATCH} × {sizes.prompt} tokens"
        yield f"train: {name}", f"{milliseconds(seconds)} a step, peak {peak()}"
    with peak_memory(device) as peak:
        few, many = (writing_seconds(loop, n, sizes.repeats) for n in (sizes.answer // 2, sizes.answer))
        each = (many - few) / (sizes.answer - sizes.answer // 2)
        yield f"write: {sizes.clients} clients × {BATCH} answers", f"{milliseconds(each)} a token, peak {peak()}"


def large_block(sizes: Sizes, device: torch.device) -> Row:
    """Measure how many clients of a LLaMA in bf16 fit into one pass."""
    sizes = replace(sizes, llama=sizes.large, prompt=2 * sizes.prompt, clients=sizes.crowd, steps=1)
    model = llama(sizes, device).to(torch.bfloat16)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    measured = Loop(model, instructions(sizes), {"batch_size": BATCH}, block_size=None).engine.block_size
    name = f"{parameters / 1e9:.2f} · 10⁹ parameters in bf16, {BATCH} × {sizes.prompt} tokens a client"
    return f"measured block: {name}", f"{measured} clients"


def instructions(sizes: Sizes) -> fedsim.FederatedData:
    """Return clients with random prompts and answers: the second half of each sample is the answer."""
    random, length = torch.Generator().manual_seed(0), sizes.prompt
    per_client = sizes.steps * BATCH
    n = sizes.clients * per_client
    tokens = torch.randint(3, sizes.llama["vocab_size"], (n, length), generator=random, dtype=torch.int32)
    targets = torch.cat([tokens[:, 1:], torch.full((n, 1), STOP)], 1).long()
    targets[:, : length // 2] = IGNORED
    train, none = tables([per_client] * sizes.clients, n), tables([0] * sizes.clients, n)
    return fedsim.FederatedData(tokens, targets, train, none, [], pad_token=0, task=Writing(decode=str, stop=STOP))


def writing_seconds(loop: Loop, n_tokens: int, repeats: int) -> float:
    """Return the seconds of an evaluation in which every client writes so many tokens behind some of its prompts."""
    data, block = loop.engine.data, loop.dispatch()
    test = [table[:BATCH] for table in data.train]
    loop.engine.data = replace(data, test=test, task=replace(data.task, max_new_tokens=n_tokens))
    try:
        return timed(lambda: loop.test(block), loop.device, repeats)
    finally:
        loop.engine.data = data
