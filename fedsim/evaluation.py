"""Turns per-client metrics into what a table says: mean, spread and the tail. Two models are told apart everywhere:

`after_aggregation`, what a client holds once the server has merged; `after_training`, what its own local training made
of it before merging.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

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


def summarise_updates(updates: Iterable[ClientUpdate], evaluation: str) -> dict[str, float]:
    """Return `{evaluation}.{statistic}` of accuracy over clients with a test split; weights are training samples."""
    rows = [(update.logs[f"{evaluation}.accuracy"], update.n_samples) for update in updates if _has(update, evaluation)]
    summary = summarise([accuracy for accuracy, _ in rows], [max(n, 1) for _, n in rows])
    return {f"{evaluation}.{name}": value for name, value in summary.items()}


def client_rows(
    updates: Iterable[ClientUpdate],
    evaluations: Mapping[str, str],
    round_index: int,
    stage: str,
    groups: Sequence[int] | None,
) -> list[dict[str, object]]:
    """Return a row per client and evaluation for clients.csv; `evaluations` maps the logged name to the row's name."""
    return [
        {
            "round": round_index,
            "stage": stage,
            "client": update.client,
            "group": groups[update.client] if groups else "",
            "evaluation": name,
            "accuracy": update.logs[f"{logged}.accuracy"],
            "loss": update.logs[f"{logged}.loss"],
            "train_samples": update.n_samples,
        }
        for logged, name in evaluations.items()
        for update in updates
        if _has(update, logged)
    ]


def mean_loss(updates: Sequence[ClientUpdate]) -> float:
    """Mean training loss over clients that trained (NaN when none did)."""
    losses = [update.logs["train_loss"] for update in updates if "train_loss" in update.logs]
    return float(np.mean(losses)) if losses else float("nan")


def _has(update: ClientUpdate, evaluation: str) -> bool:
    return f"{evaluation}.accuracy" in update.logs
