"""The summary of a run (result.json), from its own tables."""

import math
from collections.abc import Mapping, Sequence
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
MODELS = ("personal", "global")
"""A client's model after its own local training; what it holds after aggregation."""


def summarise_run(rounds: Rows, clients: Rows, metrics: Sequence[str] = ("accuracy",)) -> dict[str, Any]:
    """Return flat names to numbers, from the rows of metrics.csv and clients.csv.

    `personal.*` is each seen client's model after its most recent local training, `global.*` what each seen client
    holds after the last aggregation, `unseen.untuned.*` and `unseen.tuned.*` the clients that never trained, and
    `stage.S.*` what seen clients held after the last round of stage S. `*.best.*` is the best round by mean. All of it
    is the first metric, the headline, which `metric` names; further ones follow as `global.<metric>.*` and so on. What
    a task tells of all seen clients' test samples together is `global.<name>`, after the last round that tells it.
    `bytes.*`, and with simulated devices `simulated_seconds` and `dropped`, are sums over rounds; under differential
    privacy there is the last `epsilon`, at `delta`.
    """
    summary: dict[str, Any] = {"rounds": len(rounds), "metric": metrics[0]}
    for name in (*MODELS, "unseen.untuned", "unseen.tuned"):
        latest = {row["client"]: row for row in clients if row["evaluation"] == name}
        weights = [max(float(row["train_samples"]), 1) for row in latest.values()]
        for prefix, metric in zip(prefixes(name, metrics), metrics, strict=True):
            values = summarise([float(row[metric]) for row in latest.values()], weights)
            summary |= {f"{prefix}.{key}": value for key, value in values.items()}
        summary[f"{name}.clients"] = len(latest)
    for name in MODELS:
        means = [(float(row[f"{name}.mean"]), int(row["round"])) for row in rounds if row[f"{name}.mean"]]
        if means:
            best, number = max(means, key=lambda entry: (entry[0], -entry[1]))
            summary |= {
                f"{name}.best.mean": best,
                f"{name}.best.round": number,
                f"{name}.last.mean": means[-1][0],
            }
    for row in rounds:
        if row["global.mean"]:
            pooled = {
                key: row[key] for key in row if key.startswith("global.") and key.split(".")[-1] not in STATISTICS
            }
            summary |= {key: float(value) for key, value in pooled.items()}
            summary |= {f"stage.{row['stage']}.{key}": float(row[f"global.{key}"]) for key in STATISTICS}
    summary |= {f"bytes.{way}": sum(int(row[f"bytes.{way}"]) for row in rounds) for way in ("up", "down")}
    if rounds and SIMULATED in rounds[0]:
        summary |= {SIMULATED: sum(float(row[SIMULATED]) for row in rounds)}
        summary |= {"dropped": sum(int(row["dropped"]) for row in rounds)}
    if rounds and "epsilon" in rounds[0] and math.isfinite(float(rounds[-1]["epsilon"])):
        summary |= {name: float(rounds[-1][name]) for name in ("epsilon", "delta")}
    return summary
