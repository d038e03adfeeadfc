"""Images in arrays: CIFAR-10's and CIFAR-100's .bin, MNIST's idx files and .npz. No pickle is loaded."""

import gzip
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fedsim.data.sources.listing import Encoded, Listed, Listing, identity_of

PIXELS = 3 * 32 * 32
CIFAR_10 = ([f"data_batch_{k}.bin" for k in range(1, 6)], ["test_batch.bin"], ["batches.meta.txt"])
CIFAR_100 = (["train.bin"], ["test.bin"], ["fine_label_names.txt", "coarse_label_names.txt"])
"""Files for training and testing, and those of the names of each label that stands before an image's pixels."""
MNIST = ("train", "t10k")
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
IDX = {"images": 2051, "labels": 2049}
"""The numbers with which idx files begin."""


def list_binaries(folder: Path) -> Listed | None:
    """Return what such files in a folder, or one folder below, hold; None where there are none.

    Raises ValueError that names the file when one is missing, damaged or partial, or holds a label without a name.
    """
    for train, test, names in (CIFAR_10, CIFAR_100):
        if top := _top(folder, [*train, *test]):
            return _cifar(top, train, test, names)
    if top := _top(folder, [name for split in MNIST for name in _idx_names(split, "images")]):
        train, test = (_mnist(top, split) for split in MNIST)
        return Listed(train, test, tuple(map(str, range(10))))
    return None


def _mnist(top: Path, split: str) -> Listing:
    images, labels = (_idx(top, split, kind) for kind in IDX)
    if len(images) != len(labels) or labels.max(initial=0) > 9:
        counts = f"{len(images)} images and {len(labels)} labels up to {labels.max(initial=0)}"
        raise ValueError(f"'{top}': {split} has {counts}; MNIST has a label 0 … 9 of each image. Fetch it again.")
    identity = identity_of(sorted(top.glob(f"{split}-*")))
    return Listing(labels.astype(int), None, partial(_of_array, images, f"{top}, {split}"), identity)


def _top(folder: Path, names: Sequence[str]) -> Path | None:
    tops = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    return next((top for top in tops if any((top / name).is_file() for name in names)), None)


def _cifar(top: Path, train: Sequence[str], test: Sequence[str], of_names: Sequence[str]) -> Listed:
    """Records of one byte for each kind of label (of CIFAR-100 the super-class first), then red, green and blue."""
    if missing := [name for name in (*train, *test, *of_names) if not (top / name).is_file()]:
        raise ValueError(f"'{top}' lacks {', '.join(missing)}; unpack the whole archive there (--data.path).")
    names = [tuple((top / name).read_text().split()) for name in of_names]
    splits = []
    for files in (train, test):
        records = [_records(top / name, len(names)) for name in files]
        labels = np.concatenate([part[:, : len(names)] for part in records]).astype(int)[:, ::-1]
        for k, known in enumerate(names):
            if labels[:, k].max(initial=0) >= len(known):
                given = int(labels[:, k].max())
                raise ValueError(
                    f"'{top / files[0]}' has the label {given}, outside the {len(known)} names of {of_names[k]}."
                )
        read = partial(_of_records, records, f"{top}, {files[0]} …", len(names))
        domains = labels[:, 1] if len(names) > 1 else None
        splits.append(Listing(labels[:, 0], domains, read, identity_of([top / name for name in files])))
    return Listed(splits[0], splits[1], names[0], names[1] if len(names) > 1 else ())


def _records(path: Path, n_labels: int) -> np.ndarray:
    size, length = path.stat().st_size, n_labels + PIXELS
    if not size or size % length:
        raise ValueError(f"'{path}' is damaged or partial: {size} bytes are no images of {length}. Fetch it again.")
    return np.memmap(path, np.uint8, "r").reshape(-1, length)


def _of_records(
    records: Sequence[np.ndarray], name: str, n_labels: int, rows: np.ndarray
) -> Iterator[tuple[str, Encoded]]:
    pixels = np.concatenate([part[:, n_labels:] for part in records]).reshape(-1, 3, 32, 32)
    return _of_array(pixels.transpose(0, 2, 3, 1), name, rows)


def _idx_names(split: str, kind: str) -> list[str]:
    name = f"idx{3 if kind == 'images' else 1}-ubyte"
    return [f"{split}-{kind}{dot}{name}{end}" for dot in "-." for end in ("", ".gz")]


def _idx(top: Path, split: str, kind: str) -> np.ndarray:
    """Return the array of an idx file, (S, H, W) or (S,) uint8."""
    path = next((top / name for name in _idx_names(split, kind) if (top / name).is_file()), None)
    if path is None:
        raise ValueError(f"'{top}' lacks {_idx_names(split, kind)[0]} (or .gz); MNIST has four files (--data.path).")
    try:
        payload = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"'{path}' is damaged or partial: {error}. Fetch it again.") from error
    head = np.frombuffer(payload[: 16 if kind == "images" else 8], ">u4")
    shape = tuple(map(int, head[1:]))
    if (
        len(head) != (4 if kind == "images" else 2)
        or head[0] != IDX[kind]
        or len(payload) != head.nbytes + np.prod(shape)
    ):
        raise ValueError(
            f"'{path}' is damaged or partial: {len(payload)} bytes are no {kind} of MNIST. Fetch it again."
        )
    return np.frombuffer(payload, np.uint8, offset=head.nbytes).reshape(shape)


def list_arrays(path: Path) -> Listed:
    """An `.npz` of `x_train`, `y_train`, `x_test` and `y_test`, as MNIST is given out; images are (S, H, W[, 3]) uint8.

    Raises ValueError when the file is damaged, lacks an array or holds others than these; pickled objects are not read.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"'{path}' is damaged or has not the arrays {', '.join(ARRAYS)}: {reason}.") from error
    shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in arrays.items())
    parts = [(arrays[f"x_{split}"], arrays[f"y_{split}"].squeeze()) for split in ("train", "test")]
    for images, labels in parts:
        is_image = images.dtype == np.uint8 and (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3))
        if not is_image or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(f"'{path}' holds {shapes}; it must be images (S, H, W[, 3]) uint8 and a label of each.")
    parts = [(images, labels.astype(int)) for images, labels in parts]
    n_classes = int(parts[0][1].max(initial=-1)) + 1
    if strange := sorted({int(label) for _, labels in parts for label in labels if not 0 <= label < n_classes}):
        raise ValueError(f"'{path}' has the labels {strange[:5]}, outside those for training (0 … {n_classes - 1}).")
    identity = identity_of([path])
    train, test = (
        Listing(labels, None, partial(_of_array, images, f"{path}, {name}"), f"{identity}|{name}")
        for (images, labels), name in zip(parts, ("x_train", "x_test"), strict=True)
    )
    return Listed(train, test, tuple(map(str, range(n_classes))))


def _of_array(images: np.ndarray, name: str, rows: np.ndarray) -> Iterator[tuple[str, Encoded]]:
    yield from ((f"{name}, row {row}", images[row]) for row in rows)
