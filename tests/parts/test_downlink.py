"""Sparse downloads: bytes against an encoding that is really packed, FLASC against formulas, and whole runs."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import Stopped, TinyAttention, tiny_data
from test_uplink import packed

import fedsim
from fedsim.adapters.layout import Slot
from fedsim.costs.devices import DeviceProfiles
from fedsim.distributed.workers import Workers
from fedsim.experiments.export import restored
from fedsim.parts.downlink import Downlink
from fedsim.parts.privacy import Privacy
from fedsim.parts.schedule import Schedule
from fedsim.parts.server_optimizer import ServerOptimizer
from fedsim.parts.uplink import Uplink
from fedsim.server.aggregator import Aggregator
from fedsim.storage.run_folder import load_checkpoint

QUARTER = Downlink(top_k=0.25)
SIZES = [2 * 12, 12 * 2] * 4 + [3 * 12, 3]
"""FedIT's A and B of LoRA rank 2 at four maps, and the classifier."""


def bytes_of(result, column: str) -> list[int]:
    """Of every round, a client's bytes, which are the same for all of them."""
    rows = [row.split(",") for row in (result.folder / "costs.csv").read_text().splitlines()]
    place, found = rows[0].index(column), {}
    for row in rows[1:]:
        found.setdefault(int(row[0]), set()).add(int(row[place]))
    assert all(len(sizes) == 1 for sizes in found.values())
    return [found[index].pop() for index in sorted(found)]


def dispatched(result, downlink: Downlink):
    """What every client would be handed in the next round of a recorded run, and what the server holds."""
    _, aggregator, state = restored(result.folder)
    sparse = Aggregator(aggregator.workload, Workers(), downlink=downlink)
    plan = aggregator.dispatch(state, [0]).plan
    blocks = sparse.dispatch(state, list(range(5))).blocks
    return plan, state, {a.client: a for block in blocks for a in block}


def test_a_download_is_the_largest_entries_of_all_shared_copies_in_as_many_bytes_as_are_billed(tiny_run):
    result = tiny_run(downlink=QUARTER)
    _, state, assignments = dispatched(result, QUARTER)
    held = {slot: state.bank.read(slot, torch.tensor([0]))[0] for slot in assignments[0].tensors}
    for assignment in assignments.values():
        flat, dense = (torch.cat([t.flatten() for t in of.values()]) for of in (assignment.tensors, held))
        assert int((flat != 0).sum()) == math.ceil(0.25 * sum(SIZES))
        assert torch.equal(flat[flat != 0], dense[flat != 0])
        assert dense[flat == 0].abs().max() <= flat[flat != 0].abs().min()
        length = packed(assignment.tensors, 32, of_bits=(sum(SIZES) - 1).bit_length())
        assert bytes_of(result, "bytes_down") == [0, length, length], "what everyone starts with follows from the seed"
        for slot, withheld in assignment.withheld.items():
            assert torch.equal(assignment.tensors[slot] + withheld, held[slot])
    assert QUARTER.bytes(SIZES) == length < 4 * sum(SIZES) / 3


def test_a_download_of_everything_is_the_plain_method_bit_for_bit(tiny_run):
    plain, off = tiny_run("plain"), tiny_run("off", downlink=Downlink())
    encoded = tiny_run("encoded", downlink=Downlink(top_k=0.99999))
    assert off.digest == plain.digest
    before, after = (load_checkpoint(run.folder)[1] for run in (plain, encoded))
    for key in [key for key in before if key.startswith("bank|")]:
        assert torch.equal(before[key], after[key]), key
    assert bytes_of(encoded, "bytes_down") == bytes_of(off, "bytes_down") == bytes_of(plain, "bytes_down")


def top(values: dict[Slot, torch.Tensor], share: float) -> dict[Slot, torch.Tensor]:
    """FLASC's top-k: a threshold over all entries together."""
    flat = torch.cat([value.flatten() for value in values.values()]).abs()
    limit = flat.sort(descending=True).values[math.ceil(share * len(flat)) - 1]
    return {slot: torch.where(value.abs() >= limit, value, 0.0) for slot, value in values.items()}


