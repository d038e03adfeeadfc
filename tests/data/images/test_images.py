"""Images are found, listed and decoded from every layout, and what is wrong with them is said in one message."""

import os
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from miniatures import COLOURS, colours, names, picture, table, write_lists, write_parquet
from PIL import Image

from fedsim.data.images import decode as decoding
from fedsim.data.images.decode import decode
from fedsim.data.images.images import ImageOptions, find_images, load_images
from fedsim.data.sources.labelled import joined

pytestmark = pytest.mark.usefixtures("own_cache")
DATA = os.environ.get("FEDSIM_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="FEDSIM_DATA does not name a folder of data sets")


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """A miniature must not be found by accident in the real folder of data sets."""
    if "real" not in request.node.name:
        monkeypatch.delenv("FEDSIM_DATA", raising=False)


def test_domain_lists_are_read_with_their_domains_and_class_names(tmp_path: Path):
    write_lists(tmp_path, {"bird": 3, "tea_pot": 2, "zebra": 1})
    train, test = load_images(ImageOptions(path=tmp_path, image_size=8))
    assert train.inputs.shape == (12, 3, 8, 8)
    assert train.inputs.dtype == torch.uint8
    assert train.class_names == ("bird", "tea_pot", "zebra")
    assert train.domain_names == test.domain_names == ("clipart", "sketch")
    assert train.domains.tolist() == [0] * 6 + [1] * 6
    assert colours(train.inputs) == names(train)
    assert colours(test.inputs) == names(test)


def test_the_classes_with_the_most_training_images_are_kept_and_renumbered(tmp_path: Path):
    write_lists(tmp_path, {"bird": 2, "tea_pot": 1, "zebra": 3})
    train, test = load_images(ImageOptions(path=tmp_path, image_size=8, top_classes=2))
    assert train.class_names == ("bird", "zebra")
    assert train.targets.tolist() == [0, 0, 1, 1, 1] * 2
    assert test.targets.tolist() == [0, 0, 1, 1] * 2
    assert colours(train.inputs) == names(train)
    assert train.domains.tolist() == [0] * 5 + [1] * 5


def test_of_fewer_classes_than_are_asked_for_all_are_kept_and_that_is_said(tmp_path: Path):
    write_lists(tmp_path, {"bird": 1, "zebra": 2})
    found = find_images(ImageOptions(path=tmp_path, top_classes=4))
    assert (found.class_names, dict(found.notes)) == (("bird", "zebra"), {"top_classes_asked_for": 4, "classes": 2})
    assert find_images(ImageOptions(path=tmp_path, top_classes=2)).notes == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "sketch_test.txt").unlink(), "sketch_test.txt' is missing"),
        (lambda f: (f / "sketch_train.txt").write_text("sketch/bird/x.jpg\n"), "sketch_train.txt', line 1, is"),
        (lambda f: (f / "sketch_train.txt").write_text("sketch/bird/x.jpg 0\n"), "x.jpg', which is not there"),
        (
            lambda f: (f / "sketch_test.txt").write_text((f / "sketch_test.txt").read_text().replace(" 0", " 7")),
            "label 7, which is outside the training labels",
        ),
        (
            lambda f: (f / "sketch_test.txt").write_text((f / "sketch_test.txt").read_text().replace(" 0", " 1")),
            "label 1, which stands for 'tea_pot'",
        ),
    ],
)
def test_what_is_wrong_with_a_list_is_said_with_its_file(tmp_path: Path, change: Callable[[Path], None], message: str):
    write_lists(tmp_path, {"bird": 1, "tea_pot": 1})
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        find_images(ImageOptions(path=tmp_path))


def test_class_folders_with_their_own_splits_are_read(tmp_path: Path):
    for split, count in (("train", 3), ("test", 1)):
        for name in COLOURS:
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                picture(name).save(tmp_path / split / name / f"{number}.png")
    (tmp_path / "train" / "bird" / "notes.txt").write_text("no image")
    train, test = load_images(ImageOptions(path=tmp_path, image_size=8))
    assert (len(train.inputs), len(test.inputs), train.domains) == (9, 3, None)
    assert colours(train.inputs) == names(train)
    assert colours(test.inputs) == names(test)


def test_a_test_class_that_is_no_training_class_is_refused(tmp_path: Path):
    for folder in ("train/bird", "test/bird", "test/zebra"):
        (tmp_path / folder).mkdir(parents=True)
        picture("bird").save(tmp_path / folder / "0.png")
    with pytest.raises(ValueError, match=r"test samples of 1 classes that no training sample has: \['zebra'\]"):
        find_images(ImageOptions(path=tmp_path))


def test_folders_by_domain_hold_out_a_share_of_every_class_of_every_domain(tmp_path: Path):
    for domain in ("art", "photo"):
        for name in COLOURS:
            (tmp_path / domain / name).mkdir(parents=True)
            for number in range(10):
                picture(name).save(tmp_path / domain / name / f"{number}.png")
    train, test = load_images(ImageOptions(path=tmp_path, image_size=8, test_share=0.3))
    assert train.domain_names == ("art", "photo")
    for split, count in ((train, 7), (test, 3)):
        cells = np.bincount(split.targets * 2 + split.domains)
        assert cells.tolist() == [count] * 6
        assert colours(split.inputs) == names(split)


