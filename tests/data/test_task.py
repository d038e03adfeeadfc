"""A classification task's scores, against torchmetrics and torch."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import TinyAttention, tiny_data
from sklearn.metrics import f1_score
from torchmetrics.functional.classification import multiclass_accuracy

import fedsim
from fedsim.data.images.images import ImageOptions
from fedsim.data.task import Classification, ClassificationF1
from fedsim.data.texts.texts import TextOptions

LOGITS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(0, 4, (20,), generator=torch.Generator().manual_seed(1))


def test_a_clients_summary_is_its_accuracy_and_mean_cross_entropy_however_its_samples_are_batched():
    task = Classification()
    parts = [task.score(lambda x: x, LOGITS[rows], TARGETS[rows]) for rows in torch.arange(20).split(7)]
    assert all(part.shape[1] == task.n_scores for part in parts)
    summary = task.summary(torch.cat(parts).sum(0).tolist(), 20)
    expected = {
        "accuracy": float(multiclass_accuracy(LOGITS, TARGETS, num_classes=4, average="micro")),
        "loss": float(F.cross_entropy(LOGITS, TARGETS)),
    }
    assert summary == pytest.approx(expected)
    assert tuple(summary) == task.columns
    assert task.columns[: len(task.metrics)] == task.metrics


def test_targets_outside_the_class_names_are_refused():
    with pytest.raises(ValueError, match="targets run from 0 to 3, but there are 2 class names"):
        fedsim.FederatedData(LOGITS, TARGETS, [torch.arange(20)], [torch.arange(5)], ["a", "b"])


def f1_of(rows: torch.Tensor) -> dict[str, float]:
    """A client's summary whose test samples are these rows, in batches of three."""
    task = ClassificationF1(4)
    parts = [task.score(lambda x: x, LOGITS[batch], TARGETS[batch]) for batch in rows.split(3)]
    assert all(part.shape[1] == task.n_scores for part in parts)
    return task.summary(torch.cat(parts).sum(0).tolist(), len(rows))


@pytest.mark.parametrize("rows", [torch.arange(20), torch.tensor([0]), torch.arange(5), (TARGETS == 2).nonzero()[:, 0]])
def test_a_clients_macro_f1_is_scikit_learns_over_the_classes_that_occur(rows: torch.Tensor):
    predicted, targets = LOGITS[rows].argmax(-1), TARGETS[rows]
    present = sorted({*predicted.tolist(), *targets.tolist()})
    summary = f1_of(rows)
    assert summary["macro_f1"] == pytest.approx(f1_score(targets, predicted, average="macro", labels=present))
    assert summary["accuracy"] == pytest.approx(f1_score(targets, predicted, average="micro", labels=present))
    assert summary["loss"] == pytest.approx(float(F.cross_entropy(LOGITS[rows], targets)))
    assert set(ClassificationF1(4).columns) < set(summary)


@pytest.mark.parametrize("task", [Classification(), ClassificationF1(4)])
def test_logits_that_are_no_numbers_are_wrong_and_predict_no_class(task: Classification):
    """The argmax of NaN is class 0."""
    logits, targets = torch.full((3, 4), torch.nan), torch.zeros(3, dtype=torch.long)
    logits[1, :3] = logits[2] = 0.0
    logits[2, 0] = 1.0
    totals = task.score(lambda x: x, logits, targets).nan_to_num().sum(0).tolist()
    summary = task.summary(totals, 3)
    assert summary["accuracy"] == pytest.approx(1 / 3)
    assert summary.get("macro_f1", 0.5) == pytest.approx(0.5)
    assert summary.get("predictions.0", 1) == 1


def test_pooled_f1_is_that_of_all_samples_together_in_whatever_order_and_not_the_mean_of_clients():
    clients = [f1_of(rows) for rows in (torch.arange(3), torch.arange(3, 12), torch.arange(12, 20))]
    task, predicted = ClassificationF1(4), LOGITS.argmax(-1)
    expected = {f"{average}_f1": f1_score(TARGETS, predicted, average=average) for average in ("macro", "micro")}
    assert task.pool(clients) == pytest.approx(expected)
    assert task.pool(clients) == task.pool(clients[::-1])
    assert abs(sum(client["macro_f1"] for client in clients) / 3 - expected["macro_f1"]) > 0.01
    assert task.pool([]) == Classification().pool(clients) == {}


def by_engine(folder: Path, engine: str) -> fedsim.report.summary.Result:
    data = replace(tiny_data(), task=ClassificationF1(tiny_data().n_classes))
    local = fedsim.LocalTraining(batch_size=4, learning_rate=1e-2)
    common = {"backbone": TinyAttention(), "rounds": 3, "evaluate_every": 2, "local": local, "threads": 1}
    return fedsim.simulate(method=fedsim.FedIT(lora_rank=2), data=data, out=folder / engine, engine=engine, **common)


def test_a_run_tells_f1_by_client_and_of_all_seen_clients_together_with_either_engine(tmp_path: Path):
    runs = [by_engine(tmp_path, engine) for engine in ("batched", "sequential")]
    for run in runs:
        with (run.folder / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["global.macro_f1"] == "" for row in rows] == [True, False, False]
        assert float(rows[-1]["global.micro_f1"]) == run.summary["global.micro_f1"]
        with (run.folder / "clients.csv").open(newline="") as file:
            last = [row for row in csv.DictReader(file) if (row["round"], row["evaluation"]) == ("3", "global")]
        sizes = [tiny_data().test_size(int(row["client"])) for row in last]
        right = sum(float(row["accuracy"]) * size for row, size in zip(last, sizes, strict=True))
        assert run.summary["global.micro_f1"] == pytest.approx(right / sum(sizes))
        assert run.summary["global.macro_f1.mean"] == pytest.approx(
            sum(float(row["macro_f1"]) for row in last) / len(last)
        )
    names = ("global.macro_f1", "global.micro_f1", "global.macro_f1.mean", "unseen.untuned.macro_f1.mean")
    assert [runs[0].summary[name] for name in names] == pytest.approx([runs[1].summary[name] for name in names])


def test_f1_of_another_number_of_classes_than_there_are_is_refused():
    with pytest.raises(ValueError, match="F1 is asked for of 3 classes, but there are 2 class names"):
        replace(tiny_data(), class_names=["a", "b"], task=ClassificationF1(3))


def test_ledgar_tells_f1_unless_it_is_told_not_to_and_others_when_they_are_told_to():
    assert TextOptions(task="ledgar").resolved().scoring(100) == {"task": ClassificationF1(100)}
    assert TextOptions(task="ledgar", f1=False).resolved().scoring(100) == {}
    assert TextOptions(task="trec").resolved().scoring(6) == ImageOptions().resolved().scoring(6) == {}
    assert ImageOptions(f1=True).resolved().scoring(6) == {"task": ClassificationF1(6)}
