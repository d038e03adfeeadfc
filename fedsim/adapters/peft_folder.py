"""PEFT's adapter folders: adapter_config.json and adapter_model.safetensors. Reading one never executes code.

base_model.model.<module>.lora_A.weight (R, I)      base_model.model.<module>.lora_B.weight (O, R)
base_model.model.<module>.weight, .bias             modules_to_save: whole linear maps, the classifier's
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedsim.adapters.single import LowRankChange

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
OTHER_KINDS = (
    "use_dora",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "megatron_config",
    "alora_invocation_tokens",
)
"""Fields of LoraConfig under which ΔW is not (α/R) B A of the module's own."""
TOKEN = r"(?:\.\*|\\d\+?|\[0-9\]\+?|\\?\.|[\w-]|\((?:\?:)?[\w.-]+(?:\|[\w.-]+)*\))"
KEY = re.compile(rf"\^?{TOKEN}+\$?", re.ASCII)
"""Keys of rank_pattern and alpha_pattern that are matched: all that it takes to name modules, in bounded time."""
LONGEST, WILDCARDS, WILD_KEYS = 200, 2, 64
"""Characters of a key; its *, + and alternatives, each of which multiplies what matching costs; keys with any."""
LARGEST_CONFIG = 4 * 2**20
"""Bytes of a configuration that is read."""
Pattern = list[tuple[re.Pattern[str], float]]


class Config(NamedTuple):
    """What is read of a LoraConfig, checked; a pattern's first key that matches a module tells its number."""

    rank: int
    alpha: float
    ranks: Pattern
    alphas: Pattern
    by_root: bool
    """Whether the scale is α/√R, not α/R."""


class PeftAdapter(NamedTuple):
    """What a folder holds: changes B A, scale included, and whole tensors `<module>.weight` or `.bias`."""

    changes: dict[str, LowRankChange]
    whole: dict[str, Tensor]


