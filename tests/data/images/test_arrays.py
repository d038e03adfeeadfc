"""CIFAR's .bin and MNIST's idx files, in miniatures of the same layout."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsim.data.images.images import ImageOptions, find_images, load_images

COLOURS = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)


def record(*labels: int) -> bytes:
    """An image whose colour is its (last) label's, the upper left pixel white."""
    image = np.repeat(COLOURS[labels[-1]], 32 * 32).reshape(3, 32, 32).copy()
    image[:, 0, 0] = 255
    return bytes(labels) + image.tobytes()


def write_cifar_10(top: Path) -> None:
    top.mkdir(exist_ok=True)
    for k in range(5):
        (top / f"data_batch_{k + 1}.bin").write_bytes(record(k % 3) + record(0))
    (top / "test_batch.bin").write_bytes(record(2) + record(1))
    (top / "batches.meta.txt").write_text("airplane\nbird\ncat\n\n")


def write_cifar_100(top: Path) -> None:
    top.mkdir(exist_ok=True)
    (top / "train.bin").write_bytes(record(1, 0) + record(0, 1) + record(0, 2))
    (top / "test.bin").write_bytes(record(0, 2) + record(1, 0))
    (top / "fine_label_names.txt").write_text("apple\nboy\ngirl\n")
    (top / "coarse_label_names.txt").write_text("people\nfruit\n")


def write_mnist(top: Path, is_packed: bool = True) -> None:
    top.mkdir(exist_ok=True)
    for split, labels in (("train", [0, 1, 2]), ("t10k", [2, 0])):
        images = np.repeat(np.array(labels, np.uint8) * 100, 28 * 28)
        for kind, magic, shape, values in (
            ("images-idx3", 2051, (len(labels), 28, 28), images),
            ("labels-idx1", 2049, (len(labels),), np.array(labels, np.uint8)),
        ):
            payload = np.array([magic, *shape], ">u4").tobytes() + values.tobytes()
            name = f"{split}-{kind}-ubyte"
            (top / (f"{name}.gz" if is_packed else name)).write_bytes(gzip.compress(payload) if is_packed else payload)


def test_cifar_10_is_read_from_its_binary_files(tmp_path: Path):
    write_cifar_10(tmp_path / "cifar-10-batches-bin")
    train, test = load_images(ImageOptions(dataset="cifar10", path=tmp_path))
    assert train.class_names == ("airplane", "bird", "cat")
    assert train.targets.tolist() == [0, 0, 1, 0, 2, 0, 0, 0, 1, 0]
    assert test.targets.tolist() == [2, 1]
    for part in (train, test):
        assert part.inputs.shape[1:] == (3, 32, 32)
        assert part.inputs[:, :, 9, 9].tolist() == COLOURS[part.targets].tolist()
        assert part.inputs[:, :, 0, 0].unique().tolist() == [255]


def test_cifar_100_has_its_super_classes_in_its_binary_files(tmp_path: Path):
    write_cifar_100(tmp_path)
    train, test = load_images(ImageOptions(dataset="cifar100", path=tmp_path))
    assert (train.class_names, train.domain_names) == (("apple", "boy", "girl"), ("people", "fruit"))
    assert (train.targets.tolist(), train.domains.tolist()) == ([0, 1, 2], [1, 0, 0])
    assert (test.targets.tolist(), test.domains.tolist()) == ([2, 0], [0, 1])
    assert test.inputs[:, :, 9, 9].tolist() == COLOURS[[2, 0]].tolist()


@pytest.mark.parametrize("is_packed", [True, False])
def test_mnist_is_read_from_its_four_files(tmp_path: Path, is_packed: bool):
    write_mnist(tmp_path, is_packed)
    train, test = load_images(ImageOptions(dataset="mnist", path=tmp_path))
    assert (train.targets.tolist(), test.targets.tolist(), len(train.class_names)) == ([0, 1, 2], [2, 0], 10)
    assert train.inputs.shape == (3, 3, 28, 28)
    assert test.inputs[:, 0, 5, 5].tolist() == [200, 0]


def cut(name: str) -> Callable[[Path], None]:
    def damage(top: Path) -> None:
        (top / name).write_bytes((top / name).read_bytes()[:-7])

    return damage


@pytest.mark.parametrize(
    ("dataset", "write", "damage", "message"),
    [
        ("cifar10", write_cifar_10, cut("data_batch_3.bin"), r"data_batch_3.bin' is damaged or partial: 6139 bytes"),
        ("cifar10", write_cifar_10, lambda top: (top / "data_batch_4.bin").unlink(), "lacks data_batch_4.bin"),
        ("cifar10", write_cifar_10, lambda top: (top / "batches.meta.txt").unlink(), "lacks batches.meta.txt"),
        (
            "cifar10",
            write_cifar_10,
            lambda top: (top / "batches.meta.txt").write_text("airplane bird"),
            "has the label 2, outside the 2 names of batches.meta.txt",
        ),
        ("cifar100", write_cifar_100, cut("test.bin"), r"test.bin' is damaged or partial"),
        ("mnist", write_mnist, cut("t10k-images-idx3-ubyte.gz"), r"t10k-images-idx3-ubyte.gz' is damaged or partial"),
        ("mnist", write_mnist, lambda top: (top / "train-labels-idx1-ubyte.gz").unlink(), "lacks train-labels-idx1"),
        (
            "mnist",
            write_mnist,
            lambda top: (top / "t10k-labels-idx1-ubyte.gz").write_bytes(
                (top / "train-labels-idx1-ubyte.gz").read_bytes()
            ),
            "t10k has 2 images and 3 labels",
        ),
    ],
)
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, dataset: str, write, damage, message: str):
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        find_images(ImageOptions(dataset=dataset, path=tmp_path))
