"""What recipes have in common: options, and the way from them to a printed result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fedsim.data.federated import FederatedData
from fedsim.experiments.command_line import RunOptions
from fedsim.experiments.comparison import check_names, compare
from fedsim.experiments.dry_run import print_costs
from fedsim.experiments.tuning import Grid
from fedsim.models.adapted import start_from_adapter
from fedsim.options import LocalTraining
from fedsim.plan import Method
from fedsim.randomness import numpy_generator
from fedsim.report.comparison import print_comparison
from fedsim.report.table import print_result
from fedsim.simulation import simulate

Methods = Method | Grid | Mapping[str, Method | Grid]
"""One method, or several by name, which are then compared on one split a seed and one backbone."""
Federation = Callable[[int], FederatedData]
"""From a seed to the data of all clients."""


@dataclass(frozen=True, kw_only=True)
class Experiment(RunOptions):
    """A method on the data of clients with a backbone; a recipe adds the fields `method`, `data` and `model`."""

    local: LocalTraining = field(default_factory=LocalTraining)
    """Local training."""
    embedded: bool = False
    """Try it anywhere: small data and a small backbone that come with fedsim instead of `data` and `model`."""


def chosen(methods: Mapping[str, Method | Grid], names: Sequence[str]) -> Methods:
    """Return the methods of these names, or where it is one name that method; ValueError where there is no such."""
    if not names or (unknown := sorted(set(names) - methods.keys())):
        which = f"There is no method {', '.join(unknown)}" if names else "No method is named"
        raise ValueError(f"{which}; there are {', '.join(methods)} (--methods).")
    return {name: methods[name] for name in names} if len(set(names)) > 1 else methods[names[0]]


def run_experiment(recipe: Any, methods: Methods | None = None) -> None:
    """Find a recipe's data, make its backbone, simulate its method, or `methods` where they are given, and print.

    `data.federations(model)` finds the data, for which it may need the model's tokenizer; `model.backbone(found)` fits
    them; `found.federation(rng)` is a seed's. With `--embedded` it is `data.embedded()` and `model.embedded_backbone`.
    Raises ValueError when data or weights are not to be had, before anything is decoded, tokenised or written.
    """
    data, model, dry_run = recipe.data, recipe.model, recipe.dry_run
    if getattr(recipe, "embedded", False):
        found = data.embedded()
        backbone = model.embedded_backbone(found)
    else:
        found = data.federations(model, dry_run)
        backbone = model.backbone(found, dry_run)
    methods = recipe.method if methods is None else methods
    run(recipe, methods, lambda seed: found.federation(numpy_generator(seed, "data")), backbone)


def run(recipe: Any, methods: Methods, data: Federation, backbone: nn.Module) -> None:
    """Simulate and print: one method, or several methods or seeds compared; under `--dry-run` only what they cost."""
    backbone = start_from_adapter(backbone, recipe.model.adapter)
    common = {"backbone": backbone, "sites": recipe.model.sites, "local": recipe.local, **recipe.arguments()}
    seed = common.pop("seed")
    seeds, several = recipe.seeds or (seed,), methods if isinstance(methods, Mapping) else None
    if several is None and (recipe.seeds or isinstance(methods, Grid)):
        several = {type(getattr(methods, "method", methods)).__name__.lower(): methods}
    check_names(several or {"it": methods}, seeds, recipe.reference)
    if recipe.dry_run:
        print_costs(several or {type(methods).__name__.lower(): methods}, data, seeds, **common)
    elif several is not None:
        if found := compare(several, data, seeds=seeds, reference=recipe.reference, cells=recipe.cells, **common):
            print_comparison(found)
    elif result := simulate(method=methods, data=data(seed), seed=seed, **common):
        print_result(result)
