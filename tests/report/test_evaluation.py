"""Per-client metrics and their summaries, against NumPy."""

import math

import numpy as np
import pytest

from fedsim.report.evaluation import STATISTICS, client_rows, mean_loss, summarise, summarise_updates
from fedsim.round import ClientUpdate

ACCURACIES, SAMPLES = [0.5, 0.9, 0.2, 0.75, 0.9], [10, 20, 5, 40, 25]


def update(client: int, accuracy: float | None, n_samples: int = 10, **logs: float) -> ClientUpdate:
    tested = {} if accuracy is None else {"personal.accuracy": accuracy, "personal.loss": 1 - accuracy}
    return ClientUpdate(client, n_samples, logs={**tested, **logs})


def test_the_summary_is_numpys_mean_deviation_minimum_and_tenth_percentile():
    values = np.array(ACCURACIES)
    expected = {
        "mean": values.mean(),
        "weighted_mean": np.average(values, weights=SAMPLES),
        "std": values.std(ddof=0),
        "worst": values.min(),
        "p10": np.percentile(values, 10, method="linear"),
    }
    assert summarise(ACCURACIES, SAMPLES) == pytest.approx(expected)
    assert tuple(summarise(ACCURACIES, SAMPLES)) == STATISTICS


def test_the_tenth_percentile_interpolates_between_clients():
    assert summarise([0.0, 1.0])["p10"] == pytest.approx(0.1)


def test_without_weights_clients_count_alike():
    summary = summarise(ACCURACIES)
    assert summary["weighted_mean"] == summary["mean"]


def test_a_client_with_more_samples_weighs_more():
    assert summarise([0.0, 1.0], [1, 3])["weighted_mean"] == 0.75


def test_one_client_is_its_own_summary_and_no_client_has_none():
    assert summarise([0.5], [3]) == {"mean": 0.5, "weighted_mean": 0.5, "std": 0.0, "worst": 0.5, "p10": 0.5}
    assert summarise([]) == {}


def test_updates_are_summarised_over_clients_with_a_test_split_only():
    updates = [update(0, 0.5, 10), update(1, None, 1000), update(2, 1.0, 30)]
    summary = summarise_updates(updates, "personal")
    assert summary["personal.mean"] == 0.75
    assert summary["personal.weighted_mean"] == pytest.approx((0.5 * 10 + 1.0 * 30) / 40)
    assert summarise_updates(updates, "global") == {}


def test_a_client_without_training_samples_still_counts_a_little():
    summary = summarise_updates([update(0, 1.0, 0), update(1, 0.0, 0)], "personal")
    assert summary["personal.weighted_mean"] == 0.5


def test_rows_name_the_evaluation_and_the_natural_group():
    updates = [update(2, 0.5, 10), update(0, None)]
    (row,) = client_rows(updates, {"personal": "unseen.tuned"}, 7, "leaf", (4, 5, 6))
    assert row == {
        "round": 8,
        "stage": "leaf",
        "client": 2,
        "domain": 6,
        "evaluation": "unseen.tuned",
        "accuracy": 0.5,
        "loss": 0.5,
        "train_samples": 10,
    }
    (row,) = client_rows(updates, {"personal": "unseen.tuned"}, 7, "leaf", None)
    assert row["domain"] == ""


def test_the_training_loss_is_the_mean_over_clients_that_trained():
    assert mean_loss([update(0, 0.5, train_loss=1.0), update(1, 0.5), update(2, 0.5, train_loss=2.0)]) == 1.5
    assert math.isnan(mean_loss([update(0, 0.5)]))


def test_of_several_metrics_the_first_is_the_headline_and_the_others_go_by_their_names():
    logs = [{"e.rouge1": r, "e.exact_match": x, "e.loss": 1.0} for r, x in ((0.2, 0.0), (0.6, 1.0))]
    updates = [ClientUpdate(client, 1 + 2 * client, logs=log) for client, log in enumerate(logs)]
    summary = summarise_updates(updates, "e", ("rouge1", "exact_match"))
    assert summary["e.mean"] == pytest.approx(0.4)
    assert summary["e.exact_match.weighted_mean"] == 0.75
    assert set(summary) == {f"e.{name}" for name in STATISTICS} | {f"e.exact_match.{name}" for name in STATISTICS}
    rows = client_rows(updates, {"e": "e"}, 0, "s", None, ("rouge1", "exact_match", "loss"))
    assert list(rows[1])[5:] == ["rouge1", "exact_match", "loss", "train_samples"]
