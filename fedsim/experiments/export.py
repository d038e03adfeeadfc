"""A model of a recorded run as files: a client's, a cluster's or the shared one, as an adapter or merged weights.

All is read from the run folder; no script is run. Merged weights need the backbone, which is built again by the loader
that the run names, or read from a file, and has to have the weights that the run had.
"""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedsim.adapters.bank import NEVER
from fedsim.adapters.layout import MIX_TIER, RANK_AXIS
from fedsim.adapters.peft_folder import PeftAdapter, as_safetensors, write_adapter
from fedsim.adapters.single import LowRankChange, head_changes, joined, single_adapter
from fedsim.distributed.workers import Workers
from fedsim.models.adapted import changed_heads, library_state, with_changes
from fedsim.models.origin import rebuilt, weights_digest
from fedsim.options import LocalTraining
from fedsim.parts.sharing import is_private
from fedsim.records.recorded_model import RecordedModel, read_model
from fedsim.records.recorder import restore_state
from fedsim.report.card import Exported, model_card
from fedsim.round import Assignment, ServerState
from fedsim.server.aggregator import Aggregator
from fedsim.server.workload import Workload
from fedsim.storage.disk import write_atomically
from fedsim.storage.run_folder import load_checkpoint, read_recipe
from fedsim.storage.tables import check_counts_from_one


def export_adapter(
    run: Path | str,
    to: Path | str,
    *,
    client: int | None = None,
    cluster: int | None = None,
    merged: bool = False,
    backbone: Path | str | None = None,
) -> Path:
    """Write a client's, a cluster's or (by default) the shared model of the run in the folder `run`; return `to`.

    The folder holds a PEFT adapter, or with `merged` the backbone's own weights, and a model card. `backbone` is a
    safetensors file with the weights of the plain backbone, where no loader of fedsim can build it again. Raises
    ValueError when there is no such model, when no LoRA can express it, when the backbone has other weights than the
    run's, or when `to` is not empty.
    """
    run, to = Path(run), Path(to)
    if client is not None and cluster is not None:
        raise ValueError("--client and --cluster name two models; choose one.")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"'{to}' is there already and not an empty folder (--to).")
    if backbone is not None and not merged:
        raise ValueError("--backbone is for --merged; an adapter needs no backbone.")
    model, aggregator, state = restored(run)
    name, members, held, notes = _chosen(model, aggregator, state, client, cluster)
    adapter = as_adapter(model, held)
    weights = merged_weights(model, adapter, Path(backbone) if backbone else None) if merged else None
    is_whole = client is not None or not notes
    exported = Exported(
        name=name, members=members, round_index=state.round_index, is_merged=merged, notes=notes, is_whole=is_whole
    )
    command = _command(run, to, {"client": client, "cluster": cluster}, merged)
    card = model_card(exported, model, run, to, command)
    to.mkdir(parents=True, exist_ok=True)
    if weights is None:
        write_adapter(to, with_start(model, adapter), model.origin.base)
    else:
        write_atomically(to / "model.safetensors", as_safetensors(weights))
    write_atomically(to / "README.md", card.encode())
    return to


def _chosen(
    model: RecordedModel, aggregator: Aggregator, state: ServerState, client: int | None, cluster: int | None
) -> tuple[str, list[int], Assignment, list[str]]:
    """What to call a model, whose it is, what they hold, and what a card should say about it."""
    if client is not None:
        return f"client {client}", [client], *held_by_client(model, aggregator, state, client)
    name, members = "the shared model", list(model.population.seen)
    if cluster is not None:
        name, members = f"cluster {cluster}", members_of(state, cluster, model.population.seen)
    return name, members, *held_together(model, aggregator, state, name, members)


def merged_weights(model: RecordedModel, adapter: PeftAdapter, file: Path | None) -> dict[str, Tensor]:
    """Return the backbone's own state dict with an adapter merged into it, as the backbone's library names it.

    `file` holds the plain backbone's weights; without it the run's loader builds them. Raises ValueError when they are
    not those of the run: all but the classifier's, which the run folder holds.
    """
    if file is None:
        state, whence = library_state(rebuilt(model.origin)), f"that {model.origin.loader} builds now"
    else:
        state, whence = _read(file), f"in '{file}'"
    missing = [f"{module}.weight" for module in model.outputs if f"{module}.weight" not in state]
    if missing:
        raise ValueError(f"The weights {whence} lack '{missing[0]}', so they are not this run's (--backbone).")
    started = with_changes(state, model.start, model.transposed)
    if weights_digest(started, tuple(model.heads)) != model.sha256:
        raise ValueError(
            f"The weights {whence} are not those that the run had; give the right file by --backbone FILE."
        )
    return with_changes(started, adapter.changes, model.transposed) | adapter.whole


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"'{file}' cannot be read as safetensors: {error} (--backbone).") from None


