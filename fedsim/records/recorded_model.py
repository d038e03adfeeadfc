"""The model that a run folder tells of (see model_record.py), checked: of a stranger's folder nothing is believed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from fedsim.adapters.bank import NEVER, Bank
from fedsim.adapters.layout import Layout, Mixing, Site, Slot, fit_rank, parse_slot
from fedsim.adapters.mixing import DepthGate, InstanceWeights, TierWeights, TokenRouter
from fedsim.adapters.single import LowRankChange
from fedsim.models import backbones, causal, digits_vit, text  # noqa: F401  # whose loaders are known from here on
from fedsim.models.origin import Origin
from fedsim.plan import Plan
from fedsim.records.model_record import DATA, HOLDERS, JSON, TENSORS
from fedsim.round import Horizon, Population, ServerState
from fedsim.storage.disk import read_json
from fedsim.storage.wire import unpack

MIXINGS: dict[str, type[DepthGate | TierWeights | TokenRouter]] = {
    kind.__name__: kind for kind in (DepthGate, TierWeights, InstanceWeights, TokenRouter)
}
DAMAGE = (KeyError, TypeError, AttributeError, IndexError, ValueError, OSError, SafetensorError, RuntimeError)
"""What a folder that is not as it was written can make of reading it."""


@dataclass(frozen=True)
class RecordedMethod:
    """A method as far as a checkpoint tells of it: its numbers, and the plan of who holds what."""

    name: str
    lora_rank: int
    lora_alpha: float | None
    head_policy: Any
    tiers: tuple[str, ...]
    mixing: Mixing | None
    scaled_factor: str | None
    held: Plan

    def plan(self, state: ServerState, population: Population) -> Plan:
        """The recorded one."""
        return self.held


@dataclass(frozen=True)
class RecordedModel:
    """All that a run folder says of its model."""

    method: RecordedMethod
    layout: Layout
    population: Population
    initial: Mapping[Slot, Tensor]
    heads: Mapping[str, Tensor]
    start: Mapping[str, LowRankChange]
    outputs: Mapping[str, int]
    transposed: tuple[str, ...]
    origin: Origin
    backbone_class: str
    sha256: str
    data: Mapping[str, Any]
    is_probed: bool

    def state(self, round_index: int) -> ServerState:
        """The server's state with which a round begins, but for what a checkpoint holds."""
        bank, never = Bank(dict(self.initial)), torch.full((self.population.n_clients,), NEVER)
        depths, adapted = self.layout.depths, self.layout.adapted
        return ServerState(round_index, Horizon(max(round_index, 1)), {}, bank, never, depths, adapted)


def read_model(folder: Path, checkpoint: Mapping[str, Tensor]) -> RecordedModel:
    """Return what a run folder and its checkpoint say of the model; raises ValueError, which names the file."""
    path = folder / JSON
    if not path.is_file():
        raise ValueError(
            f"'{folder}' has no {JSON}, so nothing can be exported; it is no run of this version of fedsim."
        )
    about = read_json(path)
    try:
        tensors = unpack((folder / TENSORS).read_bytes())
        return _parsed(about, tensors, checkpoint)
    except DAMAGE as error:
        why = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"'{path}', the {TENSORS} beside it or the newest checkpoint is damaged: {why}.") from None


def _parsed(about: Mapping[str, Any], tensors: Mapping[str, Tensor], checkpoint: Mapping[str, Tensor]) -> RecordedModel:
    numbers, population = about["method"], about["population"]
    mixing = _read_mixing(numbers["mixing"])
    sites = tuple(Site(**{**site, "rows": site["rows"] and tuple(site["rows"])}) for site in about["sites"])
    tiers, middle = tuple(numbers["tiers"]), tuple(numbers.get("middle_tiers", ()))
    layout = Layout(sites, tiers, int(numbers["lora_rank"]), numbers["head_policy"], mixing, middle)
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in population.items()}
    who = Population(**lists)
    said = json.loads(bytes(checkpoint[f"{HOLDERS}about"].numpy()))
    initial = {parse_slot(name): t for name, t in _under(tensors, "initial|").items()}
    shapes = {slot: torch.empty(shape, device="meta") for slot, shape in layout.shapes.items()}
    if not _but_for_rank(shapes).items() <= _but_for_rank(initial).items():  # a method may keep slots of its own
        raise ValueError("the initial values are not those of its sites and tiers")
    heads, backbone, outputs = _under(tensors, "head|"), about["backbone"], about["outputs"]
    for site in sites:
        wanted = (site.out_features, site.in_features)
        if site.is_head and (weight := heads.get(f"{site.module}.weight")) is not None and weight.shape == wanted:
            continue
        if site.is_head or outputs[site.module] < max(site.rows or (site.out_features,)):
            raise ValueError(f"the linear map '{site.module}' is not of the size that it should have")
    if not all(name.isidentifier() for name in (numbers["name"], backbone["class"])):
        raise ValueError("the method or the backbone has a name that is none")
    start = _under(tensors, "start|")
    modules = dict.fromkeys(name.rpartition("|")[0] for name in start)
    return RecordedModel(
        RecordedMethod(
            numbers["name"], layout.lora_rank, numbers["lora_alpha"], layout.head_policy, layout.tiers, mixing,
            numbers["scaled_factor"], _read_plan(said, who, checkpoint),
        ),
        layout, who, initial, heads,
        {module: LowRankChange(start[f"{module}|A"], start[f"{module}|B"]) for module in modules},
        outputs, tuple(about["transposed"]), Origin(**backbone["origin"]), backbone["class"], backbone["sha256"],
        {name: _printable(about["data"][name]) for name in DATA}, bool(said["is_probed"]),
    )  # fmt: skip


def _read_plan(said: Mapping[str, Any], population: Population, checkpoint: Mapping[str, Tensor]) -> Plan:
    groups, ranks = checkpoint[f"{HOLDERS}groups"], checkpoint.get(f"{HOLDERS}ranks")
    if groups.ndim != 2 or groups.shape[1] != population.n_clients or groups.is_floating_point():
        raise ValueError(f"it says of {tuple(groups.shape)} copies who of {population.n_clients} clients holds them")
    known = population.groupings
    rows = {
        parse_slot(name): known[vector] if isinstance(vector, str) else groups[vector]
        for name, vector in said["slots"].items()
    }
    return Plan(
        population=population,
        tiers=said["tiers"] and tuple(said["tiers"]),
        active=rows.__contains__,
        sharing=lambda slot, population: rows[slot],
        lora_ranks=None if ranks is None else ranks.tolist(),
        tier_scales=said["tier_scales"],
        whole_tiers=frozenset(said["whole_tiers"]),
        evaluate_largest=said["evaluate_largest"],
    )


def _read_mixing(said: Mapping[str, Any] | None) -> Mixing | None:
    if said is None:
        return None
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    kind = options.pop("kind")
    if kind not in MIXINGS:
        raise ValueError(f"the method weighs its tiers by '{kind}', which only its own author knows")
    return MIXINGS[kind](**options)


def _printable(value: Any) -> Any:
    """Words as one line each, lists of them, and numbers, for a card."""
    if isinstance(value, list):
        return [_printable(entry) for entry in value]
    return " ".join(value.split()) if isinstance(value, str) else value


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _but_for_rank(values: Mapping[Slot, Tensor]) -> dict[Slot, torch.Size]:
    """The shapes of values at LoRA rank 0: a tier may start narrower than the method's largest rank."""
    return {slot: fit_rank(value, slot.factor, 0).shape for slot, value in values.items()}
