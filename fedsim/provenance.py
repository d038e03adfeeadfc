"""With what a run was made: package versions, git revision, the script and its arguments; tensors by fingerprint."""

import hashlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PACKAGES = (
    "fedsim-lora",
    "torch",
    "lightning",
    "timm",
    "transformers",
    "peft",
    "datasets",
    "scikit-learn",
    "scipy",
    "numpy",
)


def environment() -> dict[str, Any]:
    """Return package versions, the git revision of the code (with a mark when files differ) and what was started."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        revision = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        revision = ""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    started = {"script": str(Path(script).absolute()) if script else "", "arguments": sys.argv[1:]}
    return {"versions": versions, "git": revision or "unknown", **started}


def fingerprint(tensors: Iterable[Tensor], sampled: int = 64) -> str:
    """Return sixteen hexadecimal digits that differ where tensors do: in shape, type, or one of 64 spread elements."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel() and not tensor.is_meta:
            # In float64: float32 rounds the last place of more than 2**24 elements to one that does not exist.
            places = torch.linspace(0, tensor.numel() - 1, min(sampled, tensor.numel()), dtype=torch.float64).long()
            digest.update(tensor.detach().flatten()[places.to(tensor.device)].cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]