def _command(run: Path, to: Path, chosen: Mapping[str, int | None], merged: bool) -> str:
    options = [f"--{option} {number}" for option, number in chosen.items() if number is not None]
    words = ["python -m fedsim.export", shlex.quote(str(run)), *options, "--to", shlex.quote(str(to))]
    return " ".join([*words, "--merged"] if merged else words)


def check_has_checkpoint(run: Path) -> None:
    """Raise ValueError when a folder holds no run, several, or one without a checkpoint."""
    read_recipe(run)
    check_counts_from_one(run)
    if not any((run / "checkpoints").glob("round-*.json")):
        inside = sorted(str(path.parent.relative_to(run)) for path in run.glob("seed-*/*/recipe.json"))
        several = f"; it compares several runs, choose '{run / inside[0]}' or another" if inside else ""
        raise ValueError(f"The run '{run}' has no checkpoint{several}.")


def restored(run: Path) -> tuple[RecordedModel, Aggregator, ServerState]:
    """Return the model of a recorded run, its aggregator and the state of its newest checkpoint."""
    check_has_checkpoint(run)
    round_index, tensors = load_checkpoint(run)
    model = read_model(run, tensors)
    workload = Workload(model.method, model.population, model.layout, model.initial, LocalTraining())
    return model, Aggregator(workload, Workers()), restore_state(model.state(round_index), tensors)


def held_by_client(
    model: RecordedModel, aggregator: Aggregator, state: ServerState, client: int
) -> tuple[Assignment, list[str]]:
    """Return what a client is handed, at its own LoRA rank, and what a card should say about it."""
    if not 0 <= client < model.population.n_participants:
        raise ValueError(f"client is {client}; it must lie in 0 … {model.population.n_participants - 1} (--client).")
    dispatch = aggregator.dispatch(state, [client], part="eval_plan")
    if client in model.population.unseen and model.is_probed:
        raise ValueError(
            f"Client {client} took no part in training. {model.method.name} places such clients by a probe of "
            "their own, which is not kept; export a cluster's model by --cluster instead."
        )
    note = "Evaluations are of the largest LoRA rank; this model has the client's own."
    return dispatch.blocks[0][0], [note] if dispatch.plan.evaluate_largest else []


def held_together(
    model: RecordedModel, aggregator: Aggregator, state: ServerState, name: str, members: list[int]
) -> tuple[Assignment, list[str]]:
    """Return what these clients all hold, at the largest LoRA rank: the tiers of which they have one and the same copy.

    Raises ValueError when there is no such adapter, or when each client weighs them in its own way.
    """
    plan = aggregator.dispatch(state, [], part="eval_plan").plan
    widest = max(members, key=lambda client: (plan.lora_ranks or [0] * (client + 1))[client])
    held = aggregator.dispatch(state, [widest], test_sizes={widest: 1}).blocks[0][0]
    own = {slot.tier for slot in held.tensors if not _is_one_copy(plan.groups(slot), members)}
    tensors = {slot: tensor for slot, tensor in held.tensors.items() if slot.tier not in own}
    tiers = {slot.tier for slot in tensors if slot.factor in RANK_AXIS}
    if not tiers:
        raise ValueError(f"There is no such model as {name}: no adapter is the same for its clients; choose --client.")
    mixing = model.layout.mixing
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


def as_adapter(model: RecordedModel, held: Assignment) -> PeftAdapter:
    """Return the one LoRA of each map that does what the tiers do, and the classifier as a whole."""
    sites = model.layout.sites
    changes = single_adapter(sites, model.outputs, held.tensors, held.scales, model.layout.mixing)
    return PeftAdapter(changes, changed_heads(model.heads, head_changes(sites, held.tensors)))


def with_start(model: RecordedModel, adapter: PeftAdapter) -> PeftAdapter:
    """Return the adapter on the backbone as it was before another one was merged into it at the start."""
    both: list[tuple[str, LowRankChange]] = [*model.start.items(), *adapter.changes.items()]
    modules = dict.fromkeys(module for module, _ in both)
    changes = {module: joined(change for name, change in both if name == module) for module in modules}
    return adapter._replace(changes=changes)
