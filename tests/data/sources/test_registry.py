"""Known data sets fill in what is left out, are read in their own layout, and are listed in the documentation."""

import os
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniatures import COLOURS, colours, names, picture, table, write_parquet
from transformers import BertTokenizerFast

from fedsim.data.images.images import ImageOptions, ImageSetName, find_images, load_images
from fedsim.data.instructions.registry import INSTRUCTION_SETS
from fedsim.data.protocols import Skew, skewed_clients
from fedsim.data.sources.registry import IMAGE_SETS, TEXT_SETS
from fedsim.data.texts.texts import TaskName, TextOptions, find_texts

pytestmark = pytest.mark.usefixtures("own_cache")
DATA = os.environ.get("FEDSIM_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="FEDSIM_DATA does not name a folder of data sets")
ROOT = Path(__file__).parent.parent.parent.parent


def test_the_options_offer_exactly_the_known_sets():
    assert set(ImageSetName.__args__) == IMAGE_SETS.keys() | {"own"}
    assert set(TaskName.__args__) == TEXT_SETS.keys() | {"own"}


@pytest.mark.parametrize("name", [*IMAGE_SETS, *TEXT_SETS, *INSTRUCTION_SETS])
def test_the_pages_list_every_known_set_with_its_source_and_licence(name: str):
    row = next(
        line
        for line in (ROOT / "docs/reference/datasets.md").read_text().splitlines()
        if line.startswith(f"| `{name}`")
    )
    _, _, what, domains, source, licence, _ = (cell.strip() for cell in row.split("|"))
    assert what
    assert source
    assert licence
    grouped = IMAGE_SETS.get(name, {}).get("domain_column") or INSTRUCTION_SETS.get(name, {}).get("task_column")
    assert bool(domains) == bool(grouped)


def test_what_is_given_is_kept_and_what_is_left_out_comes_from_the_set():
    options = ImageOptions(dataset="cifar100").resolved()
    assert (options.hub, options.label_column, options.domain_column) == (
        "uoft-cs/cifar100",
        "fine_label",
        "coarse_label",
    )
    assert (options.test_split, options.stored_size, options.mean) == ("test", 32, None)
    given = ImageOptions(dataset="cifar100", label_column="coarse_label", stored_size=8, test_split="").resolved()
    assert (given.label_column, given.stored_size, given.test_split) == ("coarse_label", 8, "")
    assert ImageOptions().resolved().label_column == "label"


def test_images_are_normalised_as_their_data_set_is_where_that_is_asked_for():
    assert ImageOptions(dataset="cifar10", normalise="dataset").resolved().mean == (0.4914, 0.4822, 0.4465)
    with pytest.raises(ValueError, match="normalise is dataset"):
        ImageOptions(dataset="domainnet", normalise="dataset")


@pytest.mark.skipif(not DATA, reason="FEDSIM_DATA does not name a folder of data sets")
def test_pacs_is_normalised_by_its_own_mean_and_deviation():
    options = ImageOptions(dataset="pacs", path=Path("pacs_1680_128px"), image_size=32, normalise="dataset")
    resolved = options.resolved()
    pixels = load_images(options)[0].inputs.float() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(resolved.mean, abs=0.01)
    assert pixels.transpose(0, 1).flatten(1).std(1).tolist() == pytest.approx(resolved.std, abs=0.03)


def test_office_caltech_is_read_from_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for domain in ("amazon", "caltech", "dslr", "webcam"):
        for name in COLOURS:
            (tmp_path / "office-caltech10" / domain / name).mkdir(parents=True)
            for number in range(5):
                picture(name).save(tmp_path / "office-caltech10" / domain / name / f"frame_{number:04d}.jpg")
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    train, test = load_images(ImageOptions(dataset="office-caltech10", image_size=8))
    assert train.domain_names == ("amazon", "caltech", "dslr", "webcam")
    assert (len(train.targets), len(test.targets)) == (48, 12)
    assert colours(train.inputs) == names(train)


def test_tiny_imagenet_is_tested_on_its_validation_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_parquet(tmp_path / "tiny-imagenet" / "data" / "train-00000-of-00001.parquet", [0, 1, 2])
    write_parquet(tmp_path / "tiny-imagenet" / "data" / "valid-00000-of-00001.parquet", [2, 1])
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    found = find_images(ImageOptions(dataset="tiny-imagenet"))
    assert (found.sizes, found.test.targets.tolist()) == ((3, 2), [2, 1])


def test_pacs_of_the_hub_has_one_split_of_which_a_fifth_is_held_out(monkeypatch: pytest.MonkeyPatch):
    domains = ["art_painting"] * 15 + ["sketch"] * 15
    splits = datasets.DatasetDict(train=table([0, 1, 2] * 10, domain=domains))
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits)
    train, test = load_images(ImageOptions(dataset="pacs", image_size=8))
    assert train.domain_names == ("art_painting", "sketch")
    assert (len(train.targets), len(test.targets)) == (24, 6)


