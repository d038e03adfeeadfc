"""Where a labelled data set is looked for (a folder, the folder of data sets, the hub), and what of it is kept."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedsim.data.client_options import check_data_options
from fedsim.data.sources.listing import Listed, keep_classes, keep_domains, keep_some, with_test
from fedsim.data.task import ClassificationF1, Task

if TYPE_CHECKING:
    import datasets

VARIABLE = "FEDSIM_DATA"
"""Environment variable that names a folder of data sets."""
Made = TypeVar("Made")
SAME = (("train", "training"), ("test", "testing"), ("validation", "valid", "val", "dev"))
"""Words for one split in the names of files and folders."""
SHARD = re.compile(r"-(\d+)-of-(\d+)")
"""How the names of a split's files end where there are several."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Which data set, and which part of it."""

    path: Path | None = None
    """Folder or table of the data set, as such or inside $FEDSIM_DATA; default: its name there, then the hub and its
    cache."""
    hub: str = ""
    """Name of the data set on the hub."""
    subset: str = ""
    """The hub's configuration of it; in a folder, a word that the paths of its files have."""
    train_split: str = "train"
    """Name of the training split, on the hub and in the names of files."""
    test_split: str | None = None
    """Name of the test split; empty to hold out `test_share` of the training split (but where files are laid out with
    both); default: a known data set's own, else `test` or else `validation` where there is one."""
    label_column: str = ""
    """Column of class labels, in tables and on the hub; of your own data `label`."""
    domain_column: str = ""
    """Column of domains, super-classes, …, in tables and on the hub; empty for none."""
    domain: tuple[str, ...] = ()
    """Keep only these domains' samples (styles, super-classes); default all."""
    top_classes: int | None = None
    """Keep at most so many classes, those with the most training samples; default all."""
    first_classes: int | None = None
    """Keep at most so many classes, those with the lowest numbers; default all."""
    train_samples: int | None = None
    """Keep about so many training samples, the same share of each class; default all."""
    test_samples: int | None = None
    """Keep about so many test samples, the same share of each class; default all."""
    test_share: float = 0.2
    """Share held out for testing where the data set has no test split of its own: of each class of each domain, so of
    one with fewer than 1/share samples none."""
    f1: bool | None = None
    """Tell macro F1 beside accuracy, by client and over all test samples together; default: of LEDGAR."""

    def __post_init__(self) -> None:
        check_data_options(self)

    def scoring(self, n_classes: int) -> dict[str, Task]:
        """The field of `FederatedData` that says how clients are scored, where it is not by accuracy alone."""
        return {"task": ClassificationF1(n_classes)} if self.f1 else {}


def find(
    options: SourceOptions, what: str, list_folder: Callable[[Path], Listed], list_hub: Callable[[], Listed]
) -> Listed:
    """Return the listing of a data set, with a test split, and only what the options keep.

    Nothing is read but labels, and nothing written but what `datasets` keeps of a download. Raises ValueError when the
    data are not to be had (with what was tried and the command that gets them) or too few.
    """
    whole = looked_up(options, what, list_folder, list_hub)
    known = set(whole.train.targets)
    if whole.test is not None and known and (strange := sorted(set(whole.test.targets) - known)):
        names = [whole.class_names[label] for label in strange[:5]]
        raise ValueError(
            f"'{options.path or options.hub}' has test samples of {len(strange)} classes that no training sample has: "
            f"{names}. Name splits of the same labels (--data.train-split, --data.test-split, --data.label-column)."
        )
    kept = keep_classes(keep_domains(whole, options.domain), options.top_classes, options.first_classes)
    split = with_test(kept, options.test_share)
    if kept.test is None and split.test is not None:
        split = replace(split, notes={**split.notes, "test_samples_held_out": len(split.test.targets)})
    assert split.test is not None
    train, test = keep_some(split.train, options.train_samples), keep_some(split.test, options.test_samples)
    for name, part in (("training", train), ("test", test)):
        if not len(part.targets):
            raise ValueError(f"'{options.path or options.hub}' has no {name} {what} (--data.path).")
    return replace(split, train=train, test=test)


def looked_up(
    options: Any,
    what: str,
    at_path: Callable[[Path], Made],
    on_hub: Callable[[], Made],
) -> Made:
    """Return what is made of `options.path`, as such or inside $FEDSIM_DATA, else of `options.hub` or the hub's cache.

    `on_hub` raises OSError where it is not to be had. Raises ValueError when there is none, with what was tried and the
    command that gets it.
    """
    name = options.path or Path(options.hub.rpartition("/")[2].lower())
    tried = [f"--data.path '{options.path}' is no file or folder" if options.path else "--data.path is not given"]
    variable = os.environ.get(VARIABLE)
    if name != Path() and (found := on_disk(name, as_such=bool(options.path))):
        return at_path(found)
    tried.append(f"{VARIABLE} is '{variable}', without '{name}'" if variable else f"{VARIABLE} is not set")
    if options.hub and not options.path:
        try:
            return on_hub()
        except OSError as error:
            import datasets

            cache = datasets.config.HF_DATASETS_CACHE
            why = str(error).partition("\n")[0]
            tried.append(f"'{options.hub}' is neither in the hub cache '{cache}' nor to be downloaded ({why})")
    raise ValueError(f"The {what} are not to be had: {'; '.join(tried)}. {_command(options)}")


