"""The summary of a run (result.json), from its own tables."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.report.evaluation import STATISTICS, prefixes, summarise

Rows = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Result:
    """What a finished run says: its folder, its summary (flat names, as in result.json) and its state's digest."""

    folder: Path
    summary: Mapping[str, Any]
    digest: str


SIMULATED = "simulated_seconds"
"""What a round would take simulated devices; a column only where there are any, and with it `dropped`."""
EVALUATED = "evaluated_clients"
"""Clients behind a round's global.*; a column only where they are not all between rounds."""
EPSILONS = {"epsilon": "ε", "sample_epsilon": "ε (samples)"}
"""What clients gave away of themselves (`--privacy.*`) and of their samples (`--local.sample-clip`), in a table."""
MODELS = ("personal", "global")
"""A client's model after its own local training; what it holds after aggregation."""


def summarise_run(
    rounds: Rows, clients: Iterable[Mapping[str, str]], metrics: Sequence[str] = ("accuracy",)
) -> dict[str, Any]:
    """Return flat names to numbers, from the rows of metrics.csv and clients.csv.

    `personal.*` is each seen client's model after its most recent local training, `global.*` what each seen client
    holds after the last aggregation, `unseen.untuned.*` and `unseen.tuned.*` the clients that never trained, and
    `stage.S.*` what seen clients held after the last round of stage S. `*.best.*` is the best round by mean. All of it
    is the first metric, the headline, which `metric` names; further ones follow as `global.<metric>.*` and so on. What
    a task tells of all seen clients' test samples together is `global.<name>`, after the last round that tells it.
    Where fewer clients are evaluated between rounds, `evaluated_clients` says how many, `global.best.clients` those of
    the best round and `stage.S.clients` those of the stage's last. `clients` is gone through once.
    `bytes.*`, and with simulated devices `simulated_seconds` and `dropped`, are sums over rounds; under differential
    privacy there are the last ones of `EPSILONS`, at `delta`.
    """
    summary: dict[str, Any] = {"rounds": len(rounds), "metric": metrics[0]}
    latest = latest_scores(clients, metrics)
    for name in (*MODELS, "unseen.untuned", "unseen.tuned"):
        weights, *scores = zip(*latest[name].values(), strict=True) if latest.get(name) else ((), *((),) * len(metrics))
        for prefix, of_metric in zip(prefixes(name, metrics), scores, strict=True):
            values = summarise(of_metric, [max(weight, 1) for weight in weights])
            summary |= {f"{prefix}.{key}": value for key, value in values.items()}
        summary[f"{name}.clients"] = len(latest.get(name, ()))
    between = [int(row[EVALUATED]) for row in rounds[:-1] if int(row.get(EVALUATED) or 0)]
    summary |= {EVALUATED: between[-1]} if between else {}
    for name in MODELS:
        summary |= _best_round(rounds, name)
    for row in rounds:
        if row["global.mean"]:
            pooled = {
                key: row[key] for key in row if key.startswith("global.") and key.split(".")[-1] not in STATISTICS
            }
            summary |= {key: float(value) for key, value in pooled.items()}
            summary |= {f"stage.{row['stage']}.{key}": float(row[f"global.{key}"]) for key in STATISTICS}
            summary |= {f"stage.{row['stage']}.clients": int(row[EVALUATED])} if between else {}
    summary |= {f"bytes.{way}": sum(int(row[f"bytes.{way}"]) for row in rounds) for way in ("up", "down")}
    if rounds and SIMULATED in rounds[0]:
        summary |= {SIMULATED: sum(float(row[SIMULATED]) for row in rounds)}
        summary |= {"dropped": sum(int(row["dropped"]) for row in rounds)}
    told = [key for key in EPSILONS if rounds and key in rounds[0] and math.isfinite(float(rounds[-1][key]))]
    return summary | {key: float(rounds[-1][key]) for key in (*told, "delta") if told}


def _best_round(rounds: Rows, name: str) -> dict[str, Any]:
    """The best round of a model by mean, the first of equals, and the last mean."""
    scored = [row for row in rounds if row[f"{name}.mean"]]
    if not scored:
        return {}
    best = max(scored, key=lambda row: (float(row[f"{name}.mean"]), -int(row["round"])))
    found = {f"{name}.best.mean": float(best[f"{name}.mean"]), f"{name}.best.round": int(best["round"])}
    found |= {f"{name}.last.mean": float(scored[-1][f"{name}.mean"])}
    return found | ({f"{name}.best.clients": int(best[EVALUATED])} if name == "global" and EVALUATED in best else {})


def latest_scores(
    clients: Iterable[Mapping[str, str]], metrics: Sequence[str]
) -> dict[str, dict[str, tuple[float, ...]]]:
    """Return training samples and metrics of every client's last row, by evaluation and client."""
    latest: dict[str, dict[str, tuple[float, ...]]] = {}
    for row in clients:
        scores = float(row["train_samples"]), *(float(row[metric]) for metric in metrics)
        latest.setdefault(row["evaluation"], {})[row["client"]] = scores
    return latest


def evaluated_in_words(summary: Mapping[str, Any]) -> str:
    """Return of how many clients a run's scores between rounds are, where these are not all; "" where they are."""
    if EVALUATED not in summary:
        return ""
    return (
        f"Between rounds {summary[EVALUATED]:,} clients, drawn once, were evaluated, after the last round all "
        f"{summary['global.clients']:,}: curves, stages and the best round are of those clients."
    )
