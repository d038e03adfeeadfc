"""Passes are installed once and repeated; recorded ones read nothing but memory into which every block is copied.

Without a GPU no CUDA graph can be recorded. `make_fx` records the same: the operations of one pass on the tensors that
it met, none of the Python around them.
"""

from functools import partial

import pytest
import torch
from lightning.fabric import Fabric
from test_engines_agree import (
    CASES,
    CLIENTS,
    LAYOUT,
    SIZES,
    assert_same,
    assignments,
    backbone,
    federation,
    overlap_too,
)
from torch.fx.experimental.proxy_tensor import make_fx

import fedsim
from fedsim.engines import passes
from fedsim.engines.batched import BatchedEngine
from fedsim.engines.sequential import SequentialEngine
from fedsim.models.client_module import ClientModule
from fedsim.plan import Measure, Plan
from fedsim.round import Population

ALWAYS = ("dropout",)
"""Cases that the default tests record too: `make_fx` takes seconds for each."""
POPULATION = Population(CLIENTS, tuple(range(CLIENTS)), (), SIZES)


@pytest.fixture
def recorded(monkeypatch) -> list[int]:
    """Record by `make_fx`; how often each recorded pass was repeated."""
    repeated: list[int] = []

    def record(work, pool):
        graph, number = make_fx(work)(), len(repeated)
        repeated.append(0)

        def repeat():
            repeated[number] += 1
            with torch.no_grad():
                return graph()

        return repeat

    monkeypatch.setattr(passes, "record", record)
    return repeated


def engine(is_recorded=True, mixing=None) -> BatchedEngine:
    module = ClientModule(backbone(), LAYOUT.sites, mixing=mixing)
    fabric = Fabric(accelerator="cpu", devices=1)
    return BatchedEngine(fabric, module, federation(), 7, 6, is_static=True, is_recorded=is_recorded)


def updates(engine, plan, blocks):
    return {update.client: update for update in engine.local_update(plan, blocks)}


def of_clients(case):
    """What changes assignments in a case."""
    return {name: change for name, change in case.items() if name != "mixing"}


def blocks(case, factor=1.0):
    """The clients of a case as a block, and again as it would be two rounds later, from other copies."""
    made = assignments(**of_clients(case))
    later = [
        fedsim.round.Assignment(
            **{**vars(a), "round_index": 3, "tensors": {slot: factor * t for slot, t in a.tensors.items()}}
        )
        for a in made
    ]
    return made, later


def is_recordable(name):
    """Whether anything is trained, and not by DP-SGD, which CUDA graphs are refused with."""
    return name != "nothing trained" and not any(a.local.sample_clip for a in assignments(**of_clients(CASES[name])))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in filter(is_recordable, CASES)],
)
def test_what_is_recorded_trains_later_blocks_as_their_clients_do_one_by_one(name, recorded):
    """The later block has other copies, batches and dropout: what was not copied would be that of the first one."""
    case = CASES[name]
    measure = Measure("gradient") if "corrections" in case else None
    plan = Plan(population=POPULATION, objective=overlap_too, measure=measure)
    ours = engine(mixing=case.get("mixing"))
    module = ClientModule(backbone(), LAYOUT.sites, mixing=case.get("mixing"))
    reference = SequentialEngine(ours.fabric, module, federation(), 7)
    both = blocks(case, 0.8)
    found = [updates(ours, plan, [block]) for block in both]  # the later block may not change what the first one gave
    for block, of_block in zip(both, found, strict=True):
        assert_same(of_block, updates(reference, plan, [block]))
    assert sum(recorded) > len(recorded) > 0


def test_what_cannot_be_recorded_is_said_once_and_trains_all_the_same(monkeypatch):
    def record(work, pool):
        raise RuntimeError("operation not supported\nand much more")

    monkeypatch.setattr(passes, "record", record)
    plan = Plan(population=POPULATION)
    ours = engine()
    with pytest.warns(UserWarning, match=r"No CUDA graph.*\(operation not supported\).*--cuda-graphs") as caught:
        found = updates(ours, plan, [assignments()])
    assert len(caught) == 1
    assert_same(found, updates(engine(is_recorded=False), plan, [assignments()]), tolerance=1e-7)


def test_memory_that_runs_out_while_a_pass_is_recorded_halves_it(monkeypatch):
    def record(work, pool):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(passes, "record", record)
    ours = engine()
    with pytest.warns(UserWarning, match="Out of memory with 5 clients in one pass; from here on 2"):
        updates(ours, Plan(population=POPULATION), [assignments()])
    assert (ours.pass_size, ours.passes.is_recorded) == (2, True)


def test_modules_are_installed_again_only_when_other_clients_come(monkeypatch):
    installed, real = [], ClientModule.install
    monkeypatch.setattr(ClientModule, "install", lambda *a, **k: (installed.append(1), real(*a, **k)))
    made = [assignment for assignment in assignments() if SIZES[assignment.client] == 16]
    steps = made[0].steps
    engine(is_recorded=False).local_update(Plan(population=POPULATION), [made])
    n_tests = 2  # passes of at most eight test samples, of five and ten
    assert len(installed) == 1 + n_tests < steps


@pytest.mark.parametrize("objective", [partial(fedsim.parts.objectives.proximal, 0.5)])
def test_objectives_that_rounds_make_anew_have_one_name(objective):
    again = partial(objective.func, *objective.args)
    assert passes.in_words(objective) == passes.in_words(again) != passes.in_words(partial(objective.func, 0.25))
    unhashable = partial(objective.func, [])
    assert passes.in_words(unhashable) is unhashable


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"static_shapes": False}, "batched engine with static shapes"),
        ({"engine": "sequential"}, "batched engine with static shapes"),
        ({}, r"needs a GPU, and there is none.*--cuda-graphs"),
    ],
)
def test_graphs_are_refused_where_nothing_can_be_recorded(tiny_run, monkeypatch, options, message):
    monkeypatch.setenv("LT_ACCELERATOR", "cpu")
    with pytest.raises(ValueError, match=message):
        tiny_run("refused", cuda_graphs=True, **options)
