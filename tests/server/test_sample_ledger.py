"""What samples give away under DP-SGD: ε of the sampling that runs use, and which methods it covers."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import TinyAttention, tiny_data, tiny_method
from torch import nn

import fedsim
from fedsim import methods
from fedsim.costs.devices import DeviceProfiles
from fedsim.parts.privacy import Privacy
from fedsim.parts.schedule import Schedule
from fedsim.parts.uplink import Uplink
from fedsim.plan import Measure
from fedsim.run_spec import RunSpec
from fedsim.server.sample_ledger import SAMPLES, SampleLedger
from fedsim.storage.run_folder import RunFolder, load_checkpoint

dp = pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")

from dp_accounting import rdp  # noqa: E402

ADD, REPLACE = dp.NeighboringRelation.ADD_OR_REMOVE_ONE, dp.NeighboringRelation.REPLACE_ONE
NOISY = {"batch_size": 4, "learning_rate": 1e-2, "sample_clip": 0.5, "sample_noise": 1.1}


def options(**changes):
    return fedsim.LocalTraining(**NOISY | changes)


def spec(**changes):
    common = {"method": fedsim.FedIT(lora_rank=2), "backbone": TinyAttention(), "data": tiny_data(), "rounds": 2}
    return RunSpec(**common | {"local": options()} | changes)


def uneven_data():
    """Clients of 12, 11, 10, 12, 11 training samples, and an unseen one."""
    data = tiny_data()
    return replace(data, train=[rows[: len(rows) - k % 3] for k, rows in enumerate(data.train)])


def told(result):
    return [float(row["sample_epsilon"]) for row in RunFolder(result.folder).read_table("metrics.csv")]


def direct(relation, event, n):
    return rdp.RdpAccountant(neighboring_relation=relation).compose(event, n).get_epsilon(1e-5)


def bank_of(result):
    return {key: value for key, value in load_checkpoint(result.folder)[1].items() if key.startswith("bank|")}


def test_epsilon_of_shuffled_batches_is_that_of_an_unsampled_release_for_each_epoch(tiny_run):
    """Another sample in the place of one moves one sum of an epoch by 2 C."""
    done = tiny_run(local=options(epochs=2), data=uneven_data(), rounds=3)
    expected = [direct(REPLACE, dp.GaussianDpEvent(1.1 / 2), 2 * rounds) for rounds in (1, 2, 3)]
    assert told(done) == pytest.approx(expected, rel=1e-12)
    assert done.summary["sample_epsilon"] == told(done)[-1]
    assert done.summary["delta"] == 1e-5
    assert '"neighbours": "replace one sample"' in (done.folder / "events.jsonl").read_text()


def test_epsilon_of_sampled_batches_is_the_largest_of_clients_by_their_steps_and_sizes(tiny_run):
    done = tiny_run(local=options(sample_batches="poisson", epochs=2), data=uneven_data(), rounds=3, cohort_size=3)
    steps = dict.fromkeys(range(6), 0)
    for row in RunFolder(done.folder).read_table("costs.csv"):
        steps[int(row["client"])] += int(row["local_steps"])
    each = [
        direct(ADD, dp.PoissonSampledDpEvent(4 / len(rows), dp.GaussianDpEvent(1.1)), steps[client])
        for client, rows in enumerate(uneven_data().train)
        if steps[client]
    ]
    assert told(done)[-1] == pytest.approx(max(each), rel=1e-12)
    assert len({round(found, 3) for found in each}) > 1
    assert '"neighbours": "add or remove one sample"' in (done.folder / "events.jsonl").read_text()


def test_clients_count_by_the_rounds_in_which_they_train_and_by_both_passes(tiny_run):
    few = tiny_run("few", local=options(), rounds=3, cohort_size=1)
    trained = [row["client"] for row in RunFolder(few.folder).read_table("costs.csv")]
    most = max(map(trained.count, trained))
    assert most < 3
    assert told(few)[-1] == pytest.approx(direct(REPLACE, dp.GaussianDpEvent(0.55), most), rel=1e-12)
    twice = tiny_run("ditto", local=options(), rounds=1, method=fedsim.Ditto(lora_rank=2))
    assert told(twice) == pytest.approx([direct(REPLACE, dp.GaussianDpEvent(0.55), 2)], rel=1e-12)


def test_a_share_of_the_batches_counts_as_the_epoch_that_it_is_of():
    ledger = SampleLedger(options(share=0.5), 1e-5, spec().population)
    assert [ledger._of(steps, 12) for steps in (0, 1, 3, 4, 6, 7)] == [0, 1, 1, 2, 2, 3]
    assert ledger.epsilon() == 0


@pytest.mark.parametrize("batches", ["shuffled", "poisson"])
def test_engines_agree_and_a_resumed_run_goes_on_in_the_same_bits_with_the_same_epsilon(batches, tiny_run):
    common = {"rounds": 4, "local": options(sample_batches=batches), "data": uneven_data(), "cohort_size": 2}
    common["method"] = fedsim.Ditto(lora_rank=2)
    whole, other = tiny_run("whole", **common), tiny_run("other", **common, engine="sequential")
    found, expected = bank_of(whole), bank_of(other)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
    tiny_run("parts", **common | {"rounds": 2})
    parts = tiny_run("parts", **common, resume=True)
    assert parts.digest == whole.digest
    assert told(parts) == told(whole) == told(other) == sorted(told(whole))


def test_a_checkpoint_without_what_was_given_away_is_refused(tiny_run):
    _, tensors = load_checkpoint(tiny_run(local=options(), rounds=2).folder)
    ledger = SampleLedger(options(), 1e-5, spec().population)
    for strange in ({}, {SAMPLES: -torch.ones(6, dtype=torch.long)}, {SAMPLES: torch.ones(5, dtype=torch.long)}):
        kept = {name: value for name, value in tensors.items() if name != SAMPLES} | strange
        with pytest.raises(ValueError, match="'sample_releases' is nothing that a run writes"):
            ledger.restore(kept)
    ledger.restore(tensors)
    assert ledger.releases.tolist() == [2] * 5 + [0]
    assert ledger.epsilon() == pytest.approx(direct(REPLACE, dp.GaussianDpEvent(0.55), 2), rel=1e-12)


REFUSED = {"FedSB", "ILoRA", "SCAFFOLD"}


@pytest.mark.parametrize("name", methods.__all__)
def test_methods_whose_clients_send_what_they_measure_are_refused_by_name_and_no_others(name):
    said = ""
    try:
        spec(method=tiny_method(name))
    except ValueError as error:
        said = str(error)
    if name in REFUSED:
        assert said.startswith(f"{name} has clients measure a gradient and send it; DP-SGD cannot cover that (--local")
    else:
        assert not said


@dataclass(frozen=True, kw_only=True)
class Twice(fedsim.FedIT):
    """A method that trains a second time as the same stage."""

    def plan(self, state, population):
        plan = super().plan(state, population)
        return replace(plan, second_pass=plan)


@dataclass(frozen=True, kw_only=True)
class Later(fedsim.FedIT):
    """A method that asks for gradients in its second round."""

    def plan(self, state, population):
        plan = super().plan(state, population)
        return replace(plan, measure=Measure("gradient") if state.round_index else None)


def test_two_passes_with_the_same_noise_and_later_measurements_are_refused(tiny_run):
    with pytest.raises(ValueError, match="Twice trains twice in a round as one stage, 'train'"):
        tiny_run("twice", method=Twice(lora_rank=2), local=options())
    with pytest.raises(ValueError, match="Later has clients measure a gradient"):
        tiny_run("later", method=Later(lora_rank=2), local=options())


def test_a_backbone_that_mixes_samples_is_refused_by_the_name_of_its_layer():
    class Normalised(TinyAttention):
        def __init__(self, keeps):
            super().__init__()
            self.norm = nn.BatchNorm1d(12, track_running_stats=keeps)

        def forward(self, x):
            return super().forward(self.norm(x))

    with pytest.raises(ValueError, match="'norm' normalises by the statistics of a batch, and DP-SGD"):
        spec(backbone=Normalised(False))
    assert spec(backbone=Normalised(True))


def test_cuda_graphs_are_refused():
    with pytest.raises(ValueError, match="cuda_graphs records whole batches"):
        spec(cuda_graphs=True, static_shapes=True)


def test_it_goes_with_other_options_and_schedules_and_without_noise_promises_nothing(tiny_run):
    devices = DeviceProfiles(gflops=1e-6, mbps_down=0.01, mbps_up=0.01)
    buffered = tiny_run(
        "buffered", local=options(), rounds=3, schedule=Schedule(kind="buffered", buffer=2, concurrency=3),
        devices_profile=devices, uplink=Uplink(top_k=0.5, bits=8, feedback=True),
    )  # fmt: skip
    assert 0 < told(buffered)[0] <= told(buffered)[-1] < math.inf
    free = tiny_run("free", local=options(sample_noise=0.0), rounds=1, privacy=Privacy(delta=1e-3))
    assert told(free) == [math.inf]
    assert "sample_epsilon" not in free.summary