@pytest.mark.parametrize(
    ("task", "folder", "columns", "splits"),
    [
        ("ledgar", "lex_glue", {"text": "The parties agree"}, ("ledgar/train", "ledgar/test", "ledgar/validation")),
        ("20newsgroups", "20_newsgroups", {"text": "From: x", "label_text": "sci.med"}, ("train", "test")),
        (
            "mnli",
            "glue",
            {"premise": "a", "hypothesis": "b"},
            ("mnli/train", "mnli/validation_matched", "mnli/test_matched"),
        ),
    ],
)
def test_text_sets_are_read_in_the_layout_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, folder: str, columns: dict, splits: tuple[str, ...]
):
    for size, split in zip((6, 3, 2), splits, strict=False):
        path = tmp_path / folder / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = {name: [text] * size for name, text in columns.items()}
        pq.write_table(pa.table(texts | {"label": np.arange(size) % 3}), path)
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    found = find_texts(TextOptions(task=task))
    assert (found.n_classes, found.sizes) == (3, (6, 3))


def test_20_newsgroups_have_the_same_names_and_numbers_from_a_folder_as_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    newsgroups = ["alt.atheism", "comp.graphics", "sci.med"]
    rows = [2, 0, 1, 2]
    columns = {"text": ["x"] * 4, "label": rows, "label_text": [newsgroups[k] for k in rows]}
    for split in ("train", "test"):
        pq.write_table(pa.table(columns), tmp_path / f"{split}.parquet")
    from_folder = find_texts(TextOptions(task="20newsgroups", path=tmp_path))
    splits = datasets.DatasetDict({name: datasets.Dataset.from_dict(columns) for name in ("train", "test")})
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", {"SetFit/20_newsgroups": splits}.__getitem__)
    for found in (from_folder, find_texts(TextOptions(task="20newsgroups"))):
        assert (found.class_names, found.train.targets.tolist()) == (tuple(newsgroups), rows)


@pytest.mark.parametrize("words", [["a", "a", "b"], ["a", None, "b"], [1, 2, 3]])
def test_words_beside_numbers_that_do_not_name_each_are_left_alone(tmp_path: Path, words: list):
    for split in ("train", "test"):
        columns = {"text": ["x"] * 3, "label": [0, 1, 2], "label_text": words}
        pq.write_table(pa.table(columns), tmp_path / f"{split}.parquet")
    assert find_texts(TextOptions(path=tmp_path)).class_names == ("0", "1", "2")


@needs_data
def test_real_cifar_100_and_pacs_need_no_more_than_their_names_and_folders():
    cifar = find_images(ImageOptions(dataset="cifar100", path=Path("cifar100_8k")))
    assert (cifar.n_classes, cifar.sizes, len(cifar.domain_names)) == (100, (8000, 2000), 20)
    pacs = find_images(ImageOptions(dataset="pacs", path=Path("pacs_1680_128px")))
    assert (pacs.n_classes, pacs.sizes, len(pacs.domain_names)) == (7, (1680, 560), 4)


@needs_data
def test_the_largest_speakers_of_real_shakespeare_become_clients():
    options = TextOptions(
        path=Path("text/shakespeare"),
        train_split="by_speaker",
        test_split="",
        label_column="speaker",
        domain_column="speaker",
        max_length=16,
    )
    split = Skew(partition="owner", n_clients=20, min_train=50)
    tokenizer = BertTokenizerFast(str(Path(DATA) / "tokenizers" / "bert-base-uncased" / "vocab.txt"))
    data = skewed_clients(split, find_texts(options).tokenise(tokenizer), np.random.default_rng(0))
    speakers = pq.read_table(Path(DATA) / "text/shakespeare/by_speaker.parquet")["speaker"].to_pylist()
    most = {name for name, _ in Counter(speakers).most_common(20)}
    assert {data.domain_names[domain] for domain in data.domains} == most
    assert min(map(len, data.train)) >= 50
    assert all({data.class_names[k] for k in data.targets[rows]} <= most for rows in data.train)
