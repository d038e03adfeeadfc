"""Directions, clusters and routes of HiLoRA's server on a bank with planted updates: 3 groups in 48 dimensions."""

import pytest
import torch

from fedsim.adapters.bank import NEVER, Bank
from fedsim.adapters.layout import Slot
from fedsim.parts.clustering import column_basis, unit_direction
from fedsim.parts.directions import TIER, SubspaceClustering, changes, tier_overlaps
from fedsim.parts.routing import admit_by_route, route_by_members, with_routed
from fedsim.parts.sharing import alone, everyone
from fedsim.round import ClientUpdate, Population

N_GROUPS, OUTPUTS, INPUTS, RANK = 3, 48, 40, 4
SITES = ("blocks.0.q", "blocks.0.v", "blocks.1.q")
POPULATION = Population(15, tuple(range(12)), (12, 13, 14), (10,) * 15)
TRUTH = torch.arange(15) % N_GROUPS


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def broadcast(site: str) -> torch.Tensor:
    """What all clients start from: an orthonormal B, as after an aggregation."""
    return column_basis(random(OUTPUTS, RANK, seed=100 + SITES.index(site)))


def group_direction(site: str, group: int) -> torch.Tensor:
    return column_basis(random(N_GROUPS, OUTPUTS, RANK, seed=200 + SITES.index(site)))[group]


def update(client: int, round_index: int = 0, tier: str = "root", step: float = 0.1) -> ClientUpdate:
    """A client whose B moved from the broadcast (from zero in another tier) along its group's direction, and noise."""
    tensors = {}
    for s, site in enumerate(SITES):
        noise = 0.3 * random(OUTPUTS, RANK, seed=1000 * round_index + 10 * client + s) / OUTPUTS**0.5
        rotation = torch.linalg.qr(random(RANK, RANK, seed=7 * client + round_index))[0]
        start = broadcast(site) if tier == "root" else 0
        moved = (group_direction(site, int(TRUTH[client])) + noise) @ rotation
        tensors[Slot(tier, site, "A")] = random(RANK, INPUTS, seed=client)
        tensors[Slot(tier, site, "B")] = start + step * moved
    return ClientUpdate(client, 10, tensors)


@pytest.fixture
def bank() -> Bank:
    shapes = {"A": (RANK, INPUTS), "B": (OUTPUTS, RANK)}
    tiers = ("root", "cluster", TIER)
    bank = Bank({Slot(t, s, f): torch.zeros(shape) for t in tiers for s in SITES for f, shape in shapes.items()})
    for site in SITES:
        bank.write(Slot("root", site, "B"), {0: broadcast(site)}, 1, 0)
    return bank


def sample(bank: Bank, clustering: SubspaceClustering, cohorts) -> None:
    """Let cohorts take part, one a round."""
    for round_index, cohort in enumerate(cohorts):
        fresh = clustering.smoothed(bank, [update(client, round_index) for client in cohort])
        for slot, copies in fresh.items():
            bank.write(slot, copies, POPULATION.n_clients, round_index)


def labels_of(bank: Bank, clustering: SubspaceClustering, cohorts):
    """Cluster in the last of these rounds, whose directions are not in the bank yet."""
    *before, last = cohorts
    sample(bank, clustering, before)
    updates = [update(client, len(before)) for client in last]
    return clustering.cluster(bank, clustering.smoothed(bank, updates), updates, POPULATION)


def test_planted_groups_are_found_exactly_under_partial_participation(bank):
    cohorts = [range(0, 6), range(6, 12), range(0, 12, 2), range(1, 12, 2)]
    labels, log = labels_of(bank, SubspaceClustering(), cohorts)
    assert labels.tolist() == [*TRUTH[:12].tolist(), NEVER, NEVER, NEVER]
    assert log["n_clusters"] == N_GROUPS
    assert log["clients"] == list(range(12))
    assert log["labels"] == TRUTH[:12].tolist()
    assert log["rule_margin"] > 0.1


