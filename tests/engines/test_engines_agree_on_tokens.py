"""The engines' one contract, for language models: training on answers, and what clients write when they are tested."""

import math
import os
from dataclasses import replace

import pytest
import torch
from language_models import tiny_gpt2, tiny_llama
from lightning.fabric import Fabric
from test_engines_agree import assert_same

import fedsim
from fedsim.adapters.layout import Layout
from fedsim.data.instructions.generation_task import Generation
from fedsim.data.instructions.prompts import ByteTokenizer, tokens_of
from fedsim.engines.batched import BatchedEngine
from fedsim.engines.sequential import SequentialEngine
from fedsim.models.causal import causal_backbone, causal_tokenizer, without_convolutions
from fedsim.models.client_module import ClientModule
from fedsim.models.sites import find_sites
from fedsim.plan import Plan
from fedsim.round import Assignment, Population

needs_data = pytest.mark.skipif(not os.environ.get("FEDSIM_DATA"), reason="FEDSIM_DATA names no folder of data sets")
SIZES, TESTS = (7, 4, 1, 0, 6), (3, 5, 0, 1, 4)
CLIENTS = len(SIZES)
LETTERS = "abcdefghijklmnopqrstuvwxyz "


def federation(tokenizer, beams: int = 1, max_new_tokens: int = 5) -> fedsim.FederatedData:
    """Clients with few or no samples, whose prompts and answers have one to nine letters."""
    random = torch.Generator().manual_seed(0)
    count = sum(SIZES) + sum(TESTS)

    def texts() -> list[str]:
        sizes = torch.randint(1, 10, (count,), generator=random).tolist()
        return ["".join(LETTERS[k] for k in torch.randint(0, 26, (n,), generator=random)) for n in sizes]

    tokens = tokens_of(texts(), texts(), tokenizer, 24)
    tables = torch.randperm(count, generator=random).split([*SIZES, *TESTS])
    task = Generation(tokenizer.decode, tokenizer.stop, max_new_tokens, beams)
    common = {"pad_token": tokenizer.stop, "task": task}
    return fedsim.FederatedData(tokens.inputs, tokens.targets, tables[:CLIENTS], tables[CLIENTS:], (), **common)


