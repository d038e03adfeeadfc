"""Texts are listed like images, tokenised once, and paired, cut and padded as their tokenizer does it."""

import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertTokenizerFast

from fedsim.data.protocols import Domains, Skew, domain_clients, skewed_clients
from fedsim.data.sources.registry import TEXT_SETS
from fedsim.data.texts import texts
from fedsim.data.texts.texts import TextOptions, find_texts

pytestmark = pytest.mark.usefixtures("own_cache")
DATA = os.environ.get("FEDSIM_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="FEDSIM_DATA does not name a folder of data sets")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "why", "because"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> BertTokenizerFast:
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(WORDS))
    return BertTokenizerFast(str(path))


def write(path: Path, **columns: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_sentiment(folder: Path) -> None:
    write(folder / "sst2_train.parquet", sentence=["good film", "bad", "bad film", "good"], label=[1, 0, 0, 1])
    write(folder / "sst2_dev.parquet", sentence=["good good film", ""], label=[1, 0])
    write(folder / "cola_train.parquet", sentence=["another", "task"], label=[1, 0])


def test_texts_become_padded_tokens_in_the_order_of_the_files(tmp_path: Path, tokenizer):
    write_sentiment(tmp_path)
    found = find_texts(TextOptions(path=tmp_path, task="sst2", max_length=6))
    assert (found.n_classes, found.sizes) == (2, (4, 2))
    train, test = found.tokenise(tokenizer)
    assert train.inputs.dtype == torch.int32
    assert train.inputs.tolist() == [[2, 5, 7, 3, 0, 0], [2, 6, 3, 0, 0, 0], [2, 6, 7, 3, 0, 0], [2, 5, 3, 0, 0, 0]]
    assert test.inputs.tolist() == [[2, 5, 5, 7, 3, 0], [2, 3, 0, 0, 0, 0]]
    assert (train.targets.tolist(), test.targets.tolist()) == ([1, 0, 0, 1], [1, 0])
    assert train.presented == {"pad_token": 0, "notes": {"texts": 6, "texts_cut": 0}}


def test_pairs_are_joined_and_cut_as_the_tokenizer_does(tmp_path: Path, tokenizer):
    write(tmp_path / "qnli_dev.parquet", question=["why good", "why"], sentence=["because " * 9, "bad"], label=[0, 1])
    write(tmp_path / "qnli_train.parquet", question=["why", ""], sentence=["good", ""], label=[1, 0])
    train, test = find_texts(TextOptions(path=tmp_path, task="qnli", max_length=8)).tokenise(tokenizer)
    assert test.inputs.tolist() == [[2, 8, 5, 3, 9, 9, 9, 3], [2, 8, 3, 6, 3, 0, 0, 0]]
    assert train.inputs[0].tolist() == [2, 8, 3, 5, 3, 0, 0, 0]


def test_how_many_texts_were_cut_is_noted_also_when_they_are_read_again(tmp_path: Path, tokenizer):
    write(tmp_path / "train.parquet", text=["good " * 5, "good " * 4, "bad", "bad film"] * 5, label=[0, 0, 1, 1] * 5)
    write(tmp_path / "test.parquet", text=["bad " * 9, "good"] * 5, label=[1, 0] * 5)
    options, split = TextOptions(path=tmp_path, max_length=6), Skew(n_clients=2, alpha=10.0)
    for _ in range(2):
        data = skewed_clients(split, find_texts(options).tokenise(tokenizer), np.random.default_rng(0))
        assert data.notes == {"texts": 30, "texts_cut": 10}
        assert data.inputs.shape == (30, 6)


def test_texts_are_tokenised_once_ever_and_again_for_another_length(tmp_path: Path, tokenizer, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    write_sentiment(tmp_path / "data")
    calls = []
    original = texts.FoundTexts._tokenise_all
    monkeypatch.setattr(texts.FoundTexts, "_tokenise_all", lambda *args: calls.append(1) or original(*args))
    options = TextOptions(path=tmp_path / "data", task="sst2", max_length=6)
    first, again = (find_texts(options).tokenise(tokenizer)[0].inputs for _ in range(2))
    assert torch.equal(first, again)
    assert len(calls) == 1
    longer = TextOptions(path=tmp_path / "data", task="sst2", max_length=7)
    assert find_texts(longer).tokenise(tokenizer)[0].inputs.shape == (4, 7)
    assert len(calls) == 2


def test_a_data_set_of_the_hub_is_asked_for_with_its_configuration(monkeypatch, tokenizer):
    splits = datasets.DatasetDict(
        train=datasets.Dataset.from_dict({"question": ["why"], "sentence": ["good"], "label": [1]}),
        validation=datasets.Dataset.from_dict({"question": ["why"], "sentence": [None], "label": [1]}),
    )
    asked = []
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or splits)
    train, test = find_texts(TextOptions(task="qnli", max_length=6)).tokenise(tokenizer)
    assert asked == [("nyu-mll/glue", "qnli")]
    assert train.inputs.tolist() == [[2, 8, 3, 5, 3, 0]]
    assert test.inputs.tolist() == [[2, 8, 3, 3, 0, 0]], "an empty entry is an empty text"


def test_a_subset_keeps_the_proportions_of_the_classes(tmp_path: Path):
    write(tmp_path / "train.parquet", text=["x"] * 100, label=[0] * 80 + [1] * 20)
    write(tmp_path / "test.parquet", text=["x"] * 10, label=[0, 1] * 5)
    found = find_texts(TextOptions(path=tmp_path, train_samples=50, test_samples=4))
    assert np.bincount(found.train.targets).tolist() == [40, 10]
    assert np.bincount(found.test.targets).tolist() == [2, 2]


def test_one_groups_first_classes_can_be_kept(tmp_path: Path):
    columns = {"text": list("abcdef"), "label": [0, 1, 2, 0, 1, 2], "topic": ["x", "x", "x", "y", "y", "y"]}
    write(tmp_path / "train.parquet", **columns)
    write(tmp_path / "test.parquet", **columns)
    found = find_texts(TextOptions(path=tmp_path, domain_column="topic", domain=("y",), first_classes=2))
    assert [item for _, item in found.train.read(np.arange(2))] == [("d",), ("e",)]
    assert found.class_names == ("0", "1")
    both = find_texts(TextOptions(path=tmp_path, domain_column="topic", domain=("y", "x")))
    assert [item for _, item in both.train.read(np.arange(6))] == [(letter,) for letter in "abcdef"]
    assert (both.domain_names, both.train.domains.tolist()) == (("x", "y"), [0, 0, 0, 1, 1, 1])
    assert (found.domain_names, found.train.domains.tolist()) == (("y",), [0, 0])
    with pytest.raises(ValueError, match=r"no domain 'z' among \['x', 'y'\] \(--data.domain\)"):
        find_texts(TextOptions(path=tmp_path, domain_column="topic", domain=("z",)))
    more = find_texts(TextOptions(path=tmp_path, first_classes=4))
    assert (more.n_classes, more.notes) == (3, {"first_classes_asked_for": 4, "classes": 3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_columns": ("headline",)}, r"has no columns \['headline'\] \(--data.text-columns\)"),
        ({"label_column": "stars"}, r"no column 'stars' \(--data.label-column\)"),
        ({"train_split": "dev"}, r"none for the split 'dev' in its name"),
        ({"subset": "qqp"}, r"none of 'qqp' for the split 'train' in its name"),
    ],
)
def test_what_does_not_fit_is_said_with_the_option_that_sets_it(tmp_path: Path, options: dict, message: str):
    write(tmp_path / "train.parquet", text=["x"], label=[0])
    with pytest.raises(ValueError, match=message):
        find_texts(TextOptions(path=tmp_path, **options))


@pytest.mark.parametrize("option", [{"max_length": 3}, {"text_columns": ("a", "b", "c")}, {"train_samples": 0}])
def test_options_out_of_range_are_refused(option: dict):
    with pytest.raises(ValueError, match=next(iter(option))):
        TextOptions(**option)


def test_a_batch_is_cut_to_its_longest_text(tmp_path: Path, tokenizer):
    write(tmp_path / "train.parquet", text=["good", "bad film", "good bad film"] * 20, label=[0, 1, 1] * 20)
    write(tmp_path / "test.parquet", text=["good", "bad film"] * 10, label=[0, 1] * 10)
    options, split = TextOptions(path=tmp_path, max_length=32), Skew(n_clients=2, alpha=10.0, unseen_fraction=0.0)
    data = skewed_clients(split, find_texts(options).tokenise(tokenizer), np.random.default_rng(0))
    rows = data.train[0][:4]
    tokens, targets = data.batch(rows)
    assert tokens.shape == (4, int((data.inputs[rows] != 0).sum(1).max()))
    assert torch.equal(targets, data.targets[rows])


@needs_data
@pytest.mark.parametrize(
    ("task", "options", "sizes", "n_classes"),
    [
        ("agnews", {"path": Path("text/agnews")}, (10_000, 7_600), 4),
        ("trec", {"path": Path("text/trec"), "label_column": "label"}, (5_452, 500), 6),
        ("sst2", {"path": Path("text/glue")}, (67_349, 872), 2),
        ("cola", {"path": Path("text/glue")}, (8_551, 1_043), 2),
        ("mrpc", {"path": Path("text/glue")}, (3_668, 408), 2),
        ("rte", {"path": Path("text/glue")}, (2_490, 277), 2),
        ("qnli", {"path": Path("text/glue"), "train_split": "dev", "test_split": ""}, (4_371, 1_092), 2),
    ],
)
def test_the_real_texts_are_listed(task, options, sizes, n_classes):
    found = find_texts(TextOptions(task=task, **options))
    assert (found.sizes, found.n_classes) == (sizes, n_classes)
    name, item = next(found.train.read(np.array([3])))
    assert len(item) == len(TEXT_SETS[task]["text_columns"])
    assert all(item)
    assert "row 3" in name


@needs_data
def test_the_real_trec_becomes_the_tokens_that_the_tokenizer_gives():
    tokenizer = BertTokenizerFast(str(Path(DATA) / "tokenizers/bert-base-uncased/vocab.txt"))
    found = find_texts(TextOptions(task="trec", path=Path("text/trec"), label_column="label", max_length=24))
    _, test = found.tokenise(tokenizer)
    texts = pq.read_table(Path(DATA) / "text/trec/trec_test.parquet").column("text").to_pylist()
    assert test.inputs[7].tolist() == tokenizer(texts[7], padding="max_length", max_length=24).input_ids
    assert tokenizer.decode(test.inputs[0][1:4]) == " ".join(texts[0].lower().split()[:3])


def write_topics(folder: Path, topics: list[str], per_topic: int = 60) -> None:
    """Two classes and a column `topic`; sample k's text says its topic."""
    for split, size in (("train", per_topic), ("test", per_topic // 2)):
        of = [topic for topic in topics for _ in range(size)]
        write(folder / f"{split}.parquet", text=of, label=[k % 2 for k in range(len(of))], topic=of)


def test_texts_by_domain_have_clients_of_their_own_in_each(tmp_path: Path):
    write_topics(tmp_path, ["books", "films"])
    splits = find_texts(TextOptions(path=tmp_path, domain_column="topic")).placeholder(pad_token=0)
    data = domain_clients(Domains(clients_per_domain=3, unseen_fraction=0.34), splits, np.random.default_rng(0))
    assert (data.domains, data.domain_names, data.pad_token) == ((0, 0, 0, 1, 1, 1), ("books", "films"), 0)
    assert sorted(data.domains[client] for client in data.unseen) == [0, 1]
    for tables, size, offset in ((data.train, 60, 0), (data.test, 30, 120)):
        assert sorted(torch.cat(list(tables)).tolist()) == list(range(offset, offset + 2 * size))
        for client, rows in enumerate(tables):
            assert {(int(row) - offset) // size for row in rows} == {data.domains[client]}
    assert min(map(len, data.train)) >= 4
    assert min(map(len, data.test)) >= 2


def test_texts_by_domain_need_a_column_of_domains_and_samples_of_each(tmp_path: Path):
    write_topics(tmp_path, ["books", "films"])
    options, split = TextOptions(path=tmp_path), Domains(clients_per_domain=1, min_test=1)
    with pytest.raises(ValueError, match=r"have no domains; say which column holds them \(--data.domain-column\)"):
        domain_clients(split, find_texts(options).placeholder(0), np.random.default_rng(0))
    write(tmp_path / "test.parquet", text=["a"], label=[0], topic=["books"])
    options = TextOptions(path=tmp_path, domain_column="topic")
    with pytest.raises(ValueError, match=r"Domain 1 has 60 training and 0 test samples"):
        domain_clients(split, find_texts(options).placeholder(0), np.random.default_rng(0))
