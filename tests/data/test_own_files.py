"""Known sets of images in the files that people have: every one is read from a miniature in its own layout."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from miniatures import COLOURS, colours, names, picture, write_lists, write_parquet

from fedsim.data.images.images import ImageOptions, find_images, load_images
from fedsim.data.sources.registry import IMAGE_SETS

pytestmark = pytest.mark.usefixtures("own_cache")
DATA = os.environ.get("FEDSIM_DATA")


def write_folders(top: Path, tops: tuple[str, ...], n_images: int = 5) -> None:
    for domain in tops:
        for name in COLOURS:
            (top / domain / name).mkdir(parents=True)
            for number in range(n_images):
                picture(name).save(top / domain / name / f"{number:04d}.jpg")


def write_npz(top: Path, **changes: np.ndarray) -> None:
    """Grey images whose brightness is their class, as MNIST's are given out."""
    labels = np.array([0, 1, 2, 1], np.uint8)
    images = np.broadcast_to(100 * labels[:, None, None], (4, 28, 28)).astype(np.uint8)
    arrays = {"x_train": images, "y_train": labels, "x_test": images[1:3], "y_test": labels[1:3]} | changes
    np.savez_compressed(top / "mnist.npz", **arrays)


OFFICE, PACS = ("amazon", "caltech", "dslr", "webcam"), ("art_painting", "cartoon", "photo", "sketch")
DOMAINNET = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
IMAGES: dict[str, tuple[Callable[[Path], None], tuple[int, int], tuple[str, ...]]] = {
    "cifar10": (lambda top: write_folders(top, ("train", "test")), (15, 15), ()),
    "domainnet": (lambda top: write_lists(top, dict.fromkeys(COLOURS, 1), DOMAINNET), (18, 36), DOMAINNET),
    "office-caltech10": (lambda top: write_folders(top, OFFICE), (48, 12), OFFICE),
    "pacs": (lambda top: write_folders(top, PACS), (48, 12), PACS),
    "tiny-imagenet": (lambda top: write_folders(top, ("train", "val")), (15, 15), ()),
}


def test_every_set_of_images_has_a_layout_of_its_own():
    assert IMAGES.keys() | {"mnist", "cifar100"} == IMAGE_SETS.keys()


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_read_from_the_authors_own_layout(tmp_path: Path, name: str):
    write, sizes, domains = IMAGES[name]
    write(tmp_path)
    found = find_images(ImageOptions(dataset=name, path=tmp_path))
    assert (found.sizes, found.class_names, found.domain_names) == (sizes, tuple(COLOURS), domains)
    train, test = load_images(ImageOptions(dataset=name, path=tmp_path, stored_size=8))
    assert colours(train.inputs) == names(train)
    assert colours(test.inputs) == names(test)


def test_cifar_100_has_its_super_classes_in_parquet(tmp_path: Path):
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [0, 1, 2], fine_label=[0, 1, 2], coarse_label=[0, 0, 1])
    found = find_images(ImageOptions(dataset="cifar100", path=tmp_path))
    assert (found.n_classes, found.train.domains.tolist()) == (3, [0, 0, 1])


def test_of_several_npz_none_is_chosen(tmp_path: Path):
    write_npz(tmp_path)
    (tmp_path / "mnist.npz").rename(tmp_path / "other.npz")
    write_npz(tmp_path)
    with pytest.raises(ValueError, match=r"several .npz files, \['mnist.npz', 'other.npz'\]; leave one there"):
        find_images(ImageOptions(path=tmp_path))


@pytest.mark.parametrize(
    ("write", "asked"),
    [
        (IMAGES["domainnet"][0], {"train_split": "all"}),
        (IMAGES["domainnet"][0], {"test_split": ""}),
        (write_npz, {"test_split": "val"}),
    ],
)
def test_splits_that_a_layout_does_not_have_are_refused(tmp_path: Path, write, asked: dict[str, str]):
    write(tmp_path)
    assert find_images(ImageOptions(path=tmp_path, train_split="training", test_split="test")).sizes
    message = rf"with the splits 'train' and 'test' and no others; asked for were .*'{next(iter(asked.values()))}'"
    with pytest.raises(ValueError, match=message):
        find_images(ImageOptions(path=tmp_path, **asked))


