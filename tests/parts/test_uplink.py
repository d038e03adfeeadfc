"""Encodings of what clients send: against an encoding that is really packed, and in whole runs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TinyAttention, tiny_data

import fedsim
from fedsim.adapters.layout import Slot
from fedsim.distributed.workers import Workers
from fedsim.parts.uplink import Uplink, kept_back
from fedsim.run_spec import RunSpec
from fedsim.server.aggregator import Aggregator
from fedsim.server.workload import Workload
from fedsim.storage.run_folder import load_checkpoint

A, B = Slot("adapter", "q", "A"), Slot("adapter", "q", "B")


def change(seed=0):
    random = torch.Generator().manual_seed(seed)
    return {A: torch.randn(3, 20, generator=random), B: 0.1 * torch.randn(30, 3, generator=random)}


def arrived(uplink, tensors, seed=0):
    return uplink.encoded(tensors, torch.Generator().manual_seed(seed))


def packed(tensors, bits, of_bits) -> int:
    """The length of what is really written: levels, places by the shorter of two ways, scales."""
    flat = torch.cat([t.flatten() for t in tensors.values()]).numpy()
    places = np.flatnonzero(flat)
    values = np.unpackbits(np.arange(len(places), dtype=">u4").view(np.uint8)).reshape(-1, 32)[:, 32 - bits :]
    length = len(np.packbits(values.ravel()))
    if len(places) < len(flat):
        numbers = np.unpackbits(places.astype(">u4").view(np.uint8)).reshape(-1, 32)[:, 32 - of_bits :]
        assert (numbers.reshape(-1, of_bits) @ (1 << np.arange(of_bits)[::-1]) == places).all()
        length += min(len(np.packbits(numbers.ravel())), len(np.packbits(flat != 0)))
    return length + (4 * len(tensors) if bits < 32 else 0)


@pytest.mark.parametrize("top_k", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("bits", [4, 8, 32])
def test_bytes_are_the_length_of_a_real_encoding(top_k, bits):
    uplink, tensors = Uplink(top_k=top_k, bits=bits), change()
    sparse = arrived(Uplink(top_k=top_k), tensors)
    assert uplink.bytes([t.numel() for t in tensors.values()]) == packed(sparse, bits, of_bits=8), "150 entries"


def test_the_largest_entries_of_all_tensors_together_arrive_as_they_are():
    tensors = change()
    found = arrived(Uplink(top_k=0.2), tensors)
    flat, after = (torch.cat([t.flatten() for t in held.values()]) for held in (tensors, found))
    assert int((after != 0).sum()) == math.ceil(0.2 * 150)
    assert torch.equal(after[after != 0], flat[after != 0])
    assert flat[after == 0].abs().max() <= after[after != 0].abs().min()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_without_bias_and_within_one_level(bits):
    tensors = change()
    uplink, n = Uplink(bits=bits), 4000
    draws = [arrived(uplink, tensors, seed) for seed in range(n)]
    for slot, value in tensors.items():
        level = value.abs().max() / (2 ** (bits - 1) - 1)
        found = torch.stack([draw[slot] for draw in draws])
        assert ((found - value).abs() <= level * 1.0001).all()
        assert ((found.mean(0) - value).abs() < 5 * level / (2 * n**0.5)).all()
        assert len(found.unique()) <= 2**bits - 1


@pytest.mark.parametrize("engine", ["batched", "sequential"])
def test_sixteen_bits_are_half_the_bytes_of_nearly_the_same_run(tiny_run, engine):
    plain, coded = tiny_run("a", engine=engine), tiny_run("b", engine=engine, uplink=Uplink(bits=16))
    before, after = (load_checkpoint(run.folder)[1] for run in (plain, coded))
    for key in [key for key in before if key.startswith("bank|") and key.endswith("rows")]:
        torch.testing.assert_close(after[key], before[key], rtol=1e-3, atol=1e-3)
    assert coded.digest != plain.digest
    scales = 3 * 5 * 10 * 4
    assert coded.summary["bytes.up"] == plain.summary["bytes.up"] / 2 + scales, "rounds, clients, tensors"


def test_a_quarter_in_eight_bits_is_counted_sent_and_resumed_and_private_slots_are_as_they_were(tiny_run):
    uplink = Uplink(top_k=0.25, bits=8, feedback=True)
    common = {"method": fedsim.FedSALoRA(lora_rank=2, head_policy="local"), "rounds": 4}
    plain, whole = tiny_run("plain", **common), tiny_run("whole", **common, uplink=uplink)
    sizes, rounds, clients = [24] * 4, 4, 5
    assert plain.summary["bytes.up"] == rounds * clients * 4 * sum(sizes), "A of two maps at two depths"
    assert whole.summary["bytes.up"] == rounds * clients * uplink.bytes(sizes)
    assert uplink.bytes(sizes) == 24 + 12 + 16
    tiny_run("parts", **common | {"rounds": 2}, uplink=uplink)
    assert tiny_run("parts", **common, uplink=uplink, resume=True).digest == whole.digest
    one = [tiny_run(name, **common | {"rounds": 1}, uplink=u) for name, u in (("c", Uplink()), ("d", uplink))]
    before, after = (load_checkpoint(run.folder)[1] for run in one)
    private = [key for key in before if key.startswith("bank|adapter") and "/B|rows" in key]
    assert private
    assert all(torch.equal(before[key], after[key]) for key in private), "B never leaves its client"


def test_what_is_kept_back_and_what_arrives_are_the_change(tiny_run):
    """One client: what the server holds and what the client kept back make what it trained."""
    data = {"rounds": 1, "cohort_size": 1}
    plain, coded = tiny_run("a", **data), tiny_run("b", **data, uplink=Uplink(top_k=0.1, feedback=True))
    before, after = (load_checkpoint(run.folder)[1] for run in (plain, coded))
    kept = [key for key in after if key.startswith("bank|kept:") and key.endswith("rows")]
    assert len(kept) == 10
    for key in kept:
        own = key.replace("kept:", "")
        torch.testing.assert_close(after[own][0] + after[key][-1], before[own][0])


def test_what_was_kept_back_is_handed_out_to_who_encodes_again_and_not_for_probes_tests_and_tuning():
    spec = RunSpec(
        method=fedsim.ClusteredFedAvg(lora_rank=2, warmup_share=0),
        backbone=TinyAttention(),
        data=tiny_data(),
        rounds=2,
        uplink=Uplink(top_k=0.5, feedback=True),
    )
    workload = Workload(spec.method, spec.population, spec.layout, spec.initial_slots(), spec.local)
    aggregator, state = Aggregator(workload, Workers()), spec.state(1, workload.initial)
    state = replace(state, learnt={"labels": torch.zeros(6, dtype=torch.long)})
    slot = next(slot for slot in workload.initial if slot.tier == "adapter")
    state.bank.write(kept_back(slot), {0: torch.ones(workload.initial[slot].shape)}, 6, 0)

    def kept(**how):
        return {slot for block in aggregator.dispatch(state, [0], **how).blocks for a in block for slot in a.kept}

    assert kept() == kept(part="second_pass") == {slot}
    assert kept(part="probe") == kept(epochs=5) == kept(test_sizes={0: 1}) == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0.0}, r"top_k is 0.0; it must lie in \(0, 1\]"),
        ({"bits": 1}, "bits is 1; it must lie in 2 … 16, or be 32"),
        ({"feedback": True}, "feedback is on and everything is sent as it is"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Uplink(**options)
