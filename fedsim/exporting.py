"""A model of a recorded run as files: a client's, a cluster's or the shared one, as an adapter or merged weights."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.adapters.bank import NEVER
from fedsim.adapters.layout import MIX_TIER, RANK_AXIS
from fedsim.adapters.peft_folder import PeftAdapter, as_safetensors, write_adapter
from fedsim.adapters.single import concatenated, head_changes, single_adapter
from fedsim.aggregator import Aggregator
from fedsim.models.adapted import linear_at, merged_weights, started_from, whole_heads
from fedsim.parts.sharing import is_private
from fedsim.recorder import restore_state
from fedsim.report.card import Exported, model_card
from fedsim.round import Assignment, ServerState
from fedsim.run_folder import load_checkpoint, read_recipe
from fedsim.setting import Setting
from fedsim.workers import Workers


def export_adapter(
    run: Path | str,
    to: Path | str,
    *,
    client: int | None = None,
    cluster: int | None = None,
    merged: bool = False,
    **setting: Any,
) -> Path:
    """Write a client's, a cluster's or (by default) the shared model of the run in the folder `run`; return `to`.

    `setting` is what the run was given: the arguments of `fedsim.simulate` without out, resume, recipe, threads and
    timeout. The folder holds a PEFT adapter, or with `merged` the backbone's own weights, and a model card. Raises
    ValueError when there is no such model, when no LoRA can express it, or when `to` is not empty.
    """
    return export(Setting(**setting), Path(run), Path(to), client=client, cluster=cluster, merged=merged)


def export(
    what: Setting, run: Path, to: Path, *, client: int | None = None, cluster: int | None = None, merged: bool = False
) -> Path:
    """Do what `export_adapter` does for a setting that is checked already."""
    if client is not None and cluster is not None:
        raise ValueError("--client and --cluster name two models; choose one.")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"'{to}' is there already and not an empty folder (--to).")
    server, state = restored(what, run)
    if client is not None:
        name, members = f"client {client}", [client]
        held, notes = held_by_client(what, server, state, client)
        is_whole = True
    else:
        name, members = "the shared model", list(what.population.seen)
        if cluster is not None:
            name, members = f"cluster {cluster}", members_of(state, cluster, what.population.seen)
        held, notes = held_together(what, server, state, name, members)
        is_whole = not notes
    adapter = as_adapter(what, held)
    base = base_model(what.backbone)
    _write(what.backbone, adapter, to, base, merged)
    exported = Exported(
        name=name,
        method=type(what.method).__name__,
        base_model=base,
        members=members,
        samples=what.population.samples,
        n_seen=len(what.population.seen),
        n_clients=what.population.n_participants,
        n_classes=what.data.n_classes,
        round_index=state.round_index,
        metric=what.data.task.metrics[0],
        is_merged=merged,
        notes=notes,
        is_whole=is_whole,
    )
    command = _command(run, to, {"client": client, "cluster": cluster}, merged)
    (to / "README.md").write_text(model_card(exported, run, to, command))
    return to


def _write(backbone: nn.Module, adapter: PeftAdapter, to: Path, base: str, merged: bool) -> None:
    weights = merged_weights(backbone, adapter) if merged else None  # which is refused before there is a folder
    to.mkdir(parents=True, exist_ok=True)
    if weights is None:
        write_adapter(to, with_start(backbone, adapter), base)
        return
    (to / "model.safetensors").write_bytes(as_safetensors(weights))
    if save := getattr(getattr(backbone, "config", None), "save_pretrained", None):
        save(to)


def _command(run: Path, to: Path, chosen: Mapping[str, int | None], merged: bool) -> str:
    options = [f"--{option} {number}" for option, number in chosen.items() if number is not None]
    words = ["python -m fedsim.export", shlex.quote(str(run)), *options, "--to", shlex.quote(str(to))]
    return " ".join([*words, "--merged"] if merged else words)


def check_has_checkpoint(run: Path) -> None:
    """Raise ValueError when a folder holds no run, several, or one without a checkpoint."""
    read_recipe(run)
    if not any((run / "checkpoints").glob("round-*.json")):
        inside = sorted(str(path.parent.relative_to(run)) for path in run.glob("seed-*/*/recipe.json"))
        several = f"; it compares several runs, choose '{run / inside[0]}' or another" if inside else ""
        raise ValueError(f"The run '{run}' has no checkpoint{several}.")


def restored(what: Setting, run: Path) -> tuple[Aggregator, ServerState]:
    """Return the server of a recorded run and the state of its newest checkpoint."""
    check_has_checkpoint(run)
    round_index, tensors = load_checkpoint(run)
    initial = what.initial_slots()
    server = Aggregator(what.method, what.population, what.layout, initial, Workers(), what.local)
    return server, restore_state(what.state(round_index, initial), tensors)


def held_by_client(what: Setting, server: Aggregator, state: ServerState, client: int) -> tuple[Assignment, list[str]]:
    """Return what a client is handed, at its own LoRA rank, and what a card should say about it."""
    if not 0 <= client < what.population.n_participants:
        raise ValueError(f"client is {client}; it must lie in 0 … {what.population.n_participants - 1} (--client).")
    hand = server.hand_out(state, [client], part="evaluates")
    if client in what.population.unseen and hand.plan.probe is not None:
        raise ValueError(
            f"Client {client} took no part in training. {type(what.method).__name__} places such clients by a probe of "
            "their own, which is not kept; export a cluster's model by --cluster instead."
        )
    note = "Evaluations are of the largest LoRA rank; this model has the client's own."
    return hand.blocks[0][0], [note] if hand.plan.evaluate_largest else []


def held_together(
    what: Setting, server: Aggregator, state: ServerState, name: str, members: list[int]
) -> tuple[Assignment, list[str]]:
    """Return what these clients all hold, at the largest LoRA rank: the tiers of which they have one and the same copy.

    Raises ValueError when there is no such adapter, or when each client weighs them in its own way.
    """
    plan = server.hand_out(state, [], part="evaluates").plan
    widest = max(members, key=lambda client: (plan.lora_ranks or [0] * (client + 1))[client])
    held = server.hand_out(state, [widest], test_sizes={widest: 1}).blocks[0][0]
    own = {slot.tier for slot in held.tensors if not _is_one_copy(plan.groups(slot), members)}
    tensors = {slot: tensor for slot, tensor in held.tensors.items() if slot.tier not in own}
    tiers = {slot.tier for slot in tensors if slot.factor in RANK_AXIS}
    if not tiers:
        raise ValueError(f"There is no such model as {name}: no adapter is the same for its clients; choose --client.")
    mixing = what.layout.mixing
    if mixing and MIX_TIER in own and len(tiers & set(mixing.tiers)) > 1:
        raise ValueError(f"There is no such model as {name}: every client weighs its tiers by itself; choose --client.")
    notes = [f"Left out, being of narrower groups: {', '.join(sorted(own))}."] if own else []
    return replace(held, tensors=tensors), notes


def _is_one_copy(groups: Tensor, members: list[int]) -> bool:
    held = groups[torch.tensor(members)].unique()
    return len(held) == 1 and int(held[0]) != NEVER and (len(groups) == 1 or not is_private(groups))


def members_of(state: ServerState, cluster: int, seen: tuple[int, ...]) -> list[int]:
    """Return the seen clients of a cluster that the method found; raises ValueError when there is none."""
    if (labels := state.learnt.get("labels")) is None:
        raise ValueError("The method has found no clusters (--cluster).")
    members = [client for client in seen if int(labels[client]) == cluster]
    if not members:
        found = sorted({int(labels[client]) for client in seen} - {NEVER})
        raise ValueError(f"cluster is {cluster}; the clusters are {', '.join(map(str, found))} (--cluster).")
    return members


def as_adapter(what: Setting, held: Assignment) -> PeftAdapter:
    """Return the one LoRA of each map that does what the tiers do, and the classifier as a whole."""
    sites = what.layout.sites
    outputs = {site.module: linear_at(what.backbone, site.module).out_features for site in sites}
    changes = single_adapter(sites, outputs, held.tensors, held.scales, what.layout.mixing)
    return PeftAdapter(changes, whole_heads(what.backbone, sites, head_changes(sites, held.tensors)))


def with_start(backbone: nn.Module, adapter: PeftAdapter) -> PeftAdapter:
    """Return the adapter on the backbone as it was before another one was merged into it at the start."""
    both = [*started_from(backbone).items(), *adapter.changes.items()]
    modules = dict.fromkeys(module for module, _ in both)
    changes = {module: concatenated(change for name, change in both if name == module) for module in modules}
    return adapter._replace(changes=changes)


def base_model(backbone: nn.Module) -> str:
    """Return where a backbone comes from, as timm or transformers call it, else its class."""
    config: Any = getattr(backbone, "config", None)
    card: Any = getattr(backbone, "pretrained_cfg", None) or {}
    names = (getattr(config, "_name_or_path", ""), card.get("hf_hub_id"), card.get("architecture"))
    return next((str(name) for name in names if name), type(backbone).__name__)