def test_images_deeper_than_their_classes_folders_are_none(tmp_path: Path):
    """As Tiny-ImageNet's authors lay them out: its classes would all be called `images`."""
    for folder in ("train/bird/images", "train/zebra/images", "val/images"):
        (tmp_path / folder).mkdir(parents=True)
        picture("bird").save(tmp_path / folder / "0.jpg")
    with pytest.raises(ValueError, match=r"has no images in the folders of classes of .train. \(--data.path\)"):
        find_images(ImageOptions(dataset="tiny-imagenet", path=tmp_path))


def test_classes_that_are_called_as_splits_and_files_beside_images_change_nothing(tmp_path: Path):
    for name in ("train", "test", "a[1]*"):
        for top in ("art", "photo"):
            (tmp_path / top / name).mkdir(parents=True)
            for number in range(2):
                picture("bird").save(tmp_path / top / name / f"{number}.jpg")
            (tmp_path / top / name / "metadata.csv").write_text("file_name,label\n0.jpg,9\n")
    found = find_images(ImageOptions(path=tmp_path, test_share=0.5, dataset="pacs"))
    assert (found.class_names, found.domain_names) == (("a[1]*", "test", "train"), ("art", "photo"))
    assert found.sizes == (6, 6)


def test_mnist_is_read_from_its_arrays(tmp_path: Path):
    write_npz(tmp_path)
    train, test = load_images(ImageOptions(dataset="mnist", path=tmp_path))
    assert train.inputs.shape == (4, 3, 28, 28)
    assert (train.targets.tolist(), test.targets.tolist(), train.class_names) == ([0, 1, 2, 1], [1, 2], ("0", "1", "2"))
    assert train.inputs[:, :, 5, 5].tolist() == [[100 * k] * 3 for k in (0, 1, 2, 1)]
    assert test.inputs[:, 0, 0, 0].tolist() == [100, 200]


OBJECTS = np.array([{"a": 1}] * 4, dtype=object)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": OBJECTS}, "mnist.npz' is damaged or has not the arrays .*Object arrays cannot be loaded"),
        ({"x_test": np.zeros((3, 28, 28), np.uint8)}, r"holds .*x_test \(3, 28, 28\) uint8.*it must be images"),
        ({"x_train": np.zeros((4, 28, 28))}, r"x_train \(4, 28, 28\) float64.*it must be images"),
        ({"y_test": np.array([7, 1], np.uint8)}, r"has the labels \[7\], outside those for training \(0 … 2\)"),
    ],
)
def test_arrays_that_are_no_images_and_labels_are_refused(tmp_path: Path, changes: dict, message: str):
    write_npz(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        find_images(ImageOptions(dataset="mnist", path=tmp_path))


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_a_damaged_file_of_arrays_is_named(tmp_path: Path, kept: float):
    write_npz(tmp_path)
    path = tmp_path / "mnist.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"mnist.npz' is damaged or has not the arrays x_train, y_train"):
        find_images(ImageOptions(dataset="mnist", path=tmp_path))
    path.write_bytes(whole.replace(whole[60:70], bytes(10)))
    with pytest.raises(ValueError, match=r"mnist.npz' is damaged or has not the arrays x_train, y_train"):
        find_images(ImageOptions(dataset="mnist", path=tmp_path))


@pytest.mark.parametrize(
    "name", ["data_batch_1", "cifar-10-batches-py/batches.meta", "cifar-100-python/meta", "meta", "images.pkl"]
)
def test_a_pickle_is_refused_with_what_to_give_instead_and_never_loaded(tmp_path: Path, name: str):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "was run"),))

    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"is a pickle, .* or parquet, as the hub has them \(--data.path\)"):
        find_images(ImageOptions(dataset="cifar10", path=tmp_path))
    assert not (tmp_path / "was run").exists()


@pytest.mark.skipif(not DATA, reason="FEDSIM_DATA does not name a folder of data sets")
def test_real_mnist_needs_no_more_than_its_name():
    train, test = load_images(ImageOptions(dataset="mnist"))
    assert (train.targets.bincount().tolist(), test.targets.bincount().tolist()) == ([1000] * 10, [200] * 10)
    assert train.inputs.shape == (10000, 3, 28, 28)
    assert abs(train.inputs.float().mean() / 255 - 0.1307) < 0.005
