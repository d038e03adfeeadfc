"""The server's optimisers against torch's own and against the paper's algorithm in numpy; whole runs with them."""

import numpy as np
import pytest
import torch

import fedsim
from fedsim import methods
from fedsim.parts.server_optimizer import ServerOptimizer
from fedsim.storage.run_folder import load_checkpoint

SHAPE = (3, 4)


def steps(optimizer, means):
    """The copies of a slot that starts at zero, round by round."""
    x, m, v = torch.zeros(SHAPE), torch.zeros(SHAPE), torch.full(SHAPE, optimizer.tau**2)
    found = []
    for mean in means:
        x, m, v = optimizer.step(x, mean(x), m, v)
        v = torch.zeros(SHAPE) if v is None else v
        found.append(x)
    return found


def pulls(n=5):
    """Functions from what the server holds to what clients send back."""
    targets = torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(0))
    return [lambda x, target=target: x + 0.3 * (target - x) for target in targets]


def torch_steps(kind, means, **options):
    x = torch.zeros(SHAPE, requires_grad=True)
    optimizer, found = kind([x], **options), []
    for mean in means:
        x.grad = x.detach() - mean(x.detach())
        optimizer.step()
        found.append(x.detach().clone())
    return found


def test_fedavgm_is_sgd_with_momentum_on_the_negative_change():
    found = steps(ServerOptimizer(optimizer="avgm", rate=0.5, beta1=0.8), pulls())
    torch.testing.assert_close(found, torch_steps(torch.optim.SGD, pulls(), lr=0.5, momentum=0.8))


def test_fedadagrad_without_momentum_is_adagrad_from_tau_squared():
    found = steps(ServerOptimizer(optimizer="adagrad", rate=0.1, beta1=0.0, tau=0.01), pulls())
    options = {"lr": 0.1, "initial_accumulator_value": 1e-4, "eps": 0.01}
    torch.testing.assert_close(found, torch_steps(torch.optim.Adagrad, pulls(), **options))


@pytest.mark.parametrize("kind", ["adam", "yogi", "adagrad"])
def test_the_others_are_algorithm_2_of_the_paper(kind):
    options = {"rate": 0.05, "beta1": 0.7, "beta2": 0.9, "tau": 0.02}
    found, x, m, v = steps(ServerOptimizer(optimizer=kind, **options), pulls()), np.zeros(SHAPE), 0.0, 0.02**2
    for copy, mean in zip(found, pulls(), strict=True):
        delta = mean(torch.from_numpy(x)).double().numpy() - x
        m = 0.7 * m + 0.3 * delta
        v = {
            "adam": 0.9 * v + 0.1 * delta**2,
            "yogi": v - 0.1 * delta**2 * np.sign(v - delta**2),
            "adagrad": v + delta**2,
        }[kind]
        x = x + 0.05 * m / (np.sqrt(v) + 0.02)
        np.testing.assert_allclose(copy.numpy(), x, rtol=1e-4, atol=1e-6)


def test_sgd_at_rate_one_is_federated_averaging_to_the_bit(tiny_run):
    plain = tiny_run("plain", method=fedsim.FedIT(lora_rank=2))
    stepped = tiny_run("stepped", method=fedsim.FedIT(lora_rank=2), server=ServerOptimizer(optimizer="avgm", beta1=0.0))
    found, expected = (load_checkpoint(run.folder)[1] for run in (stepped, plain))
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    assert stepped.summary["bytes.down"] == plain.summary["bytes.down"]


@pytest.mark.parametrize("kind", ["avgm", "adam", "yogi", "adagrad"])
def test_moments_go_on_after_a_resumption_and_change_what_is_learnt(tiny_run, kind):
    common = {"method": fedsim.FedProx(lora_rank=2), "server": ServerOptimizer(optimizer=kind, rate=0.05), "rounds": 4}
    whole, plain = tiny_run("whole", **common), tiny_run("plain", method=common["method"], rounds=4)
    assert whole.digest != plain.digest
    tiny_run("parts", **common | {"rounds": 2})
    assert tiny_run("parts", **common, resume=True).digest == whole.digest
    moments = {key for key in load_checkpoint(whole.folder)[1] if "server_" in key and key.endswith("rows")}
    assert len(moments) == (1 if kind == "avgm" else 2) * 10, (
        "of A and B of two maps at two depths and of the classifier"
    )