def trained(net: TinyAttention, given: dict[Slot, torch.Tensor], inputs, targets, rate: float):
    """One step of SGD on plain tensors: the net's weights plus B A, its classifier plus W and b."""
    held = {slot: value.clone().requires_grad_() for slot, value in given.items()}
    tensor = {(slot.site, slot.factor): value for slot, value in held.items()}
    x = inputs
    for depth, block in enumerate(net.blocks):
        names = {name: f"blocks.{depth}.{name}" for name in block}
        change = {name: tensor[site, "B"] @ tensor[site, "A"] for name, site in names.items()}
        y = {name: F.linear(x, block[name].weight + change[name], block[name].bias) for name in names}
        x = x + torch.tanh(y["q_proj"]) * y["v_proj"]
    logits = F.linear(x, net.head.weight + tensor["head", "W"], net.head.bias + tensor["head", "b"])
    found = torch.autograd.grad(F.cross_entropy(logits, targets), list(held.values()))
    return {slot: given[slot] - rate * gradient for slot, gradient in zip(held, found, strict=True)}


def test_fedit_with_both_encodings_is_flasc(tiny_run):
    """Two rounds by hand: sparse weights are received, dense ones trained, and the largest changes sent."""
    local = fedsim.LocalTraining(batch_size=64, learning_rate=0.5, optimizer="sgd", momentum=0.0)
    common = {"downlink": QUARTER, "uplink": Uplink(top_k=0.5), "local": local}
    results = [tiny_run(f"{rounds}", rounds=rounds, **common) for rounds in (1, 2)]
    states = [restored(result.folder)[2] for result in results]
    slots = [slot for slot in states[0].bank.initial if slot.tier == "adapter"]
    first, second = ({s: state.bank.read(s, torch.tensor([0]))[0] for s in slots} for state in states)
    data, net = tiny_data(), TinyAttention()
    sparse, changes = top(first, 0.25), []
    for client in range(5):
        given = data.batch(data.train[client])
        moved = trained(net, sparse, *given, rate=0.5)
        changes.append(top({slot: moved[slot] - sparse[slot] for slot in slots}, 0.5))
    for slot in slots:
        expected = first[slot] + sum(change[slot] for change in changes) / 5
        torch.testing.assert_close(second[slot], expected, rtol=1e-5, atol=1e-6)
    moved = [float((second[slot] - first[slot]).abs().max()) for slot in slots]
    assert len([size for size in moved if size > 1e-3]) > 5
    assert bytes_of(results[1], "bytes_up") == [Uplink(top_k=0.5).bytes(SIZES)] * 2
    assert bytes_of(results[1], "bytes_down") == [0, QUARTER.bytes(SIZES)]