def assignments(layout: Layout, **changes) -> list[Assignment]:
    """Every client with random adapters of its own; `changes` maps a field of `local` to a function of the client."""
    made = []
    for client in range(CLIENTS):
        random = torch.Generator().manual_seed(client)
        tensors = {slot: 0.2 * torch.randn(shape, generator=random) for slot, shape in layout.shapes.items()}
        local = fedsim.LocalTraining(batch_size=3, learning_rate=1e-2)
        local = replace(local, **{name: of(client) for name, of in changes.items()})
        steps = -(-SIZES[client] // local.batch_size) * 2
        made.append(Assignment(client, 1, tensors, frozenset(tensors), {}, steps, local))
    return made


def engines(backbone, data, **options):
    layout = Layout(find_sites(backbone), ("adapter",), 3, "global")
    module, fabric = ClientModule(backbone, layout.sites), Fabric(accelerator="cpu", devices=1)
    plan = Plan(population=Population(CLIENTS, tuple(range(CLIENTS)), (), SIZES))
    batched = BatchedEngine(fabric, module, data, 7, CLIENTS, **options)
    return layout, plan, SequentialEngine(fabric, module, data, 7), batched


BACKBONES = {"LLaMA": lambda: tiny_llama(258), "GPT-2": lambda: without_convolutions(tiny_gpt2(258))}
CASES = {
    "plain": {},
    "dropout and decay": {"dropout": lambda client: 0.2 * (client % 3), "weight_decay": lambda client: 0.1 * client},
    "batch sizes": {"batch_size": lambda client: 1 + client % 3},
    "clipped samples": {
        "sample_clip": lambda client: 0.5 + 0.1 * client,
        "sample_noise": lambda client: 0.5,
        "dropout": lambda client: 0.2,
    },
}


def test_under_dp_sgd_the_sample_is_a_text_however_many_tokens_it_has():
    """One step on three texts is the mean of the steps on each, where a plain step weighs them by tokens."""
    data = federation(ByteTokenizer())
    layout, plan, sequential, batched = engines(tiny_llama(258), data)
    whole = replace(assignments(layout)[0], steps=1)
    plain = fedsim.LocalTraining(batch_size=7, learning_rate=1.0, optimizer="sgd", momentum=0.0)

    def moved(engine, local, rows) -> torch.Tensor:
        engine.data = replace(data, train=[rows, *list(data.train)[1:]])
        (update,) = engine.local_update(plan, [[replace(whole, local=local)]])
        return torch.cat([(update.tensors[slot] - whole.tensors[slot]).flatten() for slot in layout.shapes])

    rows, apart = data.train[0], replace(plain, sample_clip=math.inf, sample_noise=0.0)
    mean = torch.stack([moved(sequential, plain, row) for row in rows.split(1)]).mean(0)
    for engine in (sequential, batched):
        torch.testing.assert_close(moved(engine, apart, rows), mean, rtol=1e-4, atol=1e-6)
    assert (moved(sequential, plain, rows) - mean).norm() > 0.01 * mean.norm()


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", BACKBONES)
def test_a_block_learns_and_writes_what_its_clients_do_one_by_one(kind, case, is_static):
    layout, plan, sequential, batched = engines(BACKBONES[kind](), federation(ByteTokenizer()), is_static=is_static)
    assert not any(slot.factor in "Wb" for slot in layout.shapes)
    block = assignments(layout, **CASES[case])
    for work in ("local_update", "evaluate"):
        expected = {update.client: update for update in getattr(sequential, work)(plan, [block])}
        found = {update.client: update for update in getattr(batched, work)(plan, [block])}
        assert_same(found, expected, tolerance=3e-4)  # where a gradient is small, AdamW's step shows how it was rounded
        kind_of_test = "personal" if work == "local_update" else "global"
        tested = {name.partition(".")[2] for name in found[0].logs if name.startswith(kind_of_test)}
        assert tested == set(Generation.columns)
    assert not any("after" in name for name in found[2].logs)


def test_a_clients_loss_is_the_mean_over_all_answer_tokens_of_its_batch():
    """One step on a whole client, against transformers' own loss for labels."""
    backbone, data = tiny_llama(258), federation(ByteTokenizer())
    rows = data.train[0]
    inputs, targets = data.inputs[rows].long(), data.targets[rows].long()
    # transformers shifts labels itself: the label of a place is its own token, so ours move one to the right
    labels = torch.cat([torch.full((len(rows), 1), -100), targets], dim=1)
    whole = torch.cat([inputs, torch.zeros(len(rows), 1, dtype=torch.long)], dim=1)
    expected = float(backbone(whole, labels=labels).loss)
    layout, plan, *both = engines(backbone, data)
    for engine in both:
        (first, *_) = assignments(layout, batch_size=lambda client: len(rows))
        untrained = {slot: t * (slot.factor == "A") for slot, t in first.tensors.items()}
        (update,) = engine.local_update(plan, [[replace(first, tensors=untrained, steps=1)]])
        assert update.logs["train_loss"] == pytest.approx(expected, rel=1e-5)


def written(engine, plan, blocks) -> dict[str, list[int]]:
    """What the engine's module was asked, and wrote: by prompt, so that it does not matter who asked when."""
    heard, module = {}, engine.module
    generate = module.generate

    def listening(prompts, lengths, *options):
        answers = generate(prompts, lengths, *options)
        for prompt, length, answer in zip(prompts.tolist(), lengths.tolist(), answers.tolist(), strict=True):
            heard[tuple(prompt[:length])] = answer
        return answers

    module.generate = listening
    engine.evaluate(plan, blocks)
    del module.generate
    return heard


@needs_data
@pytest.mark.parametrize("beams", [1, 3])
def test_batched_generation_writes_what_each_client_writes_alone_token_for_token(beams):
    tokenizer = causal_tokenizer("stories260k", "<s>")
    data = federation(tokenizer, beams, max_new_tokens=24)
    layout, plan, sequential, batched = engines(causal_backbone("stories260k"), data)
    block = assignments(layout)
    alone, together = written(sequential, plan, [block]), written(batched, plan, [block])
    assert len(alone) == sum(TESTS)
    assert together == alone
    plain = [replace(a, tensors={slot: 0 * t for slot, t in a.tensors.items()}) for a in block]
    assert sum(answer != alone[prompt] for prompt, answer in written(batched, plan, [plain]).items()) > 9
