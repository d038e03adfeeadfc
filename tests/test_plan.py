"""What a plan does by default, and how results merge inside groups: numbers small enough for mental arithmetic."""

import pytest
import torch
from conftest import TinyAttention

import fedsim
from fedsim.adapters.bank import NEVER, Bank
from fedsim.adapters.layout import HEAD_TIER, Layout, Slot
from fedsim.models.sites import find_sites, site_weights
from fedsim.parts.aggregation import product_svd
from fedsim.parts.initialisation import lora_initial
from fedsim.parts.objectives import cross_entropy, label_logit, tier_overlap
from fedsim.parts.sharing import alone
from fedsim.plan import (
    Measure,
    Plan,
    every_slot,
    is_adapter,
    is_measured,
    measuring,
    merge_groups,
    slots_in_use,
    train_tier,
)
from fedsim.round import ClientUpdate, Horizon, Outcome, Population, ServerState

A, B = Slot("adapter", "q", "A"), Slot("adapter", "q", "B")
W, b = Slot("adapter", "head", "W"), Slot("adapter", "head", "b")
POPULATION = Population(6, (0, 1, 2, 3, 4), (5,), (10, 30, 60, 20, 0, 10))


def update(client: int, value: float, slots=(A, B, W, b)) -> ClientUpdate:
    """A client whose every number is `value`."""
    shapes = {A: (1, 3), B: (2, 1), W: (4, 3), b: (4,)}
    tensors = {slot: torch.full(shapes[slot], value) for slot in slots}
    return ClientUpdate(client, POPULATION.samples[client], tensors)


def plan(labels=None, **changes) -> Plan:
    if labels is not None:
        changes["sharing"] = lambda slot, population: torch.tensor(labels)
    return Plan(population=POPULATION, **changes)


def first_numbers(outcome: Outcome) -> dict:
    return {
        slot: {group: value.flatten()[0].item() for group, value in c.items()} for slot, c in outcome.tensors.items()
    }


def test_fedavg_is_the_default_a_mean_weighted_by_training_samples_of_every_tensor_alone():
    outcome = merge_groups(plan(), [update(0, 1.0), update(1, 2.0), update(2, 3.0)])
    assert first_numbers(outcome) == {slot: {0: pytest.approx(0.1 * 1 + 0.3 * 2 + 0.6 * 3)} for slot in (A, B, W, b)}
    assert outcome.tensors[W][0].shape == (4, 3)
    assert outcome.log == {"discarded_energy": 0}


def test_weights_are_normalised_inside_each_group():
    labels = [0, 1, 0, 1, 0, NEVER]
    outcome = merge_groups(plan(labels), [update(0, 1.0), update(1, 2.0), update(2, 8.0), update(3, 7.0)])
    expected = {0: pytest.approx((10 * 1 + 60 * 8) / 70), 1: pytest.approx((30 * 2 + 20 * 7) / 50)}
    assert first_numbers(outcome) == {slot: expected for slot in (A, B, W, b)}


def test_a_group_without_participants_gets_no_new_copy():
    outcome = merge_groups(plan([0, 1, 2, 2, 1, 0]), [update(0, 1.0), update(3, 4.0)])
    assert first_numbers(outcome)[B] == {0: 1, 2: 4}


def test_a_client_without_a_group_is_left_out():
    outcome = merge_groups(plan([0, NEVER, 0, 0, 0, NEVER]), [update(0, 1.0), update(1, 100.0)])
    assert first_numbers(outcome)[B] == {0: 1}
    nobody = merge_groups(plan([NEVER] * 6), [update(0, 1.0)])
    assert not nobody.tensors
    assert nobody.log == {}


def test_private_slots_pass_through_untouched_pair_by_pair():
    updates = [update(1, 2.0), update(3, 4.0)]
    outcome = merge_groups(plan(sharing=lambda slot, population: alone(population), combine=product_svd), updates)
    assert {slot: set(copies) for slot, copies in outcome.tensors.items()} == {slot: {1, 3} for slot in (A, B, W, b)}
    for one in updates:
        for slot, value in one.tensors.items():
            assert outcome.tensors[slot][one.client] is value
    assert outcome.log == {}


def test_a_client_alone_in_a_learnt_group_is_merged_by_the_rule_all_the_same():
    """Its product stays; its factors become U and S Vᵀ: B = (2, 2)ᵀ of length 2√2, A = (2, 2, 2)."""
    outcome = merge_groups(plan([1, 0, 0, 0, 0, 0], combine=product_svd), [update(0, 2.0)])
    torch.testing.assert_close(outcome.tensors[B][1], torch.full((2, 1), 0.5**0.5))
    torch.testing.assert_close(outcome.tensors[B][1] @ outcome.tensors[A][1], torch.full((2, 3), 4.0))


def test_slots_may_be_shared_differently_in_one_plan():
    def sharing(slot, population):
        return alone(population) if slot.site == "head" else torch.zeros(6, dtype=torch.long)

    outcome = merge_groups(plan(sharing=sharing), [update(0, 1.0), update(1, 5.0)])
    assert first_numbers(outcome) == {A: {0: 4}, B: {0: 4}, W: {0: 1, 1: 5}, b: {0: 1, 1: 5}}


