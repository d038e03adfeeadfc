"""Methods named on the command line: fedsim's own, and classes of any module, each with its options."""

import dataclasses
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from tyro.conf import arg

from fedsim import methods
from fedsim.experiments.command_line import resume_folder
from fedsim.experiments.recipes import Experiment
from fedsim.plan import Method
from fedsim.storage.run_folder import read_recipe


def plain(name: str) -> str:
    """A name as it is compared: without case, hyphens and underscores."""
    return name.lower().replace("-", "").replace("_", "")


KNOWN = {plain(name): getattr(methods, name) for name in methods.__all__}


def named(words: Sequence[str]) -> dict[str, type]:
    """Return classes by label, of words such as `hilora`, `module:Class` or `label=hilora`.

    A label is an identifier: `--label.lora-rank 8` sets an option of its method. Raises ValueError for a name that is
    unknown, a class that is no method, two methods under one label.
    """
    found: dict[str, type] = {}
    for word in words:
        label, _, name = word.rpartition("=")
        kind = _of_module(name) if ":" in name else KNOWN.get(plain(name))
        if kind is None:
            raise ValueError(
                f"There is no method '{name}'; there are {', '.join(sorted(KNOWN))}, or module:Class (--methods)."
            )
        label = label or plain(kind.__name__)
        if not label.isidentifier() or label in found:
            why = "is no name" if label not in found else "names two methods; name one of them label=method"
            raise ValueError(f"'{label}' {why} (--methods).")
        found[label] = kind
    return found


def with_options(recipe_type: type, kinds: Mapping[str, Mapping[str, tuple[Any, Any]]]) -> type:
    """Return a recipe's type with a field for each method that the command line names, or the resumed run had.

    `kinds` maps what `--kind` may be to the fields that it replaces, each with its type and default. Raises ValueError
    as `named` does.
    """
    typed = {**_recorded(), **_typed()}
    defaults = {field.name: field.default for field in dataclasses.fields(recipe_type)}
    chosen = named(typed.get("methods") or defaults["methods"])
    kind = next(iter(typed.get("kind") or ()), None)
    replaced = kinds.get(kind, {}) if kind else {}
    fields: list[Any] = [
        (name, of, dataclasses.field(default_factory=lambda value=value: value))
        for name, (of, value) in replaced.items()
    ]
    for label, of in chosen.items():
        about = (of.__doc__ or label).strip().splitlines()[0]
        fields.append((option_of(label), Annotated[of, arg(help=about)], dataclasses.field(default_factory=of)))
    made = dataclasses.make_dataclass(recipe_type.__name__, fields, bases=(recipe_type,), frozen=True, kw_only=True)
    made.__doc__, made.__module__ = recipe_type.__doc__, recipe_type.__module__
    return made


def option_of(label: str) -> str:
    """Return what a method's options begin with: its label, where no other option is called so, as `local` is."""
    return f"{label}_method" if label in {field.name for field in dataclasses.fields(Experiment)} else label


def methods_of(recipe: Any) -> dict[str, Method]:
    """Return a recipe's methods by label, all with its head policy; ValueError where one is given its own."""
    chosen = named(recipe.methods).items()
    made = {label: getattr(recipe, option_of(label), None) or kind() for label, kind in chosen}
    for label, kind in chosen:
        if made[label].head_policy != kind().head_policy:
            option = option_of(label).replace("_", "-")
            raise ValueError(f"--{option}.head-policy is not used: --head-policy is that of all methods.")
    return {label: dataclasses.replace(method, head_policy=recipe.head_policy) for label, method in made.items()}


def _of_module(name: str) -> type:
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"'{name}' cannot be imported: {error} (--methods).") from error
    is_method = isinstance(kind, type) and dataclasses.is_dataclass(kind) and callable(getattr(kind, "plan", None))
    if not (is_method and "head_policy" in {field.name for field in dataclasses.fields(kind)}):
        raise ValueError(f"'{name}' is no method: a dataclass with a field `head_policy` and `plan` (--methods).")
    return kind


def _typed() -> dict[str, list[str]]:
    """The words after each option on the command line that has to be known before it is parsed."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in sys.argv[1:]:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            if name in ("methods", "kind"):
                found[name] = [value] if value else []
        elif name in found:
            found[name].append(word)
    return found


def _recorded() -> dict[str, list[str]]:
    """The same of the run that is resumed, where one is: of a folder no module is imported that nobody has typed."""
    if (folder := resume_folder(sys.argv[1:])) is None:
        return {}
    recipe = read_recipe(folder)
    words = list(map(str, recipe.get("methods", ())))
    if own := sorted(set(filter(lambda word: ":" in word, words)) - set(_typed().get("methods", ()))):
        raise ValueError(
            f"The run has methods of modules that are not fedsim's, {', '.join(own)}, imported only where they "
            f"are named again (--methods {' '.join(words)})."
        )
    return {"methods": words, "kind": [recipe["kind"]] if "kind" in recipe else []}
