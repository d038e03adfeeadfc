"""One client's training, with answers that can be worked out by hand."""

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

import fedsim
from fedsim.adapters.layout import Layout, Slot
from fedsim.engines.sequential import SequentialEngine
from fedsim.models.client_module import ClientModule
from fedsim.models.sites import find_sites
from fedsim.options import LocalTraining
from fedsim.plan import Plan
from fedsim.round import Assignment, ClientError, Population


class TwoByTwo(nn.Module):
    """logits = head(q(x)), everything the identity."""

    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(2, 2, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        for linear in (self.q_proj, self.head):
            nn.init.eye_(linear.weight)

    def forward(self, x):
        return self.head(self.q_proj(x))


A, B = Slot("adapter", "q_proj", "A"), Slot("adapter", "q_proj", "B")


def engine_and_plan(inputs, targets):
    data = fedsim.FederatedData(inputs, targets, [torch.arange(len(targets))], [torch.arange(len(targets))], ["0", "1"])
    backbone = TwoByTwo()
    module = ClientModule(backbone, find_sites(backbone, "q_proj"))
    population = Population(1, (0,), (), (len(targets),))
    return SequentialEngine(Fabric(accelerator="cpu", devices=1), module, data, seed=0), Plan(population=population)


def assignment(tensors, steps=1, trains=None, **local):
    settings = LocalTraining(optimizer="sgd", learning_rate=1.0, momentum=0.0, batch_size=8, **local)
    return Assignment(0, 0, tensors, frozenset(tensors if trains is None else trains), {}, steps, settings)


def test_one_sgd_step_moves_b_by_the_gradient_worked_out_by_hand():
    # x = (1, 0), label 0, logits (1, 0): softmax p = e/(e+1); dL/dlogits = (p-1, 1-p); dL/dB = dL/dlogits · (A x)
    engine, plan = engine_and_plan(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    start = {A: torch.tensor([[1.0, 0.0]]), B: torch.zeros(2, 1)}
    (update,) = engine.local_update(plan, [[assignment(start)]])
    p = torch.e / (torch.e + 1)
    torch.testing.assert_close(update.tensors[B], torch.tensor([[1 - p], [p - 1]]))
    torch.testing.assert_close(update.tensors[A], start[A])  # B was zero, so A had no gradient
    assert update.n_samples == 1
    assert update.logs["train_loss"] == pytest.approx(-torch.log(torch.tensor(p)).item())


def test_the_assignment_is_left_untouched():
    engine, plan = engine_and_plan(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    start = {A: torch.ones(1, 2), B: torch.zeros(2, 1)}
    engine.local_update(plan, [[assignment(start)]])
    assert not start[B].any()
    assert not start[B].requires_grad


def test_only_slots_that_the_plan_trains_come_back():
    engine, plan = engine_and_plan(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    start = {A: torch.ones(1, 2), B: torch.zeros(2, 1)}
    (update,) = engine.local_update(plan, [[assignment(start, trains={B})]])
    assert set(update.tensors) == {B}


def test_a_client_that_trains_nothing_is_only_evaluated():
    engine, plan = engine_and_plan(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    (update,) = engine.local_update(plan, [[assignment({}, steps=3)]])
    assert update.tensors == {}
    assert update.logs["personal.accuracy"] == pytest.approx(0.5)
    assert "train_loss" not in update.logs


def test_gradients_are_clipped_over_all_tensors_of_the_client():
    engine, plan = engine_and_plan(torch.tensor([[100.0, 0.0]]), torch.tensor([1]))
    start = {A: torch.tensor([[1.0, 0.0]]), B: torch.zeros(2, 1)}
    (update,) = engine.local_update(plan, [[assignment(start, clip_norm=0.5)]])
    moved = sum((update.tensors[slot] - start[slot]).square().sum() for slot in start)
    assert moved.sqrt().item() == pytest.approx(0.5, rel=1e-4)


def test_a_failure_names_client_round_and_stage():
    engine, plan = engine_and_plan(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    with pytest.raises(ClientError, match="client 0 failed in round 1, stage 'train'"):
        engine.local_update(plan, [[assignment({A: torch.ones(1, 5), B: torch.zeros(2, 1)})]])


def test_the_backbone_never_changes():
    engine, plan = engine_and_plan(torch.randn(8, 2), torch.zeros(8, dtype=torch.long))
    before = {name: value.clone() for name, value in engine.module.backbone.state_dict().items()}
    engine.local_update(plan, [[assignment({A: torch.ones(1, 2), B: torch.zeros(2, 1)}, steps=5)]])
    for name, value in engine.module.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_layout_counts_what_the_engine_trains():
    backbone = TwoByTwo()
    layout = Layout(find_sites(backbone, "q_proj"), ("adapter",), 1, "tier")
    assert {str(slot): tuple(shape) for slot, shape in layout.shapes.items()} == {
        "adapter/q_proj/A": (1, 2),
        "adapter/q_proj/B": (2, 1),
        "adapter/head/W": (2, 2),
    }