def test_subspaces_are_compared_on_the_cpu_where_a_gpu_is_asked_for_and_there_is_none(bank, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    labels, log = labels_of(bank, SubspaceClustering(on_gpu=True), [range(12)])
    expected, expected_log = labels_of(bank, SubspaceClustering(), [range(12)])
    assert torch.equal(labels, expected)
    assert log == expected_log


def test_the_literal_factor_buries_what_the_change_shows(bank):
    cohorts = [range(12)]
    _, change = labels_of(bank, SubspaceClustering(directions="change"), cohorts)
    _, factor = labels_of(bank, SubspaceClustering(directions="factor"), cohorts)
    assert torch.tensor(change["distances"]).max() > 0.8
    assert torch.tensor(factor["distances"]).max() < 0.05


def test_k_means_on_all_that_clients_changed_finds_planted_groups_among_the_last_participants(bank):
    def moved(client):
        """One basis for all: B along its group's direction, A and a classifier by its group too."""
        group, noise = int(TRUTH[client]), random(OUTPUTS, RANK, seed=client) / OUTPUTS
        tensors = {Slot("root", s, "B"): broadcast(s) + 0.1 * (group_direction(s, group) + noise) for s in SITES}
        tensors |= {Slot("root", site, "A"): 0.1 * random(RANK, INPUTS, seed=50 + group) for site in SITES}
        return ClientUpdate(client, 10, tensors)

    labels, log = SubspaceClustering(by="updates").cluster(bank, {}, [moved(c) for c in range(10)], POPULATION)
    assert log["clients"] == list(range(10))
    assert labels.tolist() == [0, 1, 2] * 3 + [0] + [NEVER] * 5
    assert log["n_clusters"] == N_GROUPS
    assert max(log["silhouettes"], key=lambda pair: pair[1])[0] == N_GROUPS


def test_k_means_is_misled_by_the_bases_of_updates_where_subspaces_are_not(bank):
    everyone_took_part = [range(12)]
    by_subspaces, _ = labels_of(bank, SubspaceClustering(), everyone_took_part)
    by_updates, _ = labels_of(bank, SubspaceClustering(by="updates"), everyone_took_part)
    assert by_subspaces[:12].tolist() == [0, 1, 2] * 4
    assert by_updates[:12].tolist() != [0, 1, 2] * 4


def test_clients_never_sampled_have_no_cluster(bank):
    labels, _ = labels_of(bank, SubspaceClustering(), [range(0, 6), range(2, 9)])
    assert labels[:9].tolist() == TRUTH[:9].tolist()
    assert labels[9:].tolist() == [NEVER] * 6


def test_unseen_clients_are_not_clustered_even_with_a_direction(bank):
    labels, log = labels_of(bank, SubspaceClustering(), [(*range(9), 12), range(9)])
    assert labels[12] == NEVER
    assert log["clients"] == list(range(9))


def test_two_clients_are_too_few_to_divide(bank):
    labels, log = labels_of(bank, SubspaceClustering(), [[3, 4]])
    assert labels[[3, 4]].tolist() == [0, 0]
    assert int((labels == NEVER).sum()) == 13
    assert log["n_clusters"] == 1


def test_the_first_direction_is_the_unit_change_of_b(bank):
    fresh = SubspaceClustering().smoothed(bank, [update(5)])
    assert {slot.tier for slot in fresh} == {TIER}
    for site in SITES:
        expected = unit_direction(update(5).tensors[Slot("root", site, "B")] - broadcast(site))
        found = fresh[Slot(TIER, site, "B")][5]  # equal but for the basis and the factor 1 − λ
        torch.testing.assert_close(found @ found.mT, 0.1**2 * expected @ expected.mT)


def test_directions_of_one_client_do_not_touch_another(bank):
    clustering = SubspaceClustering()
    sample(bank, clustering, [range(6)])
    alone_again = clustering.smoothed(bank, [update(2, 1)])
    together = clustering.smoothed(bank, [update(client, 1) for client in (1, 2, 3)])
    for slot in alone_again:
        torch.testing.assert_close(alone_again[slot][2], together[slot][2])


def test_changes_are_of_the_shared_tier_and_of_b_only(bank):
    both = ClientUpdate(0, 10, {**update(0).tensors, **update(0, tier="cluster").tensors})
    found = changes(bank, [both], "root", "change")
    assert set(found) == {Slot("root", site, "B") for site in SITES}
    factors = changes(bank, [both], "root", "factor")
    for slot, moved in found.items():
        torch.testing.assert_close(moved[0], both.tensors[slot] - broadcast(slot.site))
        torch.testing.assert_close(factors[slot][0], both.tensors[slot])


def test_a_client_without_a_cluster_is_routed_by_the_b_it_trained_from_zero(bank):
    labels, _ = labels_of(bank, SubspaceClustering(), [range(9), range(9)])
    updates = [update(client, 5, "cluster") for client in (0, 9, 10)]
    found = with_routed(bank, {"labels": labels, "stage": torch.tensor(1)}, updates, "cluster")
    assert found["labels"][:11].tolist() == TRUTH[:11].tolist()
    assert found["labels"][11:].tolist() == [NEVER] * 4
    assert found["stage"] == 1
    assert labels[9] == NEVER, "what was learnt before is not changed in place"


def test_nobody_is_routed_when_everyone_has_a_cluster(bank):
    labels, _ = labels_of(bank, SubspaceClustering(), [range(12), range(12)])
    found = with_routed(bank, {"labels": labels}, [update(0, 5, "cluster")], "cluster")
    assert torch.equal(found["labels"], labels)


def test_routed_members_without_a_direction_do_not_pull_their_clusters_subspace(bank):
    sample(bank, SubspaceClustering(), [range(3)])
    labels = torch.tensor([0, 1, 2] + [0] * 11 + [NEVER])  # clients 3 … 13 were routed to cluster 0
    mixed = {Slot("cluster", site, "B"): group_direction(site, 0) + 0.5 * group_direction(site, 1) for site in SITES}
    found = with_routed(bank, {"labels": labels}, [ClientUpdate(14, 10, mixed)], "cluster")
    assert int(found["labels"][14]) == 0


def test_unseen_clients_are_admitted_and_seen_ones_only_checked(bank):
    labels, _ = labels_of(bank, SubspaceClustering(), [range(11), range(11)])
    labels[1] = 2  # not where it belongs, so routing disagrees
    probes = [update(client, 6) for client in (*range(12), 12, 14)]
    placed, log = admit_by_route(bank, labels, POPULATION, probes, "root", "change")
    assert placed[[12, 14]].tolist() == TRUTH[[12, 14]].tolist()
    assert placed[13] == NEVER, "it sent no probe"
    assert torch.equal(placed[:12], labels[:12])
    assert log["routed"] == {"12": int(TRUTH[12]), "14": int(TRUTH[14])}
    assert log["routing_agreement"] == pytest.approx(10 / 11)
    assert log["routing_agreement_with_own"] == pytest.approx(10 / 11)


def test_seen_clients_that_are_routed_to_a_later_cluster_count_as_misplaced(bank):
    labels, _ = labels_of(bank, SubspaceClustering(), [range(11), range(11)])
    probes = [update(client, 6) for client in range(11)]
    before = admit_by_route(bank, labels, POPULATION, probes, "root", "change")[1]["routing_agreement"]
    mixed = labels.clone()
    mixed[int((labels == labels.max()).nonzero()[0])] = 0  # one of the last cluster is said to be of the first
    _, log = admit_by_route(bank, mixed, POPULATION, probes, "root", "change")
    assert before == 1
    assert log["routing_agreement"] < 1


def test_tier_overlaps_are_mean_squared_cosines_with_each_finished_tier(bank):
    columns = torch.eye(OUTPUTS)
    for site in SITES:
        bank.write(Slot("root", site, "B"), {0: columns[:, :4]}, 1, 0)
        bank.write(Slot("cluster", site, "B"), {0: columns[:, 2:6], 1: columns[:, 8:12]}, 2, 0)
    labels = torch.zeros(15, dtype=torch.long)
    labels[7] = 1
    holders = {"root": everyone(POPULATION), "cluster": labels, "leaf": alone(POPULATION)}
    fresh = {Slot("leaf", site, "B"): {6: 3 * columns[:, 3:7], 7: columns[:, 8:12]} for site in SITES}
    log = tier_overlaps(bank, fresh, ("root", "cluster", "leaf"), lambda slot: holders[slot.tier])
    assert log["overlap.root_leaf"] == pytest.approx((1 / 4 + 0) / 2)
    assert log["overlap.cluster_leaf"] == pytest.approx((3 / 4 + 1) / 2)
    assert tier_overlaps(bank, {}, ("root", "cluster"), lambda slot: labels) == {"overlap.root_cluster": None}


@pytest.mark.parametrize(
    ("field", "value"), [("decay", 1.0), ("decay", -0.1), ("k_min", 0), ("k_max", 0), ("probe_steps", 0)]
)
def test_bad_settings_name_the_option(field, value):
    with pytest.raises(ValueError, match=f"--method.clustering.{field.replace('_', '-')}"):
        SubspaceClustering(**{field: value})


def test_a_client_is_left_out_of_its_cluster_as_if_it_had_never_been_in_it(bank):
    sample(bank, SubspaceClustering(), [range(12), range(12)])
    labels = torch.where(
        torch.arange(15) < 12, torch.arange(15) // 2, NEVER
    )  # pairs of two groups, so that routes differ
    probes = [update(client, 6) for client in range(12)]
    routes = route_by_members(bank, labels, probes, "root", "change", checked=range(12))
    for probe in probes:
        without = labels.clone()
        without[probe.client] = NEVER
        expected = route_by_members(bank, without, [probe], "root", "change").nearest
        assert routes.left_out[probe.client] == expected[probe.client]
    assert routes.left_out != routes.nearest


def test_a_client_alone_in_its_cluster_is_routed_elsewhere_without_its_own_direction(bank):
    labels, _ = labels_of(bank, SubspaceClustering(), [range(8), range(8)])  # 3, 3 and 2 clients
    labels[5] = NEVER
    routes = route_by_members(bank, labels, [update(2, 6)], "root", "change", checked=[2])
    assert routes.nearest == {2: 2}
    assert routes.left_out.keys() == {2}
    assert routes.left_out[2] != 2


def test_newcomers_are_routed_by_the_adapters_of_the_clusters_that_trained(bank):
    labels = torch.where(torch.arange(15) < 12, TRUTH, NEVER)
    for site in SITES:
        trained = {group: 3 * group_direction(site, group) for group in (0, 1)}
        bank.write(Slot("cluster", site, "B"), trained, N_GROUPS, 2)
    probes = [update(client, 6, "cluster") for client in (0, 1, 2, 12, 13, 14)]
    placed, log = admit_by_route(bank, labels, POPULATION, probes, "cluster", "change")
    assert placed[[12, 13]].tolist() == [0, 1]
    assert int(placed[14]) != 2, "nobody trained cluster 2"
    assert log["routing_agreement"] is None, "no client's training can be taken out of an adapter"
    assert log["routing_agreement_with_own"] == pytest.approx(2 / 3)


def test_of_more_clients_than_are_clustered_the_others_join_the_nearest_cluster():
    """Four groups of clients that moved in directions of their own: a fifth of them decides where all belong."""
    random, slot = torch.Generator().manual_seed(0), Slot(TIER, "q", "B")
    centres = torch.linalg.qr(torch.randn(4, 40, 3, generator=random))[0]
    n = 100
    moved = centres[torch.arange(n) % 4] + 0.02 * torch.randn(n, 40, 3, generator=random)
    bank, everyone = Bank({slot: torch.zeros(40, 3)}), Population(n, tuple(range(n)), (), (1,) * n)
    bank.write(slot, dict(enumerate(moved)), n, 0)
    fresh = {slot: {0: moved[0]}}
    whole, _ = SubspaceClustering(k_min=2).cluster(bank, fresh, [], everyone)
    few, log = SubspaceClustering(k_min=2, most=20).cluster(bank, fresh, [], everyone)
    assert log["n_routed"] == 80
    assert len(log["rule_scores"]) == 9, "2 to 10 clusters were tried, of the twenty"
    assert len(set(whole.tolist())) == 4
    pairs = set(zip(whole.tolist(), few.tolist(), strict=True))
    assert len(pairs) == 4, "the same clusters, by whatever numbers"


def test_fewer_clients_than_clusters_cannot_be_clustered():
    with pytest.raises(ValueError, match=r"most is 10; it must exceed k_max, 10 \(--method.clustering.most"):
        SubspaceClustering(most=10)
