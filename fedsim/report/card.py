"""The model card of what leaves the program: which model it is, of which data and method, how good, how to load it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedsim.round import Population
from fedsim.storage.run_folder import RunFolder, read_recipe

PEFT_USAGE = """\
```python
from peft import PeftModel
{lines}

model = PeftModel.from_pretrained(backbone, "{folder}").eval()
```

The adapter brings its own classifier where the backbone has one. {native}"""
MERGED_USAGE = """\
```python
from safetensors.torch import load_file
{lines}

backbone.load_state_dict(load_file("{folder}/model.safetensors"))
```

The weights are the backbone's own, with the adapters merged into them."""
UNKNOWN = "\n# `backbone`: the {name} that was given to the run; fedsim did not build it.\nfrom mine import backbone"
NATIVE = "Without fedsim, build it with {n} classes as its library does: the weights have to be those of {base}."


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What a card is about: `members` are the clients whose model it is, `round_index` the rounds behind it."""

    name: str
    members: Sequence[int]
    round_index: int
    is_merged: bool
    notes: Sequence[str] = ()
    is_whole: bool = True
    """Whether it is all that its clients hold; their accuracy is its own only then."""


class Recorded(Protocol):
    """What a card wants to know of a run's model (`fedsim.records.recorded_model.RecordedModel`)."""

    @property
    def method(self) -> Any:
        """Its name is what the card calls it."""

    @property
    def population(self) -> Population:
        """Who took part."""

    @property
    def origin(self) -> Any:
        """The loader of the backbone."""

    @property
    def backbone_class(self) -> str:
        """The class of the backbone."""

    @property
    def sha256(self) -> str:
        """The hash of the frozen weights."""

    @property
    def data(self) -> Mapping[str, Any]:
        """Classes, metric, shape of an input, preprocessing."""


def model_card(exported: Exported, model: Recorded, run: Path, to: Path, command: str) -> str:
    """Return the README.md of an exported model, from what the run recorded."""
    origin, who, data, method = model.origin, model.population, model.data, model.method.name
    samples = sum(who.samples[client] for client in exported.members)
    front = {"library_name": "peft" if not exported.is_merged else "safetensors"}
    front |= {"base_model": origin.base} if origin.base else {}
    lines = origin.lines() or UNKNOWN.format(name=model.backbone_class)
    native = NATIVE.format(n=len(data["classes"]) or "no", base=origin.base) if origin.base else ""
    usage = MERGED_USAGE if exported.is_merged else PEFT_USAGE
    shape = f"{data['inputs']} before preprocessing" + (f", {tuple(data['shape'])} after it" if data["shape"] else "")
    weights = origin.base or ("random weights" if origin.loader else "given by the caller")
    return "\n".join(
        [
            "---",
            *(f"{name}: {json.dumps(value)}" for name, value in front.items()),
            "tags: [federated-learning, lora, fedsim]",
            "---",
            f"# {exported.name[0].upper()}{exported.name[1:]} of {method}",
            "",
            f"After {exported.round_index} rounds of {method} in the run `{run}`.",
            *exported.notes,
            "",
            f"- **Data**: {len(exported.members)} of {who.n_participants} clients, {samples} training samples",
            f"- **Classes**: {', '.join(data['classes']) or 'none; the model writes text'}",
            f"- **Inputs**: {shape}; {data['preprocessing']}",
            f"- **Backbone**: {model.backbone_class}, frozen; {weights}; SHA-256 of its weights {model.sha256}",
            *_metrics(exported, model, run),
            "",
            usage.format(folder=to.name, lines=lines, native=native),
            "",
            "Made by",
            "",
            f"    {command}",
            "",
            "## Settings of the run",
            "",
            *(f"    {line}" for line in json.dumps(read_recipe(run), indent=1, default=str).splitlines()),
            "",
        ]
    )


def _metrics(exported: Exported, model: Recorded, run: Path) -> list[str]:
    """Lines on the model's own clients and on all seen ones, each at its last evaluation before the export."""
    metric = model.data["metric"]
    folder, members = RunFolder(run), {str(client) for client in exported.members}
    rows = [row for row in folder.rows_of("clients.csv") if row["client"] in members and metric in row]
    lines = []
    for evaluation, meaning in (
        ("global", "as handed out"),
        ("personal", "after its own local training, before aggregation"),
        ("unseen.untuned", "unseen, as handed out"),
    ):
        latest = {row["client"]: row for row in rows if row["evaluation"] == evaluation and _is_past(row, exported)}
        values = [float(row[metric]) for row in latest.values() if row[metric]]
        if values:
            who = f"client {exported.members[0]}" if len(members) == 1 else f"mean over its {len(values)} clients"
            who += "" if exported.is_whole else " with the adapters of their own that were left out here"
            lines.append(f"- **{metric}**, {who}, {meaning}: {sum(values) / len(values):.4f}")
    of_all: list[Mapping[str, Any]] = [
        row for row in folder.read_table("metrics.csv") if row["global.mean"] and _is_past(row, exported)
    ]
    if of_all:
        row = of_all[-1]
        mean, p10 = float(row["global.mean"]), float(row["global.p10"])
        lines.append(
            f"- **{metric}** over all {len(model.population.seen)} seen clients: mean {mean:.4f}, p10 {p10:.4f}"
        )
    return lines


def _is_past(row: Mapping[str, Any], exported: Exported) -> bool:
    return int(row["round"]) <= exported.round_index or row.get("evaluation", "").startswith("unseen")