def test_the_pair_merges_as_the_plans_rule_says_and_the_head_by_its_mean():
    one, other = update(0, 1.0), update(3, 4.0)
    outcome = merge_groups(plan(combine=product_svd), [one, other])
    product = outcome.tensors[B][0] @ outcome.tensors[A][0]
    torch.testing.assert_close(product, torch.full((2, 3), (10 * 1 + 20 * 16) / 30))
    assert first_numbers(outcome)[W] == {0: pytest.approx((10 * 1 + 20 * 4) / 30)}


def test_the_discarded_energy_logged_is_the_mean_over_pairs():
    """Two clients with orthogonal products of size 1 and 2: of 1² + 2² rank one keeps 2²."""
    columns, rows = torch.eye(2), torch.eye(3)
    updates = [
        ClientUpdate(client, 10, {A: rows[i : i + 1], B: (i + 1) * columns[:, i : i + 1]})
        for i, client in enumerate((0, 1))
    ]
    assert merge_groups(plan(combine=product_svd), updates).log["discarded_energy"] == pytest.approx(1 / 5)


def test_the_order_in_which_updates_arrive_does_not_change_a_bit():
    values = (3e7, 1.3, -5e6, 0.7)  # cancel, so another order of summation gives 0.25 instead of 0.37
    updates = [update(client, value) for client, value in enumerate(values)]
    one, other = merge_groups(plan(), updates), merge_groups(plan(), updates[::-1])
    assert all(torch.equal(one.tensors[slot][0], other.tensors[slot][0]) for slot in (A, B, W, b))


def test_clients_without_samples_weigh_nothing_but_count_alike_when_nobody_has_one():
    assert first_numbers(merge_groups(plan(), [update(0, 1.0), update(4, 100.0)]))[B] == {0: 1}
    assert first_numbers(merge_groups(plan(), [update(4, 100.0)]))[B] == {0: 100}


def test_merging_nothing_is_nothing():
    assert merge_groups(plan(), []) == Outcome()


def test_fedavgs_server_update_merges_and_learns_nothing():
    state = ServerState(0, Horizon(1), bank=Bank({}))
    outcome = plan().server_update(state, plan(), [update(0, 1.0)])
    assert first_numbers(outcome)[B] == {0: 1}
    assert outcome.learnt is None
    assert plan().unseen is None
    assert plan().part("probe") == plan()


def test_what_trains_is_told_by_the_slot():
    head = Slot(HEAD_TIER, "head", "W")
    assert [every_slot(slot) for slot in (A, W, head)] == [True, True, True]
    assert [train_tier("adapter", slot) for slot in (A, W, head)] == [True, True, True]
    assert [train_tier("leaf", slot) for slot in (A, W, head)] == [False, False, True]
    assert [is_adapter(slot) for slot in (A, B, W, b, head)] == [True, True, False, False, False]


def test_slots_may_be_left_out_one_by_one():
    gate = Slot("mix", "depth.0", "gate")
    used = slots_in_use(plan(active=lambda slot: slot != B), fedsim.FedIT(), [A, B, gate, Slot("other", "q", "A")])
    assert used == [A, gate]


def test_groups_of_a_plan_are_of_its_population():
    assert plan().groups(A).tolist() == [0] * 6
    assert plan([3, 1, 2, NEVER, 0, 0]).groups(A).tolist() == [3, 1, 2, NEVER, 0, 0]


def test_what_the_server_keeps_for_itself_takes_no_part_in_the_forward_pass():
    backbone = TinyAttention()
    sites = find_sites(backbone)
    for method in (fedsim.HiLoRA(lora_rank=2), fedsim.ILoRA(ranks=fedsim.LoraRanks(values=(1, 2)))):
        layout = Layout(sites, method.tiers, method.lora_rank, method.head_policy)
        initialise = getattr(method, "initial", lora_initial)
        initial = initialise(layout, torch.Generator().manual_seed(0), site_weights(backbone, sites))
        made = method.plan(ServerState(0, Horizon(9)), POPULATION)
        used = slots_in_use(made, method, initial)
        assert {slot.tier for slot in used} - {HEAD_TIER} == set(made.tiers or method.tiers)
        assert {slot.tier for slot in initial} - {slot.tier for slot in used}, "directions or control variates"


@pytest.mark.parametrize(
    ("what", "objective"), [("gradient", tier_overlap), ("fisher", cross_entropy), ("fisher_logit", label_logit)]
)
def test_a_gradient_is_of_the_plans_own_objective_and_fisher_of_the_loss_or_the_targets_logit(what, objective):
    assert measuring(plan(objective=tier_overlap, measure=Measure(what))).objective is objective
    assert measuring(plan(objective=tier_overlap)).objective is tier_overlap


def test_who_measures_has_data_and_takes_part_or_is_the_proxy_that_is_asked():
    with_proxy = Population(6, (0, 1, 2, 4), (5,), POPULATION.samples, proxy=3)
    asked = {by: Plan(population=with_proxy, measure=Measure("gradient", by)) for by in ("clients", "proxy")}
    assert [is_measured(asked["clients"], client) for client in range(6)] == [True, True, True, False, False, False]
    assert [is_measured(asked["proxy"], client) for client in range(6)] == [False, False, False, True, False, False]
    assert not is_measured(Plan(population=with_proxy), 0)