def write_adapter(folder: Path, adapter: PeftAdapter, base_model: str | None = None) -> None:
    """Write an adapter of α = R everywhere as a PEFT folder; whole tensors go through modules_to_save."""
    changes = dict(sorted(adapter.changes.items()))
    ranks = {module: len(change.A) for module, change in changes.items()}
    usual = max(ranks.values())
    unusual = {module: rank for module, rank in ranks.items() if rank != usual}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": 0.0,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": unusual,
        "alpha_pattern": unusual,
        "target_modules": list(changes),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in adapter.whole}) or None,
    }
    tensors = {
        f"{PREFIX}{module}.lora_{name}.weight": t for module, c in changes.items() for name, t in c._asdict().items()
    }
    tensors |= {f"{PREFIX}{name}": tensor for name, tensor in adapter.whole.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(as_safetensors(tensors))
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def as_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors, of which no two may share memory, as a file that PEFT, timm and transformers read."""
    return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt"})


def read_adapter(folder: Path, shapes: Mapping[str, torch.Size]) -> PeftAdapter:
    """Return a PEFT folder's adapter for a backbone with parameters of these shapes, by name.

    Raises ValueError, which names file and tensor, for anything but a plain LoRA in safetensors that fits.
    """
    config = _read_config(folder)
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(path.name for kind in PICKLES for path in folder.glob(kind))
        also = f" Its {pickles[0]} is a pickle, which can execute code; save it as safetensors." if pickles else ""
        raise ValueError(f"The adapter folder '{folder}' has no {WEIGHTS}.{also}")
    stored = _read_tensors(folder / WEIGHTS)
    changes, whole = {}, {}
    for name, tensor in stored.items():
        module = re.sub(r"\.lora_[AB]\.weight$", "", name)
        if module == name:
            whole[name] = _fitting(folder, name, tensor, shapes.get(name))
        elif module not in changes:
            A, B = (stored.get(f"{module}.lora_{factor}.weight") for factor in "AB")
            changes[module] = _change(folder, config, module, A, B, shapes.get(f"{module}.weight"))
    return PeftAdapter(changes, whole)


def _read_config(folder: Path) -> Config:
    path = folder / CONFIG
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > LARGEST_CONFIG):
            raise ValueError(f"it is no file of at most {LARGEST_CONFIG // 2**20} MiB")
        config: Any = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError(f"'{folder}' is no PEFT adapter folder: '{path}' is nested too deeply.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"'{folder}' is no PEFT adapter folder: '{path}' cannot be read ({error}).") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"The adapter '{path}' is no plain LoRA: its peft_type is not LORA.")
    other = [name for name in OTHER_KINDS if config.get(name)]
    if other or config.get("bias", "none") != "none":
        raise ValueError(f"The adapter '{path}' is no plain LoRA: it uses {', '.join(other) or 'trained biases'}.")
    if not isinstance(by_root := config.get("use_rslora") or False, bool):
        raise ValueError(f"'{path}': use_rslora is {_shown(by_root)}; it must be true or false.")
    rank, alpha = (_number(path, name, config.get(name)) for name in ("r", "lora_alpha"))
    ranks, alphas = (_pattern(path, name, config.get(name)) for name in ("rank_pattern", "alpha_pattern"))
    return Config(int(rank), alpha, ranks, alphas, by_root)


def _number(path: Path, name: str, value: object) -> float:
    """A LoRA rank or an α; raises ValueError for anything but a number above 0, and a rank that is not whole."""
    is_rank = name.startswith("r")
    is_number = isinstance(value, int if is_rank else int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < 2**31:  # type: ignore[operator]
        kind = "a whole number from 1" if is_rank else "a number above 0"
        raise ValueError(f"'{path}': {name} is {_shown(value)}; it must be {kind}, and below 2^31.")
    return value  # type: ignore[return-value]


def _pattern(path: Path, name: str, entries: object) -> Pattern:
    """A rank_pattern or alpha_pattern as PEFT matches it; raises ValueError for a key that could take for ever."""
    if not isinstance(entries := entries or {}, dict):
        raise ValueError(f"'{path}': {name} is {_shown(entries)}; it must map names of modules to numbers.")
    found, wild = [], 0
    for key, value in entries.items():
        wildcards = sum(map(key.count, "*+("))
        wild += wildcards > 0
        if len(key) > LONGEST or wildcards > WILDCARDS or wild > WILD_KEYS or not KEY.fullmatch(key):
            raise ValueError(
                f"'{path}': the key {_shown(key)} of {name} is not allowed. A key is a module's name or its end, "
                f"of up to {LONGEST} characters; a dot is any character. Also allowed are ^, $ and \\., and up to "
                f"{WILDCARDS} of .*, \\d+, [0-9]+ and (a|b), in up to {WILD_KEYS} keys."
            )
        found.append((re.compile(rf"(.*\.)?({key})$"), _number(path, f"{name}[{_shown(key)}]", value)))
    return found


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file in fp32, without PEFT's prefix."""
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                if not tensor.is_floating_point() or (own := name.removeprefix(PREFIX)) in tensors:
                    why = "there twice" if tensor.is_floating_point() else f"of {tensor.dtype}, not of real numbers"
                    raise ValueError(f"'{path}': tensor '{name}' is {why}.")
                tensors[own] = tensor.float()
    except (OSError, SafetensorError) as error:
        raise ValueError(f"'{path}' is damaged or not in the safetensors format: {error}.") from None
    return tensors


def _change(
    folder: Path, config: Config, module: str, A: Tensor | None, B: Tensor | None, shape: torch.Size | None
) -> LowRankChange:
    where = f"'{folder / WEIGHTS}': tensor '{PREFIX}{module}.lora_"
    if A is None or B is None:
        raise ValueError(f"{where}{'A' if A is None else 'B'}.weight' is missing beside its other factor.")
    if shape is None or len(shape) != 2:  # first: only names of the backbone, which are short, are matched
        raise ValueError(f"{where}A.weight' belongs to no linear map of the backbone.")
    rank, alpha = _of_pattern(config.ranks, module, config.rank), _of_pattern(config.alphas, module, config.alpha)
    for factor, tensor, wanted in (("A", A, (int(rank), shape[1])), ("B", B, (shape[0], int(rank)))):
        _fitting(folder, f"{module}.lora_{factor}.weight", tensor, torch.Size(wanted))
    scale = alpha / (math.sqrt(rank) if config.by_root else rank)
    if rank * scale * float(A.abs().max()) * float(B.abs().max()) > torch.finfo(torch.float32).max:
        raise ValueError(f"{where}A.weight' and its B hold numbers whose product is too large for 32 bits.")
    return LowRankChange(A, B * scale)


def _fitting(folder: Path, name: str, tensor: Tensor, shape: torch.Size | None) -> Tensor:
    where = f"'{folder / WEIGHTS}': tensor '{PREFIX}{name}'"
    if shape is None:
        raise ValueError(f"{where} has no counterpart in the backbone.")
    if tensor.shape != shape:
        raise ValueError(f"{where} is {tuple(tensor.shape)}, and {tuple(shape)} is needed.")
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{where} holds numbers that are not finite.")
    return tensor


def _of_pattern(pattern: Pattern, module: str, usual: float) -> float:
    """The entry of a module in PEFT's rank_pattern or alpha_pattern."""
    return next((value for key, value in pattern if key.match(module)), usual)