REFUSED: dict[str, str] = {
    "FedALT": "has a server update of its own",
    "FedExLoRA": "has a server update of its own",
    "FedMomentum": "has a server update of its own",
    "FedSB": "has a server update of its own",
    "FedSVD": "has a server update of its own",
    "FLoRA": "has a server update of its own",
    "Ravan": "has a server update of its own",
    "FDLoRA": "has Nesterov steps of its own",
    "FedLEASE": "has experts, each one copy at several places",
    "FedTreeLoRA": "has experts of whoever is outside",
}
PRODUCTS = {"FlexLoRA", "HiLoRA", "ILoRA", "LoRAFAIR", "RaFLoRA"}


@pytest.mark.parametrize("name", [name for name in methods.__all__ if name != "Local"])
def test_methods_take_steps_or_are_refused_by_name_with_the_reason(name, tiny_run):
    kind, small = getattr(methods, name), {"lora_rank": 2}
    if hasattr(kind(), "ranks"):
        small = {"ranks": fedsim.LoraRanks(values=(1, 2))}
    if hasattr(kind(), "capabilities"):
        small["capabilities"] = fedsim.Capabilities(values=(1, 2))
    small |= {"FedHeLLo": {"strategy": "gd"}, "PF2LoRA": {"client_rank": 1}}.get(name, {})
    reason, said = REFUSED.get(name, "merges products"), None
    try:
        tiny_run(method=kind(**small), rounds=2, server=ServerOptimizer(optimizer="adam", rate=0.01))
    except ValueError as error:
        said = str(error)
    if name in {*REFUSED, *PRODUCTS} or said:
        assert said.startswith(f"{name} {reason}")
        assert said.endswith("(--server.optimizer none).")


CLUSTERED = {"method": fedsim.ClusteredFedAvg(lora_rank=2, n_clusters=2, warmup_share=0), "rounds": 3}
"""One round of warm-up, two in clusters."""


def test_clusters_at_rate_one_without_momentum_are_plain_means_to_the_bit(tiny_run):
    """Also in the round in which clusters begin: there is no copy of a cluster's yet to step from."""
    plain = tiny_run("plain", **CLUSTERED)
    stepped = tiny_run("stepped", **CLUSTERED, server=ServerOptimizer(optimizer="avgm", beta1=0.0))
    found, expected = (load_checkpoint(run.folder)[1] for run in (stepped, plain))
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


def test_a_clusters_momentum_starts_at_zero_where_the_cluster_begins(tiny_run):
    """After round 2, the first inside, a cluster's m is that round's change and has nothing of the warm-up's."""
    options, slot = {"server": ServerOptimizer(optimizer="avgm", beta1=0.5)}, "adapter/blocks.0.q_proj/B"
    after = load_checkpoint(tiny_run("after", **CLUSTERED | {"rounds": 2}, **options).folder)[1]

    def of(state, tier):
        groups = state[f"bank|{tier}{slot}|groups"].tolist()
        return dict(zip(groups, state[f"bank|{tier}{slot}|rows"], strict=True))

    begun = load_checkpoint(tiny_run("begun", **CLUSTERED | {"rounds": 1}, **options).folder)[1]
    assert set(of(begun, "")) == {0, 1, 2}, "the warm-up's model and two clusters'"
    assert set(of(begun, "server_m:")) == {0}, "no momentum of a cluster yet"
    for cluster in (1, 2):
        moved = of(after, "")[cluster] - of(begun, "")[cluster]
        torch.testing.assert_close(of(after, "server_m:")[cluster], moved)


def test_who_merges_nothing_has_no_mean_to_step_to(tiny_run):
    with pytest.raises(ValueError, match="Local merges nothing"):
        tiny_run(method=fedsim.Local(lora_rank=2), server=ServerOptimizer(optimizer="avgm"))


@pytest.mark.parametrize(("options", "message"), [({"rate": 0.0}, "rate is 0.0"), ({"beta2": 1.0}, "beta2 is 1.0")])
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ServerOptimizer(optimizer="adam", **options)
