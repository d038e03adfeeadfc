"""Where a labelled data set is looked for (a folder, the folder of data sets, the hub), and what of it is kept."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import datasets

from fedsim.data.listing import Listed, keep_first_classes, keep_groups, keep_some, keep_top_classes, with_test
from fedsim.data.task import ClassificationF1, Task

VARIABLE = "FEDSIM_DATA"
"""Environment variable that names a folder of data sets."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Which data set, and which part of it."""

    path: Path | None = None
    """Folder of the data set, as such or inside $FEDSIM_DATA; default: its name there, then the hub and its cache."""
    hub: str = ""
    """Name of the data set on the hub."""
    subset: str = ""
    """The hub's configuration of it; in a folder, a word that the paths of its files have."""
    train_split: str = "train"
    """Name of the training split, on the hub and in the names of files."""
    test_split: str = "test"
    """Name of the test split; empty to hold out `test_share` of the training split."""
    label_column: str = "label"
    """Column of class labels, in parquet files and on the hub."""
    group_column: str = ""
    """Column of domains, super-classes, …, in parquet files and on the hub; empty for none."""
    group: tuple[str, ...] = ()
    """Keep only these groups' samples (domains, super-classes); default all."""
    top_classes: int | None = None
    """Keep only so many classes, those with the most training samples; default all."""
    first_classes: int | None = None
    """Keep only the classes with the lowest numbers; default all."""
    train_samples: int | None = None
    """Keep about so many training samples, the same share of each class; default all."""
    test_samples: int | None = None
    """Keep about so many test samples, the same share of each class; default all."""
    test_share: float = 0.2
    """Share of each class held out for testing where the data set has no test split of its own."""
    f1: bool | None = None
    """Tell macro F1 beside accuracy, by client and over all test samples together; default: of LEDGAR."""

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise ValueError("; ".join(problems) + " (--data.*).")

    def scoring(self, n_classes: int) -> dict[str, Task]:
        """The field of `FederatedData` that says how clients are scored, where it is not by accuracy alone."""
        return {"task": ClassificationF1(n_classes)} if self.f1 else {}

    def problems(self) -> list[str]:
        """What is out of range; an heir adds its own."""
        problems = []
        for name in ("top_classes", "first_classes", "train_samples", "test_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name} is {value}; it must be 1 or more")
        if not 0 < self.test_share < 1:
            problems.append(f"test_share is {self.test_share}; it must lie between 0 and 1")
        return problems


def find(
    options: SourceOptions, what: str, list_folder: Callable[[Path], Listed], list_hub: Callable[[], Listed]
) -> Listed:
    """Return the listing of a data set, with a test split, and only what the options keep.

    Nothing is read but labels, and nothing written but what `datasets` keeps of a download. Raises ValueError when the
    data are not to be had (with what was tried and the command that gets them) or too few.
    """
    whole = _listed(options, what, list_folder, list_hub)
    kept = keep_first_classes(
        keep_top_classes(keep_groups(whole, options.group), options.top_classes), options.first_classes
    )
    split = with_test(kept, options.test_share)
    assert split.test is not None
    train, test = keep_some(split.train, options.train_samples), keep_some(split.test, options.test_samples)
    for name, part in (("training", train), ("test", test)):
        if not len(part.targets):
            raise ValueError(f"'{options.path or options.hub}' has no {name} {what} (--data.path).")
    return replace(split, train=train, test=test)


def _listed(
    options: SourceOptions, what: str, list_folder: Callable[[Path], Listed], list_hub: Callable[[], Listed]
) -> Listed:
    name = options.path or Path(options.hub.rpartition("/")[2].lower())
    tried = [f"--data.path '{options.path}' is no folder" if options.path else "--data.path is not given"]
    variable = os.environ.get(VARIABLE)
    if options.path and options.path.is_dir():
        return list_folder(options.path)
    if variable and name != Path() and (Path(variable) / name).is_dir():
        return list_folder(Path(variable) / name)
    tried.append(f"{VARIABLE} is '{variable}', without a folder '{name}'" if variable else f"{VARIABLE} is not set")
    if options.hub and not options.path:
        try:
            return list_hub()
        except OSError as error:
            cache = datasets.config.HF_DATASETS_CACHE
            why = str(error).partition("\n")[0]
            tried.append(f"'{options.hub}' is neither in the hub cache '{cache}' nor to be downloaded ({why})")
    raise ValueError(f"The {what} are not to be had: {'; '.join(tried)}. {_command(options)}")


def _command(options: SourceOptions) -> str:
    if not options.hub:
        return "Give their folder with --data.path, or their name on the hub with --data.hub."
    folder = options.hub.rpartition("/")[2].lower()
    return (
        f"Get them, on a machine with network, by `hf download --repo-type dataset {options.hub} --local-dir {folder}` "
        f"and pass --data.path {folder}."
    )
