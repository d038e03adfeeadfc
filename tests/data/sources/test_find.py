"""A split that was asked for and is not there, whole, is said; only your own data go without a test split unasked."""

from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniatures import COLOURS, picture, table, write_parquet

from fedsim.data.images.images import ImageOptions, find_images
from fedsim.data.sources.registry import IMAGE_SETS, TEXT_SETS
from fedsim.data.texts.texts import TextOptions, find_texts

pytestmark = pytest.mark.usefixtures("own_cache")
HOLD_OUT = r"an empty --data.test-split '' holds out a share of the training samples"


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FEDSIM_DATA", raising=False)


def write_texts(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": ["x"] * 10, "sentence": ["x"] * 10, "label": [0, 1] * 5}), folder / name)


def write_folders(folder: Path, *tops: str) -> None:
    for top in tops:
        for name in COLOURS:
            (folder / top / name).mkdir(parents=True)
            for number in range(5):
                picture(name).save(folder / top / name / f"{number}.png")


# which one


def test_your_own_test_split_is_the_one_that_is_there_if_any():
    assert ImageOptions().resolved().test_split is TextOptions().resolved().test_split is None
    assert ImageOptions(test_split="").resolved().test_split == ""


@pytest.mark.parametrize("name", sorted(IMAGE_SETS.keys() - {"pacs", "office-caltech10"}))
def test_every_known_set_of_images_names_its_test_split_but_those_without_one(name: str):
    assert ImageOptions(dataset=name).resolved().test_split == ("valid" if name == "tiny-imagenet" else "test")
    assert ImageOptions(dataset="pacs").resolved().test_split is None
    assert ImageOptions(dataset="office-caltech10").resolved().test_split is None


@pytest.mark.parametrize("task", TEXT_SETS)
def test_every_known_set_of_texts_names_its_test_split(task: str):
    assert TextOptions(task=task).resolved().test_split


# parquet


@pytest.mark.parametrize(
    ("names", "absent"),
    [
        (("train-00000-of-00003", "train-00002-of-00003", "test-00000-of-00001"), "train-00001-of-00003"),
        (("data/train-00000-of-00002-aa1", "data/test-00000-of-00001-bb2"), "data/train-00001-of-00002"),
        (("train-00000-of-00001", "test-00001-of-00002"), "test-00000-of-00002"),
        (("train-1-of-12", *(f"train-{k}-of-12" for k in range(3, 13)), "test"), "train-2-of-12"),
    ],
)
def test_a_file_that_is_missing_among_several_is_named(tmp_path: Path, names: tuple[str, ...], absent: str):
    write_texts(tmp_path, *(f"{name}.parquet" for name in names))
    with pytest.raises(ValueError, match=rf"lacks 1 of the files of the split '.*': \['{absent}.parquet'\]. Fetch"):
        find_texts(TextOptions(path=tmp_path))


def test_files_of_other_sets_and_splits_need_not_be_there(tmp_path: Path):
    write_texts(
        tmp_path,
        *(f"cola/{name}.parquet" for name in ("train-00000-of-00002", "train-00001-of-00002", "dev-1-of-1")),
        "sst2/train-00000-of-00002.parquet",
        "cola/test-00000-of-00002.parquet",
    )
    assert find_texts(TextOptions(path=tmp_path, task="cola")).sizes == (20, 10)


@pytest.mark.parametrize(
    ("find", "split"),
    [
        (lambda path: find_texts(TextOptions(path=path, task="agnews")), "test"),
        (lambda path: find_texts(TextOptions(path=path, task="sst2", subset="")), "validation"),
        (lambda path: find_texts(TextOptions(path=path, test_split="held")), "held"),
    ],
)
def test_a_named_test_split_that_is_not_among_parquet_files_is_refused(tmp_path: Path, find: Callable, split: str):
    write_texts(tmp_path, "sst2/train.parquet", "sst2/other.parquet")
    message = (
        rf"for the split '{split}' in its name: it has \['sst2/other.parquet', 'sst2/train.parquet'\] .*{HOLD_OUT}"
    )
    with pytest.raises(ValueError, match=message):
        find(tmp_path)


def test_images_of_a_known_set_without_their_test_file_are_refused_or_held_out(tmp_path: Path):
    write_parquet(tmp_path / "train.parquet", [0, 1, 2] * 5)
    with pytest.raises(ValueError, match=rf"none for the split 'test' in its name.*{HOLD_OUT}"):
        find_images(ImageOptions(dataset="cifar10", path=tmp_path))
    assert find_images(ImageOptions(dataset="cifar10", path=tmp_path, test_split="")).sizes == (12, 3)
    assert find_images(ImageOptions(path=tmp_path)).sizes == (12, 3)


def test_your_own_test_file_is_taken_and_another_word_for_a_split_is_understood(tmp_path: Path):
    write_texts(tmp_path, "train.parquet")
    assert find_texts(TextOptions(path=tmp_path)).sizes == (8, 2)
    write_texts(tmp_path, "my_val.parquet")
    assert find_texts(TextOptions(path=tmp_path, test_split="dev")).sizes == (10, 10)
    assert find_texts(TextOptions(path=tmp_path)).sizes == (10, 10), "without a test split, validation is taken unasked"
    write_texts(tmp_path, "test.parquet")
    assert find_texts(TextOptions(path=tmp_path)).sizes == (10, 10)
    assert find_texts(TextOptions(path=tmp_path, test_split="")).sizes == (8, 2)
    assert find_texts(TextOptions(path=tmp_path, train_split="test")).sizes == (8, 2), "what is trained on is no test"


def test_a_file_that_belongs_to_both_splits_by_its_name_is_refused(tmp_path: Path):
    write_texts(tmp_path, "train_clean.parquet", "train_other.parquet")
    message = r"\['.*train_other.parquet'\] belong to both splits, 'train' and 'train_other'"
    with pytest.raises(ValueError, match=message):
        find_texts(TextOptions(path=tmp_path, test_split="train_other"))
    assert find_texts(TextOptions(path=tmp_path, train_split="train_clean", test_split="train_other")).sizes == (10, 10)


def test_one_split_for_both_is_refused(tmp_path: Path):
    write_texts(tmp_path, "dev.parquet")
    with pytest.raises(ValueError, match=rf"'dev' and 'val' are one split \(--data.train-split, .*{HOLD_OUT}"):
        find_texts(TextOptions(path=tmp_path, train_split="dev", test_split="val"))


# the hub


def test_a_named_test_split_that_the_hub_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch):
    splits = datasets.DatasetDict(train=table([0, 1, 2] * 5), validation=table([0]))
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: splits)
    message = rf"has the splits \['train', 'validation'\] and no split '{{}}' \(--data.test-split\).*{HOLD_OUT}"
    with pytest.raises(ValueError, match=message.format("test")):
        find_images(ImageOptions(dataset="cifar10"))
    with pytest.raises(ValueError, match=message.format("held")):
        find_images(ImageOptions(hub="someone/images", test_split="held"))
    with pytest.raises(ValueError, match=r"no split 'all' \(--data.train-split\)"):
        find_images(ImageOptions(hub="someone/images", train_split="all"))
    assert find_images(ImageOptions(hub="someone/images", test_split="")).sizes == (12, 3)
    assert find_images(ImageOptions(hub="someone/images")).sizes == (15, 1)
    assert find_images(ImageOptions(hub="someone/images", test_split="validation")).sizes == (15, 1)


