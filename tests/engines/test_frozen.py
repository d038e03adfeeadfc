"""A backbone whose linear weights were cast beforehand does what autocast does with the backbone itself."""

from copy import deepcopy

import pytest
import torch
from language_models import tiny_gpt2, tiny_llama
from lightning.fabric import Fabric
from test_engines_agree import CASES, CLIENTS, LAYOUT, SIZES, assignments, backbone, federation, overlap_too
from test_engines_agree_on_tokens import engines as engines_on_tokens
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim.adapters.layout import HALVES
from fedsim.data.instructions.prompts import ByteTokenizer
from fedsim.engines.batched import BatchedEngine
from fedsim.engines.sequential import SequentialEngine
from fedsim.models.causal import without_convolutions
from fedsim.models.client_module import ClientModule
from fedsim.models.frozen import cast_weights
from fedsim.plan import Plan
from fedsim.round import Population

CPU = torch.device("cpu")
LANGUAGE_MODELS = {"LLaMA": lambda: tiny_llama(258), "tied GPT-2": lambda: without_convolutions(tiny_gpt2(258))}


def cast(net: nn.Module) -> nn.Module:
    with torch.autocast("cpu", torch.bfloat16):
        return cast_weights(net, CPU)


def assert_same_bits(found, expected):
    assert [update.client for update in found] == [update.client for update in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert repr(ours.logs) == repr(theirs.logs)  # NaN as well
        for mine, yours in ((ours.tensors, theirs.tensors), (ours.measured, theirs.measured)):
            assert mine.keys() == yours.keys()
            assert all(torch.equal(mine[slot], yours[slot]) for slot in yours), ours.client


@pytest.mark.parametrize("name", ["uneven data", "gates", "everything"])
@pytest.mark.parametrize("kind", [SequentialEngine, BatchedEngine])
def test_losses_and_updates_are_autocast_s_to_the_bit(kind, name):
    case, fabric = dict(CASES[name]), Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    mixing, options = case.pop("mixing", None), {"block_size": CLIENTS} if kind is BatchedEngine else {}
    plan = Plan(population=Population(CLIENTS, tuple(range(CLIENTS)), (), SIZES), objective=overlap_too)
    expected, found = (
        kind(fabric, ClientModule(net, LAYOUT.sites, mixing=mixing), federation(), 7, **options)
        for net in (backbone(), cast(backbone()))
    )
    for work in ("local_update", "evaluate"):
        assert_same_bits(*(getattr(engine, work)(plan, [assignments(**case)]) for engine in (found, expected)))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_generated_answers_are_autocast_s_to_the_bit(name):
    from test_engines_agree_on_tokens import assignments, federation

    def updates(net):
        layout, plan, *engines = engines_on_tokens(net, federation(ByteTokenizer()))
        for engine in engines:
            engine.fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
            if isinstance(engine, BatchedEngine):
                engine.passes.fabric = engine.fabric
            yield from engine.local_update(plan, [assignments(layout)])

    net = LANGUAGE_MODELS[name]()
    assert_same_bits(list(updates(cast(net))), list(updates(net)))


def test_linear_weights_alone_are_cast_and_the_backbone_itself_stays_as_it_was():
    net = backbone()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    copy = cast(net)
    ClientModule(copy, LAYOUT.sites)
    linears = {path for path, module in net.named_modules() if isinstance(module, nn.Linear)}
    for name, tensor in cast(net).state_dict().items():
        assert tensor.dtype == (torch.bfloat16 if name.rpartition(".")[0] in linears else torch.float32), name
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert copy.cls_token.data_ptr() == net.cls_token.data_ptr(), "what is not cast is not copied"


def test_a_weight_that_an_embedding_shares_keeps_its_type():
    copy = cast(LANGUAGE_MODELS["tied GPT-2"]())
    assert copy.lm_head.weight is copy.transformer.wte.weight
    assert copy.lm_head.weight.dtype == torch.float32
    assert copy.transformer.h[0].attn.c_attn.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_weights_in_half_precision_train_and_answer_as_their_values_in_fp32_do(name, precision, dtype):
    from test_engines_agree_on_tokens import assignments, federation

    def updates(net):
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        with fabric.autocast():
            net = cast_weights(net, CPU)
        layout, plan, *engines = engines_on_tokens(net, federation(ByteTokenizer()))
        for engine in engines:
            engine.fabric = fabric
            if isinstance(engine, BatchedEngine):
                engine.passes.fabric = fabric
            yield from engine.local_update(plan, [assignments(layout)])

    stored = LANGUAGE_MODELS[name]().to(dtype)
    assert_same_bits(list(updates(stored)), list(updates(deepcopy(stored).float())))
    assert {parameter.dtype for parameter in stored.parameters()} == {dtype}, "the stored ones stay"


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_the_host_makes_no_copy_of_what_moves_to_a_device(dtype, monkeypatch):
    """The device has no memory here; it would be a GPU."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    net = LANGUAGE_MODELS["LLaMA"]().to(dtype)
    with Made() as made:
        moved = cast_weights(net, torch.device("meta"))
    assert made.on == {"meta"}
    assert {parameter.dtype for parameter in moved.parameters()} == {torch.bfloat16, torch.float32}


class Made(TorchDispatchMode):
    """Notes on which devices new memory is taken."""

    def __init__(self):
        super().__init__()
        self.on = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        given = {tensor.untyped_storage()._cdata for tensor in args if isinstance(tensor, torch.Tensor)}
        if isinstance(out, torch.Tensor) and out.untyped_storage()._cdata not in given:
            self.on.add(out.device.type)
        return out


def test_without_autocast_and_with_weights_in_few_bits_it_is_the_backbone_itself():
    net = backbone()
    assert cast_weights(net, CPU) is net
    net.head.weight = nn.Parameter(torch.zeros(3, 8, dtype=torch.int8), requires_grad=False)
    assert cast(net) is net