def on_disk(path: Path, as_such: bool = True) -> Path | None:
    """Return the path, or where it is inside $FEDSIM_DATA, or None; only there where it is not to be taken as such."""
    variable = os.environ.get(VARIABLE)
    places = ([path] if as_such else []) + ([Path(variable) / path] if variable else [])
    return next((place for place in places if place.exists()), None)


def from_hub(name: str, *subset: str) -> "datasets.DatasetDict":
    """Return a data set of the hub or its cache; raises OSError when it cannot be had.

    Of one that a program would make, which is never run, the hub's own conversion to parquet is taken.
    """
    import datasets

    try:
        try:
            return datasets.load_dataset(name, *subset)
        except RuntimeError as error:
            if "scripts" not in str(error):
                raise
            return datasets.load_dataset(name, *subset, revision="refs/convert/parquet")
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise OSError(str(error)) from error


def find_splits(options: SourceOptions, look_up: Callable[[str], Any], missing: Callable[[str], str]) -> dict[str, Any]:
    """Return what is found of the training split and, unless it is to be held out, of the test split, by their names.

    A test split that nobody named is `test`, or else `validation`, where that is there. Raises ValueError where a split
    is not there, with what `missing` says of it, or both are the same or have files in common.
    """
    hold_out = "an empty --data.test-split '' holds out a share of the training samples"
    option = next((name for name in ("dataset", "task") if getattr(options, name, "own") != "own"), "")
    own = f"; of data that are not '{getattr(options, option)}' say so: --data.{option} own" if option else ""
    train, unnamed = options.train_split, "test" if look_up("test") else "validation"
    test = unnamed if options.test_split is None else options.test_split
    of_train, of_test = look_up(train), test and look_up(test)
    if not of_train:
        raise ValueError(f"{missing(train)} (--data.train-split){own}.")
    if of_test and of_test != of_train:
        if isinstance(of_train, list) and (shared := [str(path) for path in of_train if path in of_test]):
            raise ValueError(
                f"By their names {shared[:5]} belong to both splits, '{train}' and '{test}'; call each by words that "
                "only its files have (--data.train-split, --data.test-split)."
            )
        return {train: of_train, test: of_test}
    if options.test_split and of_test:
        raise ValueError(f"'{train}' and '{test}' are one split (--data.train-split, --data.test-split); {hold_out}.")
    if options.test_split:
        raise ValueError(f"{missing(test)} (--data.test-split). Fetch it, or name another one; {hold_out}{own}.")
    return {train: of_train}


def check_splits(options: SourceOptions, folder: Path) -> None:
    """Raise ValueError where other splits are asked for than the two that a folder's layout has, train and test."""
    asked = (options.train_split, "test" if options.test_split is None else options.test_split)
    if any(name not in words_for(split) for name, split in zip(asked, ("train", "test"), strict=True)):
        raise ValueError(
            f"'{folder}' is laid out with the splits 'train' and 'test' and no others; asked for were '{asked[0]}' and "
            f"'{asked[1]}' (--data.train-split, --data.test-split)."
        )


def words_for(split: str) -> list[str]:
    """Return the split's name and then the other words for it."""
    return [split, *(word for words in SAME if split in words for word in words if word != split)]


def files_of_split(paths: Sequence[Path], split: str) -> list[Path]:
    """Return the files that have the split's name in theirs, or else another word for it."""
    found = ([path for path in paths if has_word(Path(path.name), word)] for word in words_for(split))
    return next(filter(None, found), [])


def has_word(path: Path, word: str) -> bool:
    """Whether the word is in the path: its parts begin neighbouring parts of the path's."""
    parts, words = _parts(str(path)), _parts(word)
    runs = (parts[k : k + len(words)] for k in range(len(parts) - len(words) + 1))
    return any(all(map(str.startswith, run, words)) for run in runs)


def _parts(text: str) -> list[str]:
    """Split at what is no letter or digit, in lower case."""
    return "".join(character if character.isalnum() else " " for character in text.lower()).split()


def missing_shards(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the files that the names of the others (train-00000-of-00002.parquet) say that there are."""
    found: dict[tuple[Path, str, str], list[str]] = {}
    for path in paths:
        if match := SHARD.search(path.name):
            found.setdefault((path.parent, path.name[: match.start()], match[2]), []).append(match[1])
    for (folder, name, count), digits in found.items():
        there, width = set(map(int, digits)), min(map(len, digits))
        first = int(int(count) in there)  # some count from 1
        for number in sorted(set(range(first, first + int(count))) - there):
            yield folder / f"{name}-{number:0{width}}-of-{count}{paths[0].suffix}"


def _command(options: Any) -> str:
    if not options.hub:
        return "Give their --data.path, or a name: a known one (--data.dataset, --data.task) or the hub's (--data.hub)."
    folder = options.hub.rpartition("/")[2].lower()
    return (
        f"Get them, on a machine with network, by `hf download --repo-type dataset {options.hub} --local-dir {folder}` "
        f"and pass --data.path {folder}."
    )
