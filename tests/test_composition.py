"""HiLoRA's tiers with allocated layers and unequal LoRA ranks: it runs, with any cohort, and is HiLoRA at the limit."""

import json
import sys

import pytest
from conftest import ROOT, TinyAttention, tiny_data

import fedsim
from fedsim.report.allocation_figures import draw_allocations

sys.path.append(str(ROOT / "recipes"))
from hilora_allocated import Allocated


def run(tiny_run, name, method, **changes):
    return tiny_run(
        name, method=method, backbone=TinyAttention(), data=tiny_data(9, unseen=(7, 8)), rounds=4, **changes
    )


@pytest.mark.parametrize("cohort_size", [None, 3])
def test_clients_of_unequal_means_go_through_all_tiers(tiny_run, cohort_size):
    some = fedsim.Capabilities(values=(1, 2), assign="cycle")
    method = Allocated(ranks=fedsim.LoraRanks(values=(1, 2, 3)), capabilities=some)
    result = run(tiny_run, "allocated", method, cohort_size=cohort_size)
    whole = run(tiny_run, "whole", fedsim.HiLoRA(lora_rank=3), cohort_size=cohort_size)
    assert {f"stage.{stage}.mean" for stage in ("root", "cluster", "leaf")} <= set(result.summary)
    assert result.summary["unseen.routing_agreement"] >= 0
    assert result.summary["bytes.up"] < whole.summary["bytes.up"]


def test_clusters_of_all_clients_met_stand_beside_the_allocations_of_a_round(tiny_run):
    """The clustering tells of all clients met so far, the allocations of those of its round."""
    some = fedsim.Capabilities(values=(1, 2), assign="cycle")
    method = Allocated(
        ranks=fedsim.LoraRanks(values=(2,)), capabilities=some, hilora=fedsim.HiLoRA(root_share=0.5, tolerance=0.0)
    )
    result = run(tiny_run, "met", method, cohort_size=3)
    events = [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]
    (clustered,) = [event for event in events if "rule_scores" in event]
    assert len(clustered["clients"]) > len(clustered["cohort"]) == len(clustered["allocations"]) == 3
    assert draw_allocations(events) is not None


def test_where_all_can_afford_everything_it_costs_what_hilora_costs(tiny_run):
    own = Allocated(ranks=fedsim.LoraRanks(values=(2,)), capabilities=fedsim.Capabilities(values=(2,)))
    result, parent = run(tiny_run, "own", own), run(tiny_run, "parent", fedsim.HiLoRA(lora_rank=2))
    assert result.summary["bytes.up"] == parent.summary["bytes.up"]
