"""What a plan asks of each client, worked out by hand."""

from conftest import TinyAttention

import fedsim
from fedsim.adapters.layout import Layout
from fedsim.distributed.blocks import Load
from fedsim.models.sites import find_sites
from fedsim.parts.initialisation import lora_initial
from fedsim.plan import Plan
from fedsim.randomness import generator
from fedsim.round import Population
from fedsim.server.workload import Workload

SAMPLES = (16, 10, 4, 0)


def workload(local: fedsim.LocalTraining) -> Workload:
    """Of FedIT on two blocks, whose depths are 0 and 1, and a classifier at depth 2."""
    method = fedsim.FedIT(lora_rank=2)
    layout = Layout(find_sites(TinyAttention()), method.tiers, method.lora_rank, method.head_policy)
    initial = lora_initial(layout, generator(0, "initial"), {})
    return Workload(method, Population(4, (0, 1, 2, 3), (), SAMPLES), layout, initial, local)


def test_a_load_is_the_lowest_trained_depth_then_most_work_first_and_what_a_sample_costs_from_there_up():
    work = workload(fedsim.LocalTraining(batch_size=4, epochs=2))
    depths = [frozenset({0, 1}), frozenset({1}), frozenset(), frozenset({0})]
    plan = Plan(population=work.population, allocations=depths)
    assert [work.load(plan, client, None) for client in range(4)] == [
        Load((0, -8), 32, 3 + 3),  # forward through three depths and backward through as many
        Load((1, -6), 20, 3 + 2),
        Load((3, -2), 8, 3),  # nothing to train: forward alone
        Load((0, 0), 0, 3 + 3),  # no samples, no steps
    ]
    assert work.load(plan, 1, 1) == Load((1, -3), 10, 3 + 2)
