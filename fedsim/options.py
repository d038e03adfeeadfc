"""The options of local training, and what all options have in common.

Words must be of their lists, whole numbers whole, all numbers finite and in range. The command line refuses most words
by itself; in Python nothing else would.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, NewType, Union, get_args, get_origin, get_type_hints

Unlimited = NewType("Unlimited", float)
"""A number that may be infinite."""
CALLED = {int: "a whole number", float: "a finite number", Unlimited: "a number", NoneType: "None"}
SEVERAL = (tuple, list, Sequence)
RANGES: dict[str, Callable[[Any], bool]] = {
    "be 0 or more": lambda value: value >= 0,
    "be 1 or more": lambda value: value >= 1,
    "be 4 or more": lambda value: value >= 4,
    "be positive": lambda value: value > 0,
    "lie in [0, 1)": lambda value: 0 <= value < 1,
    "lie in (0, 1]": lambda value: 0 < value <= 1,
    "lie between 0 and 1": lambda value: 0 < value < 1,
}
"""What a number must, in words."""


LOCAL_RANGES = {
    "be 1 or more": ("epochs", "batch_size", "tune_epochs"),
    "be 0 or more": ("weight_decay", "sample_noise"),
    "be positive": ("learning_rate", "clip_norm", "sample_clip"),
    "lie in (0, 1]": ("share",),
    "lie in [0, 1)": ("momentum", "dropout"),
}

IGNORED = -100
"""The target of a place that holds no sample, as in torch's losses."""


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """How a client trains, the same for every method. A fresh optimiser each round, as in all four papers."""

    epochs: int = 1
    """Passes over the client's own data in a round."""
    share: float = 1.0
    """Share of its batches that a client takes in an epoch, chosen anew each round."""
    batch_size: int = 16
    """Samples in a local step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum."""
    learning_rate: float = 1e-3
    """Step size of every trained tensor."""
    weight_decay: float = 0.0
    """Decay of adapters and of the head's change: decoupled under AdamW, an L2 penalty under SGD."""
    momentum: float = 0.9
    """Of SGD."""
    clip_norm: float | None = None
    """Largest gradient norm of a client, over all its trained tensors; None for no limit."""
    sample_clip: Unlimited | None = None
    """C: the largest gradient norm of a sample, over all trained tensors of its client (DP-SGD); None for no DP-SGD."""
    sample_noise: float | None = None
    """σ: the standard deviation over C of the noise on each entry of a step's sum of samples' gradients."""
    sample_batches: Literal["shuffled", "poisson"] = "shuffled"
    """Batches under DP-SGD: as without it, or each sample in a step by itself, so many on average, for a smaller ε."""
    dropout: float = 0.0
    """Share of an adapted map's inputs that its adapters do not see in a local step (LoRA dropout)."""
    tune_epochs: int = 5
    """Epochs for which an unseen client tunes at the end (five in HiLoRA's protocol)."""

    def __post_init__(self) -> None:
        check_options(self, "local")
        problems, clip, noise = out_of_range(self, LOCAL_RANGES), self.sample_clip, self.sample_noise
        if clip is None and (noise is not None or self.sample_batches != "shuffled"):
            asked = "sample_noise is in proportion to it" if noise is not None else "sample_batches is of DP-SGD alone"
            problems.append(f"sample_clip is None and {asked}; say how long a sample's gradient may be")
        if clip is not None and noise is None:
            problems.append(f"sample_clip is {clip} without any noise; say sample_noise (0 for none)")
        if clip == math.inf and noise:
            problems.append(f"sample_clip is inf and sample_noise is {noise} times it; choose a finite one, or noise 0")
        refuse(problems, "--local.*")


def check_options(options: Any, name: str = "") -> None:
    """Raise ValueError that names every field of a dataclass, and of those inside it, whose value cannot be.

    A field's type decides: one of a Literal's words, a whole number for int, a finite number for float; tuples of such
    by entry. Other types, and what is no dataclass, are not looked at. `name` is what comes before a field's own name.
    """
    refuse(list(_problems(options, name)))


def check_run(options: Any) -> None:
    """Raise ValueError for numbers of a run, of a recipe's options or of `RunSpec`, that are out of range."""
    found = out_of_range(
        options, {"be 1 or more": ("rounds", "evaluate_every", "evaluate_clients", "cohort_size", "block_size")}
    )
    refuse([f"{problem} (--{problem.split()[0].replace('_', '-')})" for problem in found])


def out_of_range(options: Any, ranges: Mapping[str, Iterable[str]]) -> list[str]:
    """Return what is wrong with the fields that stand under the words of `RANGES`, but for those absent or None."""
    found = []
    for must, names in ranges.items():
        values = ((name, getattr(options, name, None)) for name in names)
        found += [f"{n} is {v}; it must {must}" for n, v in values if v is not None and not RANGES[must](v)]
    return found


def refuse(problems: Sequence[str], where: str = "") -> None:
    """Raise one ValueError that says all problems, if there are any, and where to set what they name."""
    if problems:
        raise ValueError("; ".join(problems) + (f" ({where})." if where else "."))


def _problems(options: Any, name: str) -> Iterator[str]:
    if not dataclasses.is_dataclass(options) or isinstance(options, type):
        return
    try:
        hints = get_type_hints(type(options), include_extras=True)
    except NameError:  # of types that are known in a function only
        return
    for field in dataclasses.fields(options):
        if field.init:
            own = [entry.name for entry in getattr(hints[field.name], "__metadata__", ()) if hasattr(entry, "name")]
            place = ".".join(filter(None, (name, *(own or [field.name]))))
            value, kinds = getattr(options, field.name), list(_kinds(hints[field.name]))
            entries = value if isinstance(value, tuple | list) else (value,)
            if dataclasses.is_dataclass(value):
                yield from _problems(value, place)
            elif not all(any(_fits(entry, kind) for kind in kinds) for entry in entries):
                option = place.replace("_", "-")
                yield f"{place} is {value!r}; it must be {_in_words(kinds)} (--{option})"


def _kinds(hint: Any) -> Iterator[Any]:
    """What a value, or an entry of several, may be: Literals and types."""
    if hasattr(hint, "__metadata__") or get_origin(hint) in (Union, UnionType, *SEVERAL):
        inside = (hint.__origin__,) if hasattr(hint, "__metadata__") else get_args(hint)
        yield from (kind for part in inside if part is not ... for kind in _kinds(part))
    else:
        yield hint


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is int:
        return isinstance(value, Integral)
    if kind is float:
        return isinstance(value, Real) and math.isfinite(value)
    if kind is Unlimited:
        return isinstance(value, Real) and not math.isnan(value)
    return value is None if kind is NoneType else True


def _in_words(kinds: Sequence[Any]) -> str:
    words = [str(word) for kind in kinds for word in (get_args(kind) or [CALLED.get(kind, kind)])]
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