def test_a_set_that_a_program_would_make_is_read_from_the_hubs_parquet(monkeypatch: pytest.MonkeyPatch):
    splits = datasets.DatasetDict(train=table([0, 1, 2] * 5), test=table([0]))

    def load(*names: str, revision: str = "main") -> datasets.DatasetDict:
        if revision != "refs/convert/parquet":
            raise RuntimeError("Dataset scripts are no longer supported, but found images.py")
        return splits

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert find_images(ImageOptions(hub="someone/images")).sizes == (15, 1)


# folders by class


@pytest.mark.parametrize(
    ("tops", "options"),
    [
        (("train", "test"), {}),
        (("train", "test", "val"), {}),
        (("Training", "testing"), {}),
        (("train", "val"), {}),
        (("train", "val"), {"test_split": "val"}),
        (("train", "val"), {"test_split": "validation"}),
        (("train", "valid", "test"), {"test_split": "dev"}),
        (("train", "val"), {"dataset": "tiny-imagenet"}),
        (("art", "photo"), {"train_split": "art", "test_split": "photo"}),
        (("train", "test"), {"dataset": "cifar10"}),
    ],
)
def test_folders_with_the_names_of_splits_are_splits(tmp_path: Path, tops: tuple[str, ...], options: dict):
    write_folders(tmp_path, *tops)
    found = find_images(ImageOptions(path=tmp_path, **options))
    assert (found.sizes, found.domain_names, found.train.domains) == ((15, 15), (), None)


@pytest.mark.parametrize(
    ("tops", "options"),
    [
        (("train",), {}),
        (("train", "val"), {"test_split": ""}),
        (("train", "test"), {"test_split": ""}),
        (("train",), {"dataset": "pacs"}),
    ],
)
def test_a_training_folder_alone_holds_out_and_is_no_domain(tmp_path: Path, tops: tuple[str, ...], options: dict):
    write_folders(tmp_path, *tops)
    found = find_images(ImageOptions(path=tmp_path, **options))
    assert (found.sizes, found.domain_names, found.train.domains) == ((12, 3), (), None)


@pytest.mark.parametrize(
    ("tops", "options", "message"),
    [
        (("train",), {"dataset": "cifar10"}, rf"no folder for the split 'test'; it has \['train'\] .*{HOLD_OUT}"),
        (("train",), {"dataset": "tiny-imagenet"}, r"no folder for the split 'valid'"),
        (("train", "val"), {"test_split": "test"}, r"no folder for the split 'test'; it has \['train', 'val'\]"),
        (("clipart", "real"), {"dataset": "domainnet"}, rf"split 'test'; it has \['clipart', 'real'\] .*{HOLD_OUT}"),
        (("mine", "yours"), {"dataset": "domainnet"}, r"data that are not 'domainnet' say so: --data.dataset own\.$"),
        (("art", "photo"), {"test_split": "val"}, rf"no folder for the split 'val'.*{HOLD_OUT}"),
        (("art", "photo"), {"test_split": "photo"}, r"no folder for the split 'train'; .* \(--data.train-split\)"),
        (("art", "test"), {}, r"no folder for the split 'train'; it has \['art', 'test'\] \(--data.train-split\)"),
        (("test",), {}, r"no folder for the split 'train'"),
        (("train", "test"), {"train_split": "all"}, r"no folder for the split 'all'"),
    ],
)
def test_a_split_without_its_folder_is_refused(tmp_path: Path, tops: tuple[str, ...], options: dict, message: str):
    write_folders(tmp_path, *tops)
    with pytest.raises(ValueError, match=message):
        find_images(ImageOptions(path=tmp_path, **options))
