"""Turns per-client metrics into what a table says: mean, spread and the tail. Two models are told apart everywhere:

`global`, what a client holds once the server has merged (private tiers included); `personal`, what its own local
training made of it before merging.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fedsim.data.task import Task
from fedsim.round import ClientUpdate

STATISTICS = ("mean", "weighted_mean", "std", "worst", "p10")


def summarise(values: Sequence[float], weights: Sequence[float] | None = None) -> dict[str, float]:
    """Return mean, sample-weighted mean, standard deviation, worst and 10th percentile over clients ({} for none).

    The percentile interpolates linearly between clients; the standard deviation is the population's (ddof 0).
    """
    if not len(values):
        return {}
    array = np.asarray(values, dtype=np.float64)
    return {
        "mean": float(array.mean()),
        "weighted_mean": float(np.average(array, weights=weights)) if weights is not None else float(array.mean()),
        "std": float(array.std()),
        "worst": float(array.min()),
        "p10": float(np.percentile(array, 10)),
    }


def summarise_updates(
    updates: Iterable[ClientUpdate], evaluation: str, metrics: Sequence[str] = ("accuracy",)
) -> dict[str, float]:
    """Return `{evaluation}.{statistic}` of the first metric over clients with a test split, and
    `{evaluation}.{metric}.{statistic}` of the others; weights are training samples.
    """
    tested = [update for update in updates if _has(update, evaluation)]
    weights, summary = [max(update.n_samples, 1) for update in tested], {}
    for prefix, metric in zip(prefixes(evaluation, metrics), metrics, strict=True):
        values = summarise([update.logs[f"{evaluation}.{metric}"] for update in tested], weights)
        summary |= {f"{prefix}.{name}": value for name, value in values.items()}
    return summary


def pooled(updates: Iterable[ClientUpdate], evaluation: str, task: Task) -> dict[str, float | str]:
    """Return what the task tells of all clients' test samples together, "" for each of its names without samples."""
    logs = [update.logs for update in updates if _has(update, evaluation)]
    start = f"{evaluation}."
    found = task.pool([{k.removeprefix(start): v for k, v in log.items() if k.startswith(start)} for log in logs])
    return {name: found.get(name, "") for name in task.pooled}


def prefixes(name: str, metrics: Sequence[str]) -> list[str]:
    """Return under which names the statistics of each metric stand: the headline's without its own."""
    return [name, *(f"{name}.{metric}" for metric in metrics[1:])]


def client_rows(
    updates: Iterable[ClientUpdate],
    evaluations: Mapping[str, str],
    round_index: int,
    stage: str,
    domains: Sequence[int] | None,
    columns: Sequence[str] = ("accuracy", "loss"),
) -> list[dict[str, object]]:
    """Return a row per client and evaluation for clients.csv; `evaluations` maps the logged name to the row's name.

    `columns` are the task's. Rounds are counted from 1, as in every table.
    """
    return [
        {
            "round": round_index + 1,
            "stage": stage,
            "client": update.client,
            "domain": domains[update.client] if domains else "",
            "evaluation": name,
            **{column: update.logs[f"{logged}.{column}"] for column in columns},
            "train_samples": update.n_samples,
        }
        for logged, name in evaluations.items()
        for update in updates
        if _has(update, logged)
    ]


def mean_loss(updates: Sequence[ClientUpdate]) -> float:
    """Mean training loss over clients that trained to a finite one (NaN when none did)."""
    losses = [loss for update in updates if math.isfinite(loss := update.logs.get("train_loss", math.nan))]
    return float(np.mean(losses)) if losses else float("nan")


def _has(update: ClientUpdate, evaluation: str) -> bool:
    return f"{evaluation}.loss" in update.logs
