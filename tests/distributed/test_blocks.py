"""Blocks of clients: who is trained together, and by which worker."""

import itertools

import numpy as np
import pytest

from fedsim.distributed.blocks import Load, deal, form_blocks, largest_size

# dealing


def test_the_heaviest_block_goes_first_and_always_to_the_least_busy_worker():
    hands, utilisation = deal("abcde", [2, 7, 5, 4, 3], 2)
    assert hands == [["b", "e"], ["c", "d", "a"]]
    assert utilisation == pytest.approx(11 / 10.5)


def test_ties_go_to_the_earlier_block_and_the_earlier_worker():
    assert deal("abcdef", [1, 1, 1, 1, 1, 1], 3) == ([["a", "d"], ["b", "e"], ["c", "f"]], 1)


def test_one_worker_gets_everything_and_more_workers_than_blocks_leave_some_idle():
    assert deal("abc", [1, 3, 2], 1) == ([["b", "c", "a"]], 1)
    assert deal("ab", [1, 2], 4) == ([["b"], ["a"], [], []], pytest.approx(2 / 0.75))
    assert deal([], [], 2) == ([[], []], 1)


def test_blocks_without_work_are_dealt_too():
    assert sorted(itertools.chain(*deal("abc", [0, 0, 5], 2)[0])) == ["a", "b", "c"]


@pytest.mark.parametrize("n_workers", [2, 3])
def test_the_busiest_worker_is_within_grahams_bound_of_the_best_deal_there_is(n_workers):
    """LPT is at most 4/3 − 1/(3m) times the optimum (Graham 1969), here found by trying every deal."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        loads = rng.integers(1, 30, size=7).tolist()
        hands, _ = deal(range(7), loads, n_workers)
        assert sorted(itertools.chain(*hands)) == list(range(7))
        ours = max(sum(loads[block] for block in hand) for hand in hands)
        best = min(
            max(sum(load for load, owner in zip(loads, owners, strict=True) if owner == w) for w in range(n_workers))
            for owners in itertools.product(range(n_workers), repeat=7)
        )
        assert ours <= best * (4 / 3 - 1 / (3 * n_workers))


# blocks


def test_blocks_of_equal_clients_are_even_and_hold_neighbours_in_the_order_of_their_keys():
    loads = {client: Load((0, -amount), 5) for client, amount in enumerate([1, 9, 5, 7, 2, 8, 3])}
    assert form_blocks(loads, 3) == ([[1, 5], [3, 2], [6, 4, 0]], [10, 10, 15])
    assert form_blocks(loads, 7) == ([[1, 5, 3, 2, 6, 4, 0]], [35])
    assert form_blocks(loads, 1)[0] == [[1], [5], [3], [2], [6], [4], [0]]


def test_few_clients_make_as_many_blocks_as_are_asked_for_or_as_there_are_clients():
    loads = {client: Load((0,), 5) for client in range(5)}
    assert form_blocks(loads, 9, 2)[0] == [[0, 1], [2, 3, 4]]
    assert form_blocks({0: loads[0], 1: loads[1]}, 9, 2)[0] == [[0], [1]]
    assert form_blocks({0: loads[0]}, 9, 2)[0] == [[0]]
    assert form_blocks({}, 9, 2) == ([], [])
    assert form_blocks(loads, 1, 2)[0] == [[0], [1], [2], [3], [4]]


def test_an_edge_moves_where_the_dearer_block_gets_cheaper_but_no_block_gets_too_large():
    loads = {client: Load((-samples,), samples) for client, samples in enumerate([50, 30, 10, 10, 10, 10, 10, 10])}
    assert form_blocks(loads, 7) == ([[0, 1], [2, 3, 4, 5, 6, 7]], [80, 60])
    assert form_blocks(loads, 5) == ([[0, 1, 2], [3, 4, 5, 6, 7]], [90, 50])
    assert form_blocks(loads, 4) == ([[0, 1, 2, 3], [4, 5, 6, 7]], [100, 40])


def test_a_client_joins_deeper_ones_only_where_that_pays():
    """All samples of a block cost what those of its deepest client do."""
    deep, shallow = Load((0,), 10, 24.0), Load((6,), 10, 18.0)
    assert form_blocks(dict(enumerate([deep] * 2 + [shallow] * 6)), 7) == (
        [[0, 1, 2], [3, 4, 5, 6, 7]],
        [720.0, 900.0],
    )
    assert form_blocks(dict(enumerate([deep] * 4 + [shallow] * 4)), 7)[0] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_clients_that_train_from_the_same_depth_up_share_a_block():
    lowest = [0, 2, 0, 2, 1, 0]
    assert form_blocks({client: Load((depth, 0), 1) for client, depth in enumerate(lowest)}, 3)[0] == [
        [0, 2, 5],
        [4, 1, 3],
    ]


def test_blocks_are_never_dearer_than_those_of_equally_many_clients():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n, size = (int(rng.integers(1, most)) for most in (40, 12))
        made = [(int(rng.integers(0, 4)), float(rng.integers(0, 50))) for _ in range(n)]
        loads = {c: Load((depth, -samples), samples, 8.0 - depth) for c, (depth, samples) in enumerate(made)}
        blocks, costs = form_blocks(loads, size)
        order = sorted(loads, key=lambda client: (loads[client].key, client))
        assert list(itertools.chain(*blocks)) == order
        assert max(map(len, blocks)) <= size
        assert len(blocks) == -(-n // size)
        edges = [n * index // len(blocks) for index in range(len(blocks) + 1)]
        even = [order[a:b] for a, b in itertools.pairwise(edges)]
        dear = [
            [sum(loads[c].samples for c in b) * max(loads[c].cost for c in b) for b in part] for part in (blocks, even)
        ]
        assert costs == dear[0]
        assert max(costs) <= max(dear[1])


def test_nobody_makes_no_block():
    assert form_blocks({}, 4) == ([], [])


@pytest.mark.parametrize(("n_clients", "n_blocks"), [(1, 1), (1, 2), (7, 1), (10, 2), (19, 4), (64, 8), (3, 8)])
def test_the_largest_size_of_a_block_makes_that_many_blocks_and_one_more_client_makes_fewer(n_clients, n_blocks):
    size = largest_size(n_clients, n_blocks)
    made = -(-n_clients // size)
    assert made == min(n_blocks, n_clients)
    assert made == 1 or -(-n_clients // (size + 1)) < made