def test_parquet_files_of_a_split_are_read_in_the_order_of_their_names(tmp_path: Path):
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", [0, 1], domain=["b", "a"])
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", [2, 0], domain=["a", "c"])
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [2, 1], domain=["c", "a"])
    train, test = load_images(ImageOptions(path=tmp_path, domain_column="domain", image_size=8))
    assert train.targets.tolist() == [0, 1, 2, 0]
    assert train.domain_names == ("a", "b", "c")
    assert train.domains.tolist() == [1, 0, 0, 2]
    assert test.domains.tolist() == [2, 0]
    assert colours(train.inputs) == names(train)
    assert colours(test.inputs) == names(test)


def test_labels_may_be_words(tmp_path: Path):
    write_parquet(tmp_path / "train.parquet", ["zebra", "bird", "zebra"])
    write_parquet(tmp_path / "test.parquet", ["bird"])
    train, test = load_images(ImageOptions(path=tmp_path, image_size=8))
    assert train.class_names == ("bird", "zebra")
    assert (train.targets.tolist(), test.targets.tolist()) == ([1, 0, 1], [0])


def test_a_damaged_parquet_file_is_named(tmp_path: Path):
    write_parquet(tmp_path / "train.parquet", [0, 1])
    write_parquet(tmp_path / "test.parquet", [0, 1])
    payload = (tmp_path / "test.parquet").read_bytes()
    (tmp_path / "test.parquet").write_bytes(payload[: len(payload) // 2])
    with pytest.raises(ValueError, match=r"test.parquet' is damaged, empty or no parquet file"):
        find_images(ImageOptions(path=tmp_path))


def test_a_damaged_image_is_named(tmp_path: Path):
    write_lists(tmp_path, {"bird": 2})
    victim = sorted((tmp_path / "sketch" / "bird").glob("*train*"))[1]
    victim.write_bytes(victim.read_bytes()[:300])
    with pytest.raises(ValueError, match=rf"The image '{victim}' cannot be read"):
        load_images(ImageOptions(path=tmp_path, image_size=8))


def test_a_label_outside_the_class_names_is_refused(tmp_path: Path):
    write_parquet(tmp_path / "train.parquet", [0, 1])
    damaged = pq.read_table(tmp_path / "train.parquet")
    labels = damaged.column_names.index("label")
    pq.write_table(damaged.set_column(labels, damaged.field(labels), [[0, 3]]), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"labels \[3\] in its column 'label', outside its 3 names \(0 … 2\)"):
        find_images(ImageOptions(path=tmp_path))


def test_a_missing_column_is_named_with_the_option_that_sets_it(tmp_path: Path):
    write_parquet(tmp_path / "train.parquet", [0, 1])
    with pytest.raises(ValueError, match=r"no column 'fine' \(--data.label-column\); it has \['image', 'label'\]"):
        find_images(ImageOptions(path=tmp_path, label_column="fine"))


def test_a_folder_of_something_else_says_what_is_understood(tmp_path: Path):
    (tmp_path / "readme.txt").write_text("nothing")
    with pytest.raises(ValueError, match=r"holds neither lists .* it has \['readme.txt'\]"):
        find_images(ImageOptions(path=tmp_path))


def test_missing_data_are_one_message_with_what_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="not to be had") as raised:
        find_images(ImageOptions(hub="nobody/No-Such-Images"))
    for part in ("--data.path", f"FEDSIM_DATA is '{tmp_path}'", "'no-such-images'", "hub cache", "hf download"):
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_given_path_that_is_not_there_is_not_replaced_by_the_hub(tmp_path: Path):
    with pytest.raises(ValueError, match=r"path '.*absent' is no file or folder; FEDSIM_DATA is not set\. Get them"):
        find_images(ImageOptions(path=tmp_path / "absent", hub="nobody/images"))


def test_data_are_found_in_the_folder_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_lists(tmp_path / "domainnet", {"bird": 1})
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    assert find_images(ImageOptions(hub="someone/DomainNet")).n_classes == 1
    assert find_images(ImageOptions(path=Path("domainnet"))).n_classes == 1


def test_a_data_set_of_the_hub_is_read_through_datasets(monkeypatch: pytest.MonkeyPatch):
    splits = datasets.DatasetDict(train=table([0, 1, 2], domain=["x", "y", "x"]), test=table([2], domain=["y"]))
    monkeypatch.setattr(datasets, "load_dataset", {"someone/images": splits}.__getitem__)
    train, test = load_images(ImageOptions(hub="someone/images", domain_column="domain", image_size=8))
    assert (train.domains.tolist(), test.domains.tolist()) == ([0, 1, 0], [1])
    assert colours(train.inputs) == names(train)
    assert colours(test.inputs) == names(test)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
def test_every_kind_of_image_becomes_square_rgb(tmp_path: Path, mode: str):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    picture("bird", mode).save(path, **({"transparency": b"\x80\xff"} if mode == "P" else {}))
    image = decode("image", path.read_bytes(), 6)
    assert (image.shape, image.dtype) == ((3, 6, 6), torch.uint8)
    assert torch.equal(image, decode("image", path, 6))


@pytest.mark.parametrize("option", [{"image_size": 0}, {"test_share": 1.0}, {"top_classes": 0}, {"std": (1, 1, 0)}])
def test_options_out_of_range_are_refused(option: dict):
    with pytest.raises(ValueError, match=next(iter(option))):
        ImageOptions(**option)


@needs_data
def test_the_real_cifar_100_loads_at_its_own_size():
    options = ImageOptions(
        path=Path("cifar100_8k"), label_column="fine_label", domain_column="coarse_label", stored_size=32
    )
    train, test = load_images(options)
    assert (train.inputs.shape, test.inputs.shape) == ((8000, 3, 32, 32), (2000, 3, 32, 32))
    assert torch.bincount(train.targets).tolist() == [80] * 100
    assert torch.bincount(test.targets).tolist() == [20] * 100
    assert (train.class_names[0], train.class_names[-1]) == ("apple", "worm")
    assert (len(train.domain_names), train.domain_names[0]) == (20, "aquatic_mammals")
    # The whole of CIFAR-100 has the means .507, .487, .441.
    assert (train.inputs.float().mean((0, 2, 3)) / 255).tolist() == pytest.approx([0.507, 0.487, 0.441], abs=0.01)


@needs_data
def test_the_real_pacs_loads_with_its_domains():
    options = ImageOptions(path=Path("pacs_1680_128px"), domain_column="domain", image_size=32)
    train, test = load_images(options)
    assert train.inputs.shape == (1680, 3, 32, 32)
    assert train.domain_names == ("photo", "art_painting", "cartoon", "sketch")
    assert torch.bincount(train.targets * 4 + train.domains).tolist() == [60] * 28
    assert torch.bincount(test.targets * 4 + test.domains).tolist() == [20] * 28
    brightness = [train.inputs[train.domains == domain].float().mean() for domain in range(4)]
    assert max(brightness) == brightness[3], "sketches are black on white"


def test_images_are_decoded_once_ever_and_again_only_when_they_change(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    write_lists(folder, {"bird": 3, "zebra": 2})
    decoded = []
    monkeypatch.setattr(decoding, "decode", lambda name, *rest: decoded.append(name) or decode(name, *rest))
    options = ImageOptions(path=folder, image_size=8)
    first, _ = load_images(options)
    count = 2 * (3 + 2 + 2 * 2)
    assert len(decoded) == count
    again = load_images(options)[0].inputs.clone()  # of a mapped file that will be cut short
    assert len(decoded) == count
    assert torch.equal(again, first.inputs)
    (kept,) = (tmp_path / "cache").glob("images-*.uint8")
    kept.write_bytes(kept.read_bytes()[:100])  # as after a full disk
    assert torch.equal(load_images(options)[0].inputs, again)
    assert len(decoded) == 2 * count
    picture("tea_pot").save(next(folder.rglob("*train*.jpg")))
    assert not torch.equal(load_images(options)[0].inputs, again)
    assert len(decoded) == 3 * count


def test_decoded_splits_become_one_tensor_without_a_copy(tmp_path: Path):
    write_lists(tmp_path, {"bird": 3, "zebra": 2})
    train, test = load_images(ImageOptions(path=tmp_path, image_size=8))
    images, targets = joined(train, test)
    assert images.data_ptr() == train.inputs.data_ptr()
    assert torch.equal(images, torch.cat((train.inputs, test.inputs)))
    assert torch.equal(targets, torch.cat((train.targets, test.targets)))
    assert torch.equal(joined(test, train)[0], torch.cat((test.inputs, train.inputs)))


def png_claiming(width: int, height: int) -> bytes:
    """A few bytes that say they are an image of this size."""
    drawn = BytesIO()
    Image.new("1", (1, 1)).save(drawn, "PNG")
    payload = bytearray(drawn.getvalue())
    payload[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    payload[29:33] = zlib.crc32(payload[12:29]).to_bytes(4, "big")
    return bytes(payload)


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [(8193, 8192, "8193 × 8192 pixels, and at most 67,108,864 are read"), (60_000, 60_000, "decompression bomb")],
)
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, width, height, message):
    payload = png_claiming(width, height)
    (tmp_path / "bomb.png").write_bytes(payload)
    for encoded in (payload, tmp_path / "bomb.png"):
        with pytest.raises(ValueError, match=rf"The image 'bomb' cannot be read: .*{message}"):
            decode("bomb", encoded, 8)
    assert decode("small", png_claiming(1, 1), 8).shape == (3, 8, 8)
