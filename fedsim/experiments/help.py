"""What `--help` of a recipe shows: the options that most runs set, then all others under a heading of their own."""

import argparse
import textwrap
import warnings
from collections.abc import Collection
from typing import Any

from tyro.extras import get_parser

COMMON = {"path", "dataset", "task", "partition", "n-clients", "alpha", "unseen-fraction", "tasks", "clients-per-task"}
COMMON |= {"clients-per-domain", "clients-per-style", "name", "weights", "epochs", "batch-size", "learning-rate"}
"""Of `data`, `model` and `local`; of a method all options but those of its parts."""
ADVANCED = {"engine", "block-size", "static-shapes", "compile", "on-nan", "threads"}
ADVANCED |= {"cuda-graphs", "deterministic", "tf32", "timeout", "wandb", "evaluate-every", "evaluate-clients", "bank"}
"""Of those that stand by themselves."""


def help_text(recipe_type: type, default: Any, program: str, description: str) -> str:
    """Return the help of a recipe: what it is, its common options and its advanced ones, each by part."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        actions = get_parser(recipe_type, default=default)._actions
    methods = {"method", *(name.replace("_", "-") for name, value in vars(default).items() if hasattr(value, "plan"))}
    common, advanced = [], []
    for action in actions:
        (common if is_common(action.option_strings[0].lstrip("-"), methods) else advanced).append(_entry(action))
    heads = f"usage: {program} [OPTIONS]\n\n{description.strip()}\n\nCommon options:\n", "\nAdvanced options:\n"
    return heads[0] + "".join(sorted(common, key=_part)) + heads[1] + "".join(sorted(advanced, key=_part))


def is_common(option: str, methods: Collection[str] = ("method",)) -> bool:
    """Whether an option, such as data.alpha, is one that most runs set; `methods` are the parts that are methods."""
    part, _, name = option.rpartition(".")
    if not part:
        return name not in ADVANCED
    if part in methods:
        return part == "method" or name != "head-policy"  # of several methods --head-policy is all methods'
    return name in COMMON and "." not in part


def _part(entry: str) -> str:
    """The part of the recipe that an entry belongs to: options that stand by themselves come first."""
    option = entry.split()[0].rstrip(",").lstrip("-")
    return option.rpartition(".")[0]


def _entry(action: argparse.Action) -> str:
    values = action.metavar or ""
    said = " ".join((action.help or "").split())
    return f"  {', '.join(action.option_strings)} {values}".rstrip() + "\n" + textwrap.fill(said, 112, **_INDENT) + "\n"


_INDENT: dict[str, Any] = {"initial_indent": " " * 6, "subsequent_indent": " " * 6}
