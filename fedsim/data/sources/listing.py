"""A labelled data set before it is read: the labels of every sample, and a way to read rows of it.

A source is listed first and read later: labels are cheap, so classes are chosen and most mistakes found before an image
is decoded or a text tokenised.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fedsim.data.partition.sized import counts_by_shares

Encoded = bytes | Path | np.ndarray
"""An image: the bytes of its file, where that is, or its pixels (H, W[, 3]) uint8."""
Item = Encoded | tuple[str, ...]
"""What a sample is before it becomes a tensor: an image, or its texts."""
Reader = Callable[[np.ndarray], Iterator[tuple[str, Item]]]
"""Yields (what to call it in a message, sample) for the given rows, which are in ascending order."""


@dataclass(frozen=True)
class Listing:
    """One split before reading: class numbers (S,), domain numbers (S,) or None, and a way to read rows of it.

    `identity` differs where samples differ: it is made of files' names, sizes and times of change, and of the rows.
    """

    targets: np.ndarray
    domains: np.ndarray | None
    read: Reader
    identity: str

    def take(self, rows: np.ndarray) -> "Listing":
        """Return the split that has only these rows, in ascending order."""
        domains = None if self.domains is None else self.domains[rows]
        identity = hashlib.sha256(self.identity.encode() + rows.astype(np.int64).tobytes()).hexdigest()
        return Listing(self.targets[rows], domains, lambda inside: self.read(rows[inside]), identity)


@dataclass(frozen=True)
class Listed:
    """A data set before reading; `test` is None where the source has no test split of its own."""

    train: Listing
    test: Listing | None
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...] = ()
    notes: Mapping[str, float] = field(default_factory=dict)
    """What was done that nobody asked for, in numbers; see `FederatedData.notes`."""


def identity_of(paths: Iterable[Path]) -> str:
    """Return a hash over the files' paths, sizes and times of change."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat() if path.exists() else None
        digest.update(f"{path.absolute()}|{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


def with_test(listed: Listed, share: float) -> Listed:
    """Hold out every (1/share)-th sample of each class of each domain where there is no test split."""
    if listed.test is not None:
        return listed
    train = listed.train
    cells = train.targets if train.domains is None else train.targets + train.domains * len(listed.class_names)
    is_test = evenly_marked(cells, share)
    return replace(listed, train=train.take(np.flatnonzero(~is_test)), test=train.take(np.flatnonzero(is_test)))


def keep_some(split: Listing, count: int | None) -> Listing:
    """Keep `count` samples, of every class its share, spread over the split; all where there are fewer."""
    if count is None or count >= len(split.targets):
        return split
    sizes = np.unique(split.targets, return_counts=True)[1]
    return split.take(np.flatnonzero(evenly_marked(split.targets, counts_by_shares(sizes, count, sizes) / sizes)))


def evenly_marked(cells: np.ndarray, shares: np.ndarray | float) -> np.ndarray:
    """Mark of each cell's samples its share, evenly spaced, (S,); shares by ascending cell, or one for all."""
    marked, of_cell = np.zeros(len(cells), bool), np.unique(cells)
    for cell, share in zip(of_cell, np.broadcast_to(shares, len(of_cell)), strict=True):
        rows = np.flatnonzero(cells == cell)
        marked[rows] = np.diff(np.floor(np.arange(len(rows) + 1) * share + 1e-9)) > 0
    return marked


def keep_domains(listed: Listed, names: Sequence[str]) -> Listed:
    """Keep some domains only, in their old order, all where none is named; raises ValueError when there is no such."""
    if not names:
        return listed
    for name in names:
        if name not in listed.domain_names:
            raise ValueError(f"There is no domain '{name}' among {list(listed.domain_names)} (--data.domain).")
    return _keep(listed, "domain", sorted({listed.domain_names.index(name) for name in names}))


def keep_classes(listed: Listed, top: int | None, first: int | None) -> Listed:
    """Keep the `top` classes with the most training samples (ties: the lower number), and of them the `first`.

    They are renumbered in their old order. Where there are fewer, all are kept, and a note says how many.
    """
    for name, wanted in (("top_classes", top), ("first_classes", first)):
        count = len(listed.class_names)
        if wanted is not None and wanted > count:
            listed = replace(listed, notes={**listed.notes, f"{name}_asked_for": wanted, "classes": count})
        elif wanted is not None:
            sizes = np.bincount(listed.train.targets, minlength=count)
            order = np.argsort(-sizes, kind="stable") if name == "top_classes" else np.arange(count)
            listed = _keep(listed, "class", sorted(order[:wanted]))
    return listed


def _keep(listed: Listed, kind: Literal["class", "domain"], kept: Sequence[int]) -> Listed:
    """Keep the samples of some classes or domains, whose new number is their place in `kept`."""
    numbers, names = ("targets", listed.class_names) if kind == "class" else ("domains", listed.domain_names)
    new_number = np.full(len(names), -1)
    new_number[kept] = np.arange(len(kept))

    def reduced(split: Listing) -> Listing:
        inside = split.take(np.flatnonzero(new_number[getattr(split, numbers)] >= 0))
        return replace(inside, **{numbers: new_number[getattr(inside, numbers)]})

    test = None if listed.test is None else reduced(listed.test)
    names = tuple(names[k] for k in kept)
    return replace(listed, train=reduced(listed.train), test=test, **{f"{kind}_names": names})
