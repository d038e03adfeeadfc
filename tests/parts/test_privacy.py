"""Clipping and noise of clients' changes: on tensors, in whole runs, and which methods they can protect."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import TinyAttention, tiny_data, tiny_method

import fedsim
from fedsim import methods
from fedsim.adapters.bank import Bank
from fedsim.adapters.layout import Slot
from fedsim.parts.privacy import Guard, Privacy, PrivateMean
from fedsim.parts.server_optimizer import ServerOptimizer
from fedsim.parts.uplink import Uplink, sent_by
from fedsim.plan import equally
from fedsim.round import Assignment, ClientUpdate
from fedsim.run_spec import RunSpec
from fedsim.storage.run_folder import RunFolder, load_checkpoint

A, B = Slot("adapter", "q", "A"), Slot("adapter", "q", "B")
TWO = fedsim.LoraRanks(values=(2,))
FREE = Privacy(clip=math.inf, noise_multiplier=0.0)


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def change(seed=0, length=1.0):
    random = drawn(seed)
    tensors = {A: torch.randn(3, 20, generator=random), B: torch.randn(30, 3, generator=random)}
    return {slot: length * tensor for slot, tensor in tensors.items()}


def norm(tensors, units):
    return math.sqrt(
        sum(float((units.get(slot, 1) * tensor).double().square().sum()) for slot, tensor in tensors.items())
    )


@pytest.mark.parametrize("length", [0.01, 100.0])
def test_all_slots_together_keep_one_norm_in_the_servers_units(length):
    units, whole = {A: 4.0}, change(length=length)
    clipped = Guard(clip=2.0, units=units).clipped(whole)
    assert norm(clipped, units) == pytest.approx(min(2.0, norm(whole, units)))
    factors = {slot: clipped[slot] / whole[slot] for slot in whole}
    assert max(f.max() for f in factors.values()) - min(f.min() for f in factors.values()) < 1e-6, "one factor"


@pytest.mark.parametrize(
    "uplink", [Uplink(), Uplink(bits=2), Uplink(top_k=0.2, bits=4, feedback=True)], ids=["plain", "2 bits", "feedback"]
)
def test_what_arrives_is_no_longer_than_the_clip_norm_whatever_the_encoding(uplink):
    received, trained = change(1), change(2, length=5.0)
    back = change(3) if uplink.feedback else {}
    work = Assignment(0, 0, received, frozenset(trained), {}, 1, fedsim.LocalTraining(), kept=back)
    after = sent_by(uplink, Guard(clip=1.5, units={B: 3.0}), ClientUpdate(0, 5, trained), work, [A, B], 0, "train")
    arrived = {slot: after.tensors[slot] - received[slot] for slot in received}
    assert 0.5 < norm(arrived, {B: 3.0}) <= 1.5 * (1 + 1e-5)


def test_a_clients_own_noise_has_the_deviation_that_is_asked_for_in_the_servers_units():
    zero = {A: torch.zeros(300, 300), B: torch.zeros(300, 300)}
    noised = Guard(clip=1.0, noise=2.0, units={A: 4.0}).released(zero, drawn())
    assert float(noised[A].std()) == pytest.approx(0.5, rel=0.02)
    assert float(noised[B].std()) == pytest.approx(2.0, rel=0.02)
    assert abs(float(noised[B].mean())) < 5 * 2.0 / 300


def test_noise_on_the_mean_is_that_of_the_sum_over_the_expected_number():
    """4,000 draws of 150 entries: the deviation to 1 %, no bias, no correlation between rounds."""
    bank, expected = Bank(change()), {A: 10.0, B: 2.5}
    means = [PrivateMean(bank, [], expected, 0.8, drawn(seed)) for seed in range(4000)]
    for slot, m in expected.items():
        draws = torch.stack([mean.noise[slot] for mean in means])
        assert float(draws.std()) == pytest.approx(0.8 / m, rel=0.01)
        assert draws.mean(0).abs().max() < 5 * 0.8 / m / 4000**0.5
        assert abs(float((draws[1:] * draws[:-1]).mean())) < 0.01 * (0.8 / m) ** 2


def test_who_is_not_there_counts_as_no_change_and_an_empty_round_is_noise_alone():
    held = change()
    mean = PrivateMean(Bank(held), [ClientUpdate(0, 1, change(1))], {A: 4.0, B: 4.0}, 0.0, drawn())
    (weight,) = mean.weights([ClientUpdate(0, 1)], A).tolist()
    assert weight == 1 / 4
    torch.testing.assert_close(mean(A, 0, weight * change(1)[A]), held[A] + (change(1)[A] - held[A]) / 4)
    alone = PrivateMean(Bank(held), [], {A: 4.0, B: 4.0}, 1.0, drawn())
    found = alone.rest()
    assert all(torch.equal(found[slot][0], held[slot] + alone.noise[slot]) for slot in held)


@dataclass(frozen=True)
class Equal:
    """Another method with clients of equal weight."""

    method: object

    def __getattr__(self, name):
        return getattr(object.__getattribute__(self, "method"), name)

    def plan(self, state, population):
        plan = self.method.plan(state, population)
        return replace(
            plan, weights=equally, second_pass=plan.second_pass and replace(plan.second_pass, weights=equally)
        )


def uneven_data(**changes):
    """Clients of unequal numbers of samples."""
    data = tiny_data(**changes)
    return replace(data, train=[rows[: len(rows) - k % 3] for k, rows in enumerate(data.train)])


LIMITS = {
    "all": {"method": fedsim.FedIT(lora_rank=2)},
    "a cohort": {"method": fedsim.FedIT(lora_rank=2), "cohort_size": 3},
    "units": {"method": fedsim.FFALoRA(ranks=TWO, lora_alpha=8.0, head_policy="local"), "cohort_size": 3},
    "depths": {"method": fedsim.Straggler(lora_rank=2, capabilities=fedsim.Capabilities(values=(1, 2)))},
    "two passes": {"method": fedsim.Ditto(lora_rank=2), "cohort_size": 4},
    "svd": {"method": fedsim.FedSVD(ranks=TWO)},
    "middle": {"method": fedsim.FedSB(ranks=TWO, start="random"), "cohort_size": 3},
    "options": {
        "method": fedsim.FedIT(lora_rank=2),
        "server": ServerOptimizer(optimizer="adam", rate=0.01),
        "uplink": Uplink(top_k=0.5, bits=8, feedback=True),
    },
}


@pytest.mark.parametrize("name", LIMITS)
def test_without_noise_and_limit_it_is_the_plain_method_with_equal_weights_to_the_bit(name, tiny_run):
    common = LIMITS[name] | {"data": uneven_data(), "rounds": 2}
    plain = tiny_run("plain", **common | {"method": Equal(common["method"])})
    assert tiny_run("free", **common, privacy=FREE).digest == plain.digest


def bank_of(result, tier="adapter"):
    tensors = load_checkpoint(result.folder)[1]
    return {key: value for key, value in tensors.items() if key.startswith(f"bank|{tier}") and key.endswith("rows")}


def test_a_round_moves_the_mean_by_the_clip_norm_at_most(tiny_run):
    common = {"method": fedsim.FedIT(lora_rank=2, lora_alpha=8.0), "rounds": 1}
    whole, short = tiny_run("a", **common), tiny_run("b", **common, privacy=Privacy(clip=0.05, noise_multiplier=0.0))
    spec = RunSpec(backbone=TinyAttention(), data=tiny_data(), **common)
    initial = {str(slot): value for slot, value in spec.initial_slots().items()}
    moved = [
        math.sqrt(
            sum(float((t[0] - initial[key.split("|")[1]]).double().square().sum()) for key, t in bank_of(r, "").items())
        )
        for r in (whole, short)
    ]
    assert moved[0] > 0.1
    assert 0 < moved[1] <= 0.05 * (1 + 1e-4)


def test_the_noise_of_a_round_is_added_once_and_differs_from_round_to_round(tiny_run):
    """A learning rate of nearly nothing: what the server holds is a sum of noise."""
    still = {"local": fedsim.LocalTraining(batch_size=4, learning_rate=1e-12), "method": fedsim.FedIT(lora_rank=8)}
    noise = {"privacy": Privacy(clip=0.5, noise_multiplier=2.0), "cohort_size": 2, "cohort_sampling": "poisson"}
    runs = [tiny_run(f"{rounds}", rounds=rounds, **still, **noise) for rounds in (1, 4)]
    spec = RunSpec(backbone=TinyAttention(), data=tiny_data(), rounds=1, **still)
    initial = {str(slot): value for slot, value in spec.initial_slots().items()}
    one, four = (
        torch.cat([(t[0] - initial[key.split("|")[1]]).flatten() for key, t in bank_of(r, "").items()]) for r in runs
    )
    assert float(one.std()) == pytest.approx(0.5 * 2.0 / 2, rel=0.1), "clip x multiplier / clients"
    assert float(four.std()) == pytest.approx(0.5 * 2.0 / 2 * 4**0.5, rel=0.1)


@pytest.mark.parametrize("local", [False, True], ids=["central", "local"])
def test_engines_agree_and_a_resumed_run_goes_on_in_the_same_bits_with_epsilon_by_round(local, tiny_run):
    privacy = Privacy(clip=0.1, noise_multiplier=0.5, local=local)
    common = {"rounds": 4, "privacy": privacy, "cohort_size": 1, "cohort_sampling": "poisson"}
    whole, other = tiny_run("whole", **common), tiny_run("other", **common, engine="sequential")
    for key, value in bank_of(whole, "").items():
        torch.testing.assert_close(bank_of(other, "")[key], value, rtol=1e-4, atol=1e-5)
    tiny_run("parts", **common | {"rounds": 2})
    assert tiny_run("parts", **common, resume=True).digest == whole.digest
    rows = RunFolder(whole.folder).read_table("metrics.csv")
    spent = [float(row["epsilon"]) for row in rows]
    assert 0 < spent[0] <= spent[1] <= spent[2] <= spent[3] == whole.summary["epsilon"]
    assert "0" in [row["clients"] for row in rows], "a round with no clients"
    assert RunFolder(tiny_run("parts", **common, resume=True).folder).read_table("metrics.csv") == rows


def test_noise_found_for_epsilon_fits_and_binds_the_run_to_its_rounds(tiny_run):
    common = {"privacy": Privacy(clip=0.1, epsilon=8.0)}
    done = tiny_run(rounds=3, **common)
    assert 7.8 < done.summary["epsilon"] <= 8.0
    with pytest.raises(ValueError, match="cannot go on to 4"):
        tiny_run(rounds=4, **common, resume=True)


CENTRAL = {
    "ClusteredFedAvg": "has a server update that looks at single updates",
    "FDLoRA": "has a server update that looks",
    "FedALT": "has clients upload private slots",
    "FedExLoRA": "has a server update that looks",
    "FedLEASE": "has clients upload private slots",
    "FedMomentum": "has a server update that looks",
    "FedRotLoRA": "has a server update that looks",
    "FedSB": "has clients measure a gradient",
    "FedTreeLoRA": "has clients upload private slots",
    "FLoRA": "has a server update that looks",
    "FlexLoRA": "merges products",
    "HetLoRA": "counts as zero",
    "HiLoRA": "merges products",
    "ILoRA": "has clients measure a gradient",
    "LoRAFAIR": "merges products",
    "Local": "sends nothing",
    "RaFLoRA": "merges products",
    "Ravan": "has a server update that looks",
    "SCAFFOLD": "has clients measure a gradient",
}
LOCAL = {"FedALT", "FedLEASE", "FedSB", "FedTreeLoRA", "ILoRA", "Local", "SCAFFOLD"}


@pytest.mark.parametrize("local", [False, True], ids=["central", "local"])
@pytest.mark.parametrize("name", methods.__all__)
def test_methods_are_private_or_refused_by_name_with_the_reason(name, local):
    privacy = Privacy(clip=1.0, noise_multiplier=1.0, local=local)
    said, reason = "", CENTRAL.get(name, "") if not local or name in LOCAL else ""
    try:
        RunSpec(method=tiny_method(name), backbone=TinyAttention(), data=tiny_data(), rounds=2, privacy=privacy)
    except ValueError as error:
        said = str(error)
    assert said.startswith(f"{name} {reason}") if reason else not said, said
    assert not said or ("--privacy.local" in said) == (name not in LOCAL)


def test_clusters_are_found_in_noised_updates_where_clients_add_the_noise(tiny_run):
    """HiLoRA runs with local noise, its probes included, and holds something else than without."""
    common = {"method": fedsim.HiLoRA(lora_rank=2), "rounds": 4, "data": tiny_data(6, unseen=(5,))}
    plain = tiny_run("plain", **common)
    noised = tiny_run("noised", **common, privacy=Privacy(clip=0.1, noise_multiplier=0.01, local=True))
    assert noised.digest != plain.digest
    assert noised.summary["epsilon"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0.0, "noise_multiplier": 1.0}, "clip is 0.0; it must be positive"),
        ({"clip": math.nan, "noise_multiplier": 1.0}, "privacy.clip is nan; it must be a number or None"),
        ({"clip": "1", "noise_multiplier": 1.0}, "privacy.clip is '1'; it must be a number or None"),
        ({"clip": 1.0, "noise_multiplier": -1.0}, "noise_multiplier is -1.0; it must be 0 or more"),
        ({"clip": 1.0, "noise_multiplier": math.inf}, "noise_multiplier is inf"),
        ({"clip": 1.0, "noise_multiplier": 1.0, "delta": 0.0}, "delta is 0.0; it must lie between 0 and 1"),
        ({"clip": 1.0, "noise_multiplier": 1.0, "delta": 1.0}, "delta is 1.0"),
        ({"clip": 1.0, "epsilon": 0.0}, "epsilon is 0.0; it must be positive"),
        ({"clip": 1.0, "epsilon": 8.0, "noise_multiplier": 1.0}, "both given; choose one"),
        ({"clip": 1.0}, "without any noise"),
        ({"noise_multiplier": 1.0}, "clip is None"),
        ({"local": True}, "clip is None"),
        ({"clip": math.inf, "noise_multiplier": 1.0}, "choose a finite one"),
        ({"clip": math.inf, "epsilon": 1.0}, "choose a finite one"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Privacy(**options)


def test_local_noise_with_error_feedback_is_refused():
    with pytest.raises(ValueError, match="mostly noise"):
        RunSpec(
            method=fedsim.FedIT(lora_rank=2), backbone=TinyAttention(), data=tiny_data(), rounds=1,
            privacy=Privacy(clip=1.0, noise_multiplier=1.0, local=True), uplink=Uplink(top_k=0.5, feedback=True),
        )  # fmt: skip