OTHERS = {
    "hilora": fedsim.HiLoRA(lora_rank=2),
    "ditto": fedsim.Ditto(lora_rank=2),
    "fdlora": fedsim.FDLoRA(lora_rank=2, personal_share=0.3, fusion_share=0.3, sync_period=1),
    "flora": fedsim.FLoRA(ranks=fedsim.LoraRanks(values=(1, 2))),
    "scaffold": fedsim.SCAFFOLD(lora_rank=2),
    "fed_sb": fedsim.FedSB(ranks=fedsim.LoraRanks(values=(2, 3))),
    "fedsa_lora": fedsim.FedSALoRA(lora_rank=2, lora_alpha=4),
}
LONG = ("ditto", "fdlora", "flora")
"""Each has another one like it among those that are tested by default."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in OTHERS]
)
def test_other_methods_train_from_sparse_downloads_and_resume_to_the_same_bits(tiny_run, stop_after, monkeypatch, name):
    common = {"method": OTHERS[name], "cohort_size": 3, "rounds": 4, "downlink": Downlink(top_k=0.5)}
    plain = tiny_run("plain", **common | {"downlink": Downlink()})
    whole = tiny_run("whole", **common)
    stop_after(2)
    with pytest.raises(Stopped):
        tiny_run("stopped", **common)
    monkeypatch.undo()
    assert tiny_run("stopped", resume=True, **common).digest == whole.digest
    assert whole.digest != plain.digest
    assert whole.summary["bytes.up"] == plain.summary["bytes.up"]


def test_engines_agree_on_sparse_downloads(tiny_run):
    states = []
    for engine in ("batched", "sequential"):
        result = tiny_run(engine, engine=engine, downlink=QUARTER, server=ServerOptimizer(optimizer="avgm", rate=0.5))
        states.append(load_checkpoint(result.folder)[1])
    for key in [key for key in states[0] if key.endswith("|rows")]:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=1e-4, atol=1e-5)


def test_the_second_pass_starts_from_what_the_first_one_received(tiny_run):
    result = tiny_run(method=fedsim.Ditto(lora_rank=2), rounds=2)
    _, aggregator, state = restored(result.folder)
    method = fedsim.Ditto(lora_rank=2)
    workload = replace_method(aggregator, method)
    sparse = Aggregator(workload, Workers(), downlink=QUARTER)
    first, second = (
        {a.client: a for block in sparse.dispatch(state, [0, 1, 2], part=part).blocks for a in block}
        for part in (None, "second_pass")
    )
    for client, assignment in second.items():
        shared = first[client].tensors.keys() & assignment.tensors.keys()
        assert shared
        assert all(torch.equal(assignment.tensors[slot], first[client].tensors[slot]) for slot in shared)
        assert all(bool((first[client].tensors[slot] == 0).any()) for slot in shared if slot.factor == "A")
        own = [value for slot, value in first[client].tensors.items() if slot not in shared and slot.factor == "A"]
        assert own
        assert all(bool((value != 0).all()) for value in own), "what stays with a client is whole"


def replace_method(aggregator: Aggregator, method):
    """The workload of a recorded run with the method itself, whose plans have a second pass."""
    workload = aggregator.workload
    workload.method = method
    return workload


def test_simulated_devices_take_less_time_for_less(tiny_run):
    slow = {"devices_profile": DeviceProfiles(gflops=1.0, mbps_down=0.01, mbps_up=10.0), "rounds": 2}
    plain, sparse = tiny_run("plain", **slow), tiny_run("sparse", **slow, downlink=Downlink(top_k=0.1))
    assert sparse.summary["simulated_seconds"] < 0.5 * plain.summary["simulated_seconds"]


def test_clients_that_arrive_late_had_the_sparse_download_of_their_version(tiny_run):
    common = {
        "devices_profile": DeviceProfiles(gflops=1e-6, gflops_sigma=0.5, mbps_down=0.01, mbps_up=0.01),
        "schedule": Schedule(kind="buffered", buffer=2, concurrency=4),
        "rounds": 6,
        "method": fedsim.FedIT(lora_rank=2),
    }
    plain = tiny_run("plain", **common)
    encoded = tiny_run("encoded", **common, downlink=Downlink(top_k=0.99999))
    sparse = tiny_run("sparse", **common, downlink=QUARTER)
    before, after = (load_checkpoint(run.folder)[1] for run in (plain, encoded))
    for key in [key for key in before if key.startswith("bank|adapter") and key.endswith("rows")]:
        torch.testing.assert_close(after[key], before[key], rtol=1e-6, atol=1e-7)
    assert 0 < sparse.summary["bytes.down"] < 0.5 * plain.summary["bytes.down"]


def test_privacy_that_changes_nothing_changes_nothing_of_sparse_rounds(tiny_run):
    """Clients have equally many samples, so that all weigh alike anyway."""
    plain = tiny_run("plain", downlink=QUARTER)
    private = tiny_run("private", downlink=QUARTER, privacy=Privacy(clip=1e6, noise_multiplier=0.0))
    before, after = (load_checkpoint(run.folder)[1] for run in (plain, private))
    for key in [key for key in before if key.startswith("bank|") and key.endswith("rows")]:
        torch.testing.assert_close(after[key], before[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("top_k", [0.0, 1.5])
def test_a_share_that_cannot_be_is_refused(top_k):
    with pytest.raises(ValueError, match=rf"top_k is {top_k}; it must lie in \(0, 1\] \(--downlink"):
        Downlink(top_k=top_k)


def test_a_run_with_another_download_is_not_resumed(tiny_run):
    tiny_run(downlink=QUARTER)
    with pytest.raises(ValueError, match="downlink"):
        tiny_run(downlink=replace(QUARTER, top_k=0.5), resume=True)
