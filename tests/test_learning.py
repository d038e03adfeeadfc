"""What the demo promises holds on real digits: who beats whom, what is found, who is routed where."""

import csv
import json
import subprocess

import pytest
from conftest import ROOT
from runs import QUICKSTART, environment, fabric

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "run"
    command = fabric(2, QUICKSTART, "--threads", 1, "--out", out)
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return out, json.loads((out / "result.json").read_text())


@pytest.mark.parametrize("statistic", ["global.mean", "global.p10", "personal.mean", "personal.p10"])
@pytest.mark.parametrize("other", ["local", "fedit"])
def test_hilora_is_above_the_two_methods_it_must_beat(demo, other, statistic):
    assert demo[1][f"hilora.{statistic}"] > demo[1][f"{other}.{statistic}"]


def test_every_tier_adds_accuracy(demo):
    root, cluster, leaf = (demo[1][f"hilora.stage.{stage}.mean"] for stage in ("root", "cluster", "leaf"))
    assert root + 0.1 < cluster < leaf


def test_unseen_clients_are_best_served_by_their_cluster_before_any_tuning(demo):
    result = demo[1]
    assert (
        result["hilora.unseen.untuned.mean"] > max(result[f"{m}.unseen.untuned.mean"] for m in ("local", "fedit")) + 0.1
    )


def test_clusters_follow_styles_and_clients_are_routed_to_their_own(demo):
    assert demo[1]["hilora.clusters.ari"] >= 0.8
    assert demo[1]["hilora.unseen.routing_agreement_with_own"] >= 0.9


def test_the_rows_of_the_clients_give_the_summary(demo):
    out, result = demo
    with (out / "seed-0" / "hilora" / "clients.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["evaluation"] == "unseen.untuned"]
    assert len(rows) == 5
    mean = sum(float(row["accuracy"]) for row in rows) / 5
    assert result["hilora.unseen.untuned.mean"] == pytest.approx(mean)
