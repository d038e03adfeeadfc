"""A middle factor H between B and A: what it changes, and what it does not, whatever the method."""

from dataclasses import dataclass, replace

import pytest
import torch
from conftest import TinyAttention, tiny_data

import fedsim
from fedsim.adapters.layout import Slot
from fedsim.experiments.export import as_adapter, export_adapter, held_by_client, restored
from fedsim.parts.server_optimizer import ServerOptimizer
from fedsim.run_spec import RunSpec
from fedsim.storage.run_folder import load_checkpoint

SMALL = {"rounds": 2, "cohort_size": 3}


def with_middle(method: type, trains: str, scaled: str | None = "A") -> type:
    """The method with an H in its first tier, which trains those of its slots whose factor is named."""

    @dataclass(frozen=True, kw_only=True)
    class Middle(method):
        middle_tiers = method.tiers[:1]
        scaled_factor = scaled

        def plan(self, state, population):
            plan = super().plan(state, population)
            return replace(plan, trains=lambda slot: plan.trains(slot) and slot.factor in trains)

    return Middle


@pytest.mark.parametrize("engine", ["batched", "sequential"])
@pytest.mark.parametrize("method", [fedsim.FedIT, fedsim.HiLoRA, fedsim.FedSALoRA, fedsim.FedProx])
def test_an_h_that_stays_the_identity_changes_no_bit(tiny_run, engine, method):
    options = {"engine": engine, **SMALL, "evaluate_every": 2}
    plain = tiny_run("plain", method=method(lora_rank=2, lora_alpha=3), **options)
    found = tiny_run("middle", method=with_middle(method, "ABWb")(lora_rank=2, lora_alpha=3), **options)
    before, after = (load_checkpoint(run.folder)[1] for run in (plain, found))
    rows = [key for key in before if key.endswith("|rows")]
    assert rows
    for key in rows:
        assert torch.equal(before[key], after[key]), key
    assert found.summary["global.mean"] == plain.summary["global.mean"]
    assert found.summary["bytes.up"] == plain.summary["bytes.up"]


def test_a_clients_h_is_the_leading_part_of_the_servers_and_the_mean_is_of_what_adapters_do(tiny_run):
    """LoRA ranks 1, 2 and 3 under α/R: the server's product is the mean of the clients'."""
    method = with_middle(fedsim.FFALoRA, "H", "H")(ranks=fedsim.LoraRanks(values=(1, 2, 3)), lora_alpha=4.0)
    made: dict[Slot, torch.Tensor] = {}

    def initial(self, layout, generator, weights):
        made.update({slot: torch.randn(shape, generator=generator) for slot, shape in layout.shapes.items()})
        return dict(made)

    type(method).initial = initial
    result = tiny_run("ranks", method=method, **SMALL | {"rounds": 1, "cohort_size": None})
    model, aggregator, state = restored(result.folder)
    ranks = [1, 2, 3, 1, 2]
    place = next(slot for slot in model.initial if slot.factor == "H")
    copy, at = state.bank.read(place, torch.tensor([0]))[0], model.initial
    assert copy.shape == (3, 3)
    left, right = at[place._replace(factor="B")], at[place._replace(factor="A")]
    for client, rank in enumerate(ranks):
        held, _ = held_by_client(model, aggregator, state, client)
        assert held.tensors[place].shape == (rank, rank)
        torch.testing.assert_close(held.tensors[place] * 4 / rank, copy[:rank, :rank])
        change = as_adapter(model, held).changes[place.site].product()
        torch.testing.assert_close(change, left[:, :rank] @ copy[:rank, :rank] @ right[:rank], rtol=1e-4, atol=1e-5)
    up = 4 * sum(4 * rank**2 for rank in ranks)  # two maps at two depths
    heads = 5 * 4 * (3 * 12 + 3)
    assert result.summary["bytes.up"] in (up, up + heads)


@pytest.mark.parametrize("engine", ["batched", "sequential"])
def test_h_is_trained_kept_resumed_and_leaves_as_part_of_b(tiny_run, tmp_path, engine):
    method = with_middle(fedsim.FedIT, "ABHWb")(lora_rank=2)
    whole = tiny_run("whole", method=method, engine=engine, **SMALL)
    tiny_run("parts", method=method, engine=engine, **SMALL | {"rounds": 1})
    assert tiny_run("parts", method=method, engine=engine, **SMALL, resume=True).digest == whole.digest
    model, aggregator, state = restored(whole.folder)
    held, _ = held_by_client(model, aggregator, state, 0)
    middle = [slot for slot in held.tensors if slot.factor == "H"]
    assert len(middle) == 4
    assert all((held.tensors[slot] - torch.eye(2)).abs().max() > 1e-3 for slot in middle)
    changes = as_adapter(model, held).changes
    for slot in middle:
        factors = [held.tensors[slot._replace(factor=factor)] for factor in "BHA"]
        torch.testing.assert_close(changes[slot.site].product(), torch.linalg.multi_dot(factors))
    export_adapter(whole.folder, tmp_path / "adapter", client=0)


@pytest.mark.parametrize("method", [fedsim.HiLoRA, fedsim.FlexLoRA, fedsim.RaFLoRA])
def test_a_merge_of_products_with_an_h_that_is_trained_is_refused(method):
    options = {"ranks": fedsim.LoraRanks(values=(2,))} if hasattr(method(), "ranks") else {"lora_rank": 2}
    with pytest.raises(ValueError, match=r"Middle merges products of B and A.*Let H be frozen"):
        RunSpec(method=with_middle(method, "ABHWb")(**options), backbone=TinyAttention(), data=tiny_data(), rounds=2)


def test_a_server_optimizer_steps_h_too(tiny_run):
    method = with_middle(fedsim.FedIT, "ABHWb")(lora_rank=2)
    plain = tiny_run("plain", method=method, **SMALL)
    found = tiny_run("avgm", method=method, **SMALL, server=ServerOptimizer(optimizer="avgm", rate=1.0, beta1=0.0))
    before, after = (load_checkpoint(run.folder)[1] for run in (plain, found))
    middle = [key for key in before if key.startswith("bank|adapter") and key.endswith("/H|rows")]
    assert len(middle) == 4
    for key in middle:
        torch.testing.assert_close(after[key], before[key])
    assert any("/H|rows" in key and not key.startswith("bank|adapter") for key in after), "its moment is kept"
