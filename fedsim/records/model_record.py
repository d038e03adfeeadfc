"""What a run folder says of its model, so that an export needs the folder alone and runs nobody's code.

model.json           method, sites, who takes part, where the backbone comes from, preprocessing, names of the classes
model.safetensors    initial values of slots, the frozen classifier, an adapter that the backbone started from
checkpoints/         with the state: who holds which copy of a slot, at which LoRA rank and scale (`holders`)
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.adapters.bank import NEVER
from fedsim.adapters.layout import Mixing, Slot
from fedsim.adapters.peft_folder import as_safetensors
from fedsim.data.federated import FederatedData
from fedsim.models.adapted import heads_of, library_state, linear_at, started_from, transposed
from fedsim.models.origin import origin_of, weights_digest
from fedsim.plan import Method, scaled_factor_of, slots_in_use
from fedsim.round import Population, ServerState
from fedsim.run_spec import RunSpec
from fedsim.storage.disk import write_atomically

JSON, TENSORS = "model.json", "model.safetensors"
DATA = ("classes", "metric", "inputs", "shape", "preprocessing")
"""What model.json says of the data."""
HOLDERS = "holders|"
"""Prefix of a checkpoint's tensors that say who holds what; they are no part of the server's state."""


def record_model(folder: Path, spec: RunSpec, initial: Mapping[Slot, Tensor]) -> None:
    """Write model.safetensors and model.json, which an export reads; nothing where they are there already."""
    if (folder / JSON).exists():
        return
    layout, backbone, population = spec.layout, spec.backbone, spec.population
    heads, start = heads_of(backbone, layout.sites), started_from(backbone)
    tensors = {f"initial|{slot}": value.clone() for slot, value in initial.items()}  # tiers may start from one tensor
    tensors |= {f"head|{name}": tensor for name, tensor in heads.items()}
    for module, change in start.items():
        tensors |= {f"start|{module}|{factor}": tensor for factor, tensor in change._asdict().items()}
    method = spec.method
    about = {
        "method": {name: getattr(method, name) for name in ("lora_rank", "lora_alpha", "head_policy", "tiers")}
        | {"name": type(method).__name__, "mixing": _mixing(layout.mixing)}
        | {"scaled_factor": scaled_factor_of(method), "middle_tiers": layout.middle_tiers},
        "sites": [asdict(site) for site in layout.sites],
        "outputs": {site.module: linear_at(backbone, site.module).out_features for site in layout.sites},
        "transposed": transposed(backbone),
        "population": asdict(population),
        "backbone": _about_backbone(backbone, tuple(heads)),
        "data": _about_data(spec.data),
    }
    write_atomically(folder / TENSORS, as_safetensors(tensors))
    write_atomically(folder / JSON, (json.dumps(about, indent=1) + "\n").encode())


def _about_backbone(backbone: nn.Module, heads: tuple[str, ...]) -> dict[str, Any]:
    return {
        "class": type(backbone).__name__,
        "origin": asdict(origin_of(backbone)),
        "sha256": weights_digest(library_state(backbone), heads),
    }


def _about_data(data: FederatedData) -> dict[str, Any]:
    transform: Any = data.transform
    if is_dataclass(transform):
        options = ", ".join(f"{part.name}={getattr(transform, part.name)}" for part in fields(transform))
        says, explained = f"{type(transform).__name__}({options})", transform.__call__.__doc__ or ""
    else:
        says, explained = getattr(transform, "__name__", type(transform).__name__), transform.__doc__ or ""
    return {
        "classes": list(map(str, data.class_names)),
        "metric": data.task.metrics[0],
        "inputs": str(data.inputs.dtype).removeprefix("torch."),
        "shape": list(data.batch(data_row(data))[0].shape[1:]) if data.pad_token is None else None,
        "preprocessing": f"{says}: {explained.strip().splitlines()[0]}" if explained.strip() else says,
    }


def data_row(data: FederatedData) -> Tensor:
    """The first row that a client has, (1,)."""
    return next(rows[:1] for rows in data.rows if len(rows))


def _mixing(mixing: Mixing | None) -> dict[str, Any] | None:
    if mixing is None:
        return None
    kind = type(mixing).__name__
    names = {
        "DepthGate": ("tiers", "initial"),
        "TierWeights": ("tiers", "initial", "by_site"),
        "TokenRouter": ("tiers", "n_outputs"),
        "InstanceWeights": ("tiers", "initial", "weighed", "seen_by"),
    }
    return {"kind": kind} | {name: getattr(mixing, name) for name in names.get(kind, ("tiers",))}


def holders(method: Method, state: ServerState, population: Population, slots: list[Slot]) -> dict[str, Tensor]:
    """Return who holds what after a round, for its checkpoint: groups (n, C), ranks (C,) and the rest as JSON bytes.

    `slots` are all that there are; described are those of the model that is evaluated. Vectors of groups by which most
    slots are shared have a name and are not there.
    """
    training = method.plan(state, population)
    plan = training.part("eval_plan")
    named, rows = population.groupings, list[Tensor]()
    of_slot: dict[str, str | int] = {}
    for slot in slots_in_use(plan, method, slots):
        row = groups = plan.groups(slot)
        if len(groups) < population.n_clients:
            row = torch.cat((groups, torch.full((population.n_clients - len(groups),), NEVER)))
        name = next((name for name, vector in named.items() if vector is row), None)
        index = next((index for index, known in enumerate(rows) if torch.equal(known, row)), len(rows))
        if name is None and index == len(rows):
            rows.append(row)
        of_slot[str(slot)] = index if name is None else name
    about = {
        "slots": of_slot,
        "tiers": plan.tiers,
        "tier_scales": dict(plan.tier_scales),
        "whole_tiers": sorted(plan.whole_tiers),
        "evaluate_largest": plan.evaluate_largest,
        "is_probed": training.unseen is not None,
    }
    tensors = {
        "groups": torch.stack(rows) if rows else torch.empty(0, population.n_clients, dtype=torch.long),
        "about": torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8),
    }
    if plan.lora_ranks is not None:
        tensors["ranks"] = torch.tensor(list(plan.lora_ranks))
    return {f"{HOLDERS}{name}": tensor for name, tensor in tensors.items()}
