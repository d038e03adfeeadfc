"""Cells are dealt to teams of workers so that the last ends soonest, by what a round of blocks is estimated to take."""

from itertools import product

import pytest

from fedsim.experiments.makespan import SERVER, Job, makespan, splits, stages


def test_a_round_takes_a_blocks_time_for_each_turn_and_the_server_a_while():
    job = Job(rounds=3, blocks=10, cost=2.0)
    for workers, turns in ((1, 10), (2, 5), (3, 4), (5, 2), (8, 2), (10, 1), (64, 1)):
        assert job.time(workers) == pytest.approx(3 * 2 * (turns + 10 * SERVER))
    assert job.less(2).rounds == 2, "and the final evaluation"


def test_splits_use_every_worker_in_two_teams_or_more():
    for workers, most in ((1, 4), (2, 4), (8, 3), (8, 8), (12, 5)):
        found = list(splits(workers, most))
        assert len(set(found)) == len(found)
        assert all(sum(sizes) == workers and 2 <= len(sizes) <= most for sizes in found)
    assert list(splits(2, 4)) == [(1, 1)]
    assert {(5, 3), (2, 2, 2, 2), (5, 1, 1, 1), (1,) * 8} <= set(splits(8, 8))


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 9])
def test_every_job_is_done_once_and_never_later_than_together(workers, n):
    jobs = [Job(rounds=10 + 3 * index, blocks=10, cost=1 + index % 2) for index in range(n)]
    plan = stages(jobs, workers)
    assert sorted(index for stage in plan for hand in stage.cells for index in hand) == list(range(n))
    assert all(sum(stage.sizes) == workers and len(stage.sizes) == len(stage.cells) for stage in plan)
    assert makespan(jobs, plan) <= sum(job.time(workers) for job in jobs) * (1 + 1e-9)


def test_one_job_or_one_worker_is_run_together():
    assert [stage.sizes for stage in stages([Job(5, 10)], 8)] == [(8,)]
    assert [stage.sizes for stage in stages([Job(5, 10)] * 4, 1)] == [(1,)]


def test_three_equal_jobs_on_two_workers_are_two_side_by_side_and_then_one_together():
    plan = stages([Job(20, 4)] * 3, 2)
    assert [(stage.sizes, stage.cells) for stage in plan] == [((1, 1), ((0,), (1,))), ((2,), ((2,),))]


def test_ten_blocks_on_eight_workers_are_shared_by_five_and_three():
    (stage,) = stages([Job(20, 10, server=0.0)] * 3, 8)
    assert stage.sizes == (5, 3)
    assert [len(hand) for hand in stage.cells] == [2, 1]


def test_longer_jobs_come_first():
    plan = stages([Job(1, 4), Job(50, 4), Job(50, 4)], 2)
    assert plan[0].cells == ((1,), (2,))


def test_few_jobs_are_dealt_as_well_as_any_way_of_dealing_them():
    """Against all ways to deal up to five jobs to the teams of every split, and the rest to all."""
    for rounds in ((4, 4, 4), (9, 5, 4), (7, 7, 3, 2), (8, 7, 6, 5, 4)):
        jobs = [Job(each, 6) for each in rounds]
        together = [job.time(4) for job in jobs]
        best = sum(together)
        for sizes in splits(4, len(jobs)):
            for hands in product(range(-1, len(sizes)), repeat=len(jobs)):
                busy = [0.0] * len(sizes)
                for job, team in zip(jobs, hands, strict=True):
                    if team >= 0:
                        busy[team] += job.time(sizes[team])
                rest = sum(time for time, team in zip(together, hands, strict=True) if team < 0)
                best = min(best, max(busy) + rest)
        assert makespan(jobs, stages(jobs, 4)) <= 1.1 * best, rounds


@pytest.mark.parametrize("seeds", [1, 2, 3, 4, 5, 10])
def test_three_methods_of_cohorts_of_ten_waste_less_than_a_tenth_of_eight_workers(seeds):
    jobs = [Job(100, 10, server=0.0)] * (3 * seeds)
    evenly = sum(job.time(1) for job in jobs) / 8
    assert makespan(jobs, stages(jobs, 8)) <= 1.1 * evenly
    assert sum(job.time(8) for job in jobs) == pytest.approx(1.6 * evenly), "together"


def test_many_cells_on_many_workers_are_planned_in_no_time():
    jobs = [Job(100, 10)] * 60
    assert makespan(jobs, stages(jobs, 64)) < sum(job.time(64) for job in jobs)
