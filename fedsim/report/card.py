"""The model card of what leaves the program: which model it is, of which data and method, how good, how to load it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.run_folder import RunFolder, read_recipe

PEFT_USAGE = """\
    from peft import PeftModel
    model = PeftModel.from_pretrained(backbone, "{folder}")    # `backbone`: the plain {base}

The adapter brings its own classifier where the backbone has one; build the backbone with as many classes."""
MERGED_USAGE = """\
    from safetensors.torch import load_file
    backbone.load_state_dict(load_file("{folder}/model.safetensors"))    # `backbone`: the plain {base}

The weights are the backbone's own, with the adapters merged into them."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What a card is about: `members` are the clients whose model it is, `round_index` the rounds behind it."""

    name: str
    method: str
    base_model: str
    members: Sequence[int]
    n_seen: int
    n_clients: int
    n_classes: int
    samples: Sequence[int]
    round_index: int
    metric: str
    is_merged: bool
    notes: Sequence[str] = ()
    is_whole: bool = True
    """Whether it is all that its clients hold; their accuracy is its own only then."""


def model_card(exported: Exported, run: Path, to: Path, command: str) -> str:
    """Return the README.md of an exported model, from what the run recorded."""
    base, samples = exported.base_model, sum(exported.samples[client] for client in exported.members)
    front = {"library_name": "peft" if not exported.is_merged else "safetensors", "base_model": base}
    usage = (MERGED_USAGE if exported.is_merged else PEFT_USAGE).format(folder=to.name, base=base)
    classes = f", {exported.n_classes} classes" if exported.n_classes else ""
    lines = [
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in front.items()),
        "tags: [federated-learning, lora, fedsim]",
        "---",
        f"# {exported.name[0].upper()}{exported.name[1:]} of {exported.method}",
        "",
        f"After {exported.round_index} rounds of {exported.method} in the run `{run}`.",
        *exported.notes,
        "",
        f"- **Data**: {len(exported.members)} of {exported.n_clients} clients, {samples} training samples{classes}",
        f"- **Backbone**: {base}, frozen",
        *_metrics(exported, run),
        "",
        usage,
        "",
        "Made by",
        "",
        f"    {command}",
        "",
        "## Settings of the run",
        "",
        *(f"    {line}" for line in json.dumps(read_recipe(run), indent=1, default=str).splitlines()),
    ]
    return "\n".join(lines) + "\n"


def _metrics(exported: Exported, run: Path) -> list[str]:
    """Lines on the model's own clients and on all seen ones, each at its last evaluation before the export."""
    folder, members = RunFolder(run), {str(client) for client in exported.members}
    rows = [row for row in folder.read_table("clients.csv") if row["client"] in members and exported.metric in row]
    lines = []
    for evaluation, meaning in (
        ("after_aggregation", "as handed out"),
        ("after_training", "after its own local training, before aggregation"),
        ("unseen_untuned", "unseen, as handed out"),
    ):
        latest = {row["client"]: row for row in rows if row["evaluation"] == evaluation and _is_past(row, exported)}
        values = [float(row[exported.metric]) for row in latest.values() if row[exported.metric]]
        if values:
            who = f"client {exported.members[0]}" if len(members) == 1 else f"mean over its {len(values)} clients"
            who += "" if exported.is_whole else " with the adapters of their own that were left out here"
            lines.append(f"- **{exported.metric}**, {who}, {meaning}: {sum(values) / len(values):.4f}")
    of_all: list[Mapping[str, Any]] = [
        row for row in folder.read_table("metrics.csv") if row["after_aggregation.mean"] and _is_past(row, exported)
    ]
    if of_all:
        row = of_all[-1]
        mean, p10 = float(row["after_aggregation.mean"]), float(row["after_aggregation.p10"])
        lines.append(f"- **{exported.metric}** over all {exported.n_seen} seen clients: mean {mean:.4f}, p10 {p10:.4f}")
    return lines


def _is_past(row: Mapping[str, Any], exported: Exported) -> bool:
    return int(row["round"]) < exported.round_index or row.get("evaluation", "").startswith("unseen")
