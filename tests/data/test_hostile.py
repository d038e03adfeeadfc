"""Strange requests and strange data end quickly, in a correct split or in one message that says what to change."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from miniatures import write_parquet

from fedsim.data.images.images import ImageOptions, find_images, load_images
from fedsim.data.partition.dealing import Pools
from fedsim.data.partition.dirichlet import by_domain, pathological
from fedsim.data.partition.sized import counts_by_shares
from fedsim.data.protocols import (
    Domains,
    Partition,
    Skew,
    domain_clients,
    skewed_clients,
)
from fedsim.data.sources.labelled import Labelled
from fedsim.data.texts.texts import TextOptions, find_texts

pytestmark = pytest.mark.usefixtures("own_cache")
PARTITIONS = Partition.__args__


def labelled(n: int, n_classes: int = 20, seed: int = 0, absent: tuple[int, ...] = ()) -> Labelled:
    present = [label for label in range(n_classes) if label not in absent]
    targets = torch.from_numpy(np.random.default_rng(seed).choice(present, size=n))
    names = tuple(str(label) for label in range(n_classes))
    return Labelled(torch.arange(n)[:, None].float(), targets, names, targets % 4, ("a", "b", "c", "d"))


def quickly(options: Skew, train: Labelled, test: Labelled, seconds: float = 10.0):
    """A federation, or what was said instead; slower than this is a failure even on a busy machine."""
    begun = time.perf_counter()
    try:
        return skewed_clients(options, (train, test), np.random.default_rng(0))
    except ValueError as error:
        return str(error)
    finally:
        assert time.perf_counter() - begun < seconds


@pytest.mark.parametrize("least", [None, 0])
@pytest.mark.parametrize("name", PARTITIONS)
def test_a_thousand_clients_of_a_thousand_samples(name: str, least: int | None):
    options = Skew(
        partition=name, n_clients=1000, min_train=least, min_test=least, train_per_client=1, test_per_client=1
    )
    found = quickly(options, labelled(1000), labelled(1000, seed=1))
    if isinstance(found, str):
        assert "--data.n-clients" in found or "--data.min-train" in found
        return
    for tables, size in ((found.train, 0), (found.test, 1000)):
        rows = torch.cat(list(tables)) - size
        assert rows.sort().values.tolist() == list(range(1000))
    assert found.n_clients == (4 if name == "owner" else 1000)


@pytest.mark.parametrize("name", PARTITIONS)
def test_classes_without_samples_leave_a_correct_split(name: str):
    """Among them the highest, of which there are test samples."""
    options = Skew(partition=name, n_clients=5, train_per_client=20, test_per_client=5, classes_per_client=4)
    found = quickly(options, labelled(400, absent=(3, 10, 19)), labelled(200, seed=1, absent=(3, 7)))
    for tables, sizes in ((found.train, (100, 400)), (found.test, (25, 200))):
        rows = torch.cat(list(tables))
        assert len(rows.unique()) == len(rows) == sizes[name != "sized-dir"]


@pytest.mark.parametrize(
    "option",
    [
        {"alpha": 0.0},
        {"alpha": -1.0},
        {"alpha": float("nan")},
        {"alpha": float("inf")},
        {"min_train": -1},
        {"min_test": -1},
        {"unseen_fraction": 1.0},
        {"unseen_fraction": float("nan")},
        {"proxy_samples": -1},
        {"clients_per_domain": 0},
    ],
)
def test_options_of_clients_by_domain_out_of_range_are_refused_at_once(option: dict):
    name, value = next(iter(option.items()))
    with pytest.raises(ValueError, match=rf"{name} is {value}; it must .*\(--data\."):
        Domains(**option)


@pytest.mark.parametrize(
    "option",
    [
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"n_clients": 0},
        {"n_clients": -3},
        {"classes_per_client": 0},
        {"train_per_client": 0},
        {"test_per_client": -1},
        {"min_share": float("nan")},
        {"min_share": 1.0},
        {"min_share": -0.1},
        {"min_train": -1},
        {"unseen_fraction": -0.1},
        {"flower_seed": -1},
    ],
)
def test_options_of_skewed_clients_out_of_range_are_refused_at_once(option: dict):
    name, value = next(iter(option.items()))
    with pytest.raises(ValueError, match=rf"^(data\.)?{name} is {value}; it must .*\(--data\."):
        Skew(**option)


def test_all_that_is_wrong_is_said_together():
    with pytest.raises(ValueError, match=r"n_clients is 0; .*unseen_fraction is 2"):
        Skew(n_clients=0, unseen_fraction=2)
    with pytest.raises(ValueError, match=r"top_classes is 0; .*max_length is 3"):
        TextOptions(top_classes=0, max_length=3)


@pytest.mark.parametrize("alpha", [1e-300, 1e-5, 1e300])
@pytest.mark.parametrize("name", ["gl-dir", "sc-dir", "patho", "sized-dir", "quantity", "flower-dir"])
def test_extreme_concentrations_end(name: str, alpha: float):
    options = Skew(partition=name, n_clients=5, alpha=alpha, train_per_client=20, test_per_client=5, min_train=1)
    found = quickly(options, labelled(400), labelled(200, seed=1))
    assert "raise --data.alpha" in found if isinstance(found, str) else min(map(len, found.train)) >= 1


def test_all_clients_unseen_is_refused():
    found = quickly(Skew(n_clients=5, unseen_fraction=0.99), labelled(400), labelled(200))
    assert "unseen clients [0, 1, 2, 3, 4] must leave at least one of 5 clients" in found


def test_too_many_test_samples_asked_for_of_a_domain_are_refused():
    with pytest.raises(ValueError, match=r"leaves each at least 4 and 100000: that takes .*--data.min-test") as raised:
        domain_clients(Domains(min_test=100000), (labelled(400), labelled(200)), np.random.default_rng(0))
    assert "--data.clients-per-domain" in str(raised.value)
    assert "--data.n-clients" not in str(raised.value)


def test_clients_by_domain_need_domains_and_samples_of_each():
    splits, none = (labelled(400), labelled(200)), {"domains": None}
    for without in ((replace(splits[0], **none), splits[1]), (splits[0], replace(splits[1], **none))):
        with pytest.raises(ValueError, match=r"have no domains; say which column holds them \(--data.domain-column\)"):
            domain_clients(Domains(), without, np.random.default_rng(0))
    one = replace(splits[1], domains=torch.zeros(200, dtype=torch.long))
    count = int((splits[0].domains == 1).sum())
    with pytest.raises(ValueError, match=rf"Domain 1 has {count} training and 0 test samples"):
        domain_clients(Domains(clients_per_domain=1), (splits[0], one), np.random.default_rng(0))


def test_clients_by_domain_have_samples_of_their_own_domain_only():
    splits, options = (labelled(400), labelled(200, seed=1)), Domains(clients_per_domain=3, unseen_fraction=0.34)
    data = domain_clients(options, splits, np.random.default_rng(0))
    assert (data.domains, data.domain_names) == (tuple(k // 3 for k in range(12)), ("a", "b", "c", "d"))
    assert sorted(data.domains[client] for client in data.unseen) == [0, 1, 2, 3]
    for tables, split, offset, least in ((data.train, splits[0], 0, 4), (data.test, splits[1], 400, 2)):
        assert sorted((torch.cat(list(tables)) - offset).tolist()) == list(range(len(split.targets)))
        assert min(map(len, tables)) >= least
        for client, rows in enumerate(tables):
            assert set(split.domains[rows - offset].tolist()) == {data.domains[client]}


def test_who_has_no_option_of_clients_by_domain_names_another():
    pool = (np.zeros(8, int), np.zeros(8, int))
    with pytest.raises(ValueError, match=r"for smaller ones \(--data.clients-per-task\)"):
        by_domain(Pools(*pool, 5, sizes="--data.clients-per-task"), pool, 1.0, np.random.default_rng(0))


def test_classes_that_do_not_go_round_say_what_to_change():
    found = quickly(Skew(partition="patho", n_clients=2, classes_per_client=3), labelled(400), labelled(200))
    assert "(--data.classes-per-client); 2 clients (--data.n-clients) cannot hold 20 classes" in found


def test_classes_dealt_to_many_clients_are_dealt_quickly_and_as_evenly_as_to_few():
    begun, targets = time.perf_counter(), np.arange(20000) % 100
    train, _ = pathological(Pools(targets, targets, 1000, 1, 1), 10, np.random.default_rng(0))
    assert time.perf_counter() - begun < 10
    held = [np.unique(targets[rows]) for rows in train]
    assert {len(classes) for classes in held} == {10}
    assert set(np.bincount(np.concatenate(held))) == {100}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gl-dir", "patho"])
def test_sizes_that_no_draw_gives_to_a_thousand_clients_are_given_up_quickly(name: str):
    options = Skew(partition=name, n_clients=1000, min_train=1, min_test=0, alpha=None if name == "patho" else 0.05)
    found = quickly(options, labelled(1000, 100), labelled(500, 100, seed=1), seconds=60.0)
    assert "draws; raise --data.alpha" in found


def test_counts_end_where_what_is_left_has_no_share():
    counts = counts_by_shares(np.array([1.0, 0.0, 0.0]), 5, np.array([2, 3, 4]))
    assert counts.sum() == 5
    assert counts[0] == 2


# tables


def write(folder: Path, labels: object, split: str = "train") -> None:
    table = {
        "text": pa.array(["a"] * len(labels)),
        "label": labels if isinstance(labels, pa.Array) else pa.array(labels),
    }
    pq.write_table(pa.table(table), folder / f"{split}.parquet")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, float("nan"), 1.0], r"column 'label' .*NaN.*--data.label-column"),
        ([0.5, 1.5, 0.5], r"column 'label' .*parts of whole numbers \(--data.label-column\)"),
        ([[0], [1, 2], []], r"column 'label' .*neither numbers nor words.*--data.label-column"),
        ([{"a": 0}] * 3, r"column 'label' .*neither numbers nor words.*--data.label-column"),
        ([-1, -1, -1], r"has the labels \[-1\]"),
        ([0, None, 1], r"empty entries in the column 'label'"),
        ([], r"train.parquet' is damaged, empty or no parquet file .*"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, labels: list, message: str):
    write(tmp_path, labels or pa.array([], pa.int64()))
    write(tmp_path, [0, 1], "test")
    with pytest.raises(ValueError, match=message):
        find_texts(TextOptions(path=tmp_path))


def test_numbers_far_apart_are_numbered_as_they_come_and_not_a_class_each(tmp_path: Path):
    write(tmp_path, [10**12, 7, 10**12, -5])
    write(tmp_path, [7], "test")
    found = find_texts(TextOptions(path=tmp_path))
    assert (found.class_names, found.train.targets.tolist()) == (("-5", "7", str(10**12)), [2, 1, 2, 0])


def test_a_file_of_another_shape_than_its_neighbour_is_named(tmp_path: Path):
    write(tmp_path, [0, 1], "train-0")
    write(tmp_path, ["x", "y"], "train-1")
    with pytest.raises(ValueError, match=r"train-1.parquet' has other columns than '.*train-0.parquet'"):
        find_texts(TextOptions(path=tmp_path, test_split=""))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_a_parquet_file_that_is_cut_short_is_named(tmp_path: Path, kept: float):
    write(tmp_path, list(range(10)) * 50)
    write(tmp_path, [0], "test")
    path = tmp_path / "train.parquet"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"train.parquet' is damaged, empty or no parquet file"):
        find_texts(TextOptions(path=tmp_path))


def write_words(folder: Path, **columns: list[str]) -> Path:
    """Uncompressed, so that letters can be found in the file."""
    for split in ("train", "test"):
        table = pa.table({"text": ["first", "second"], "label": ["one", "two"]} | columns)
        pq.write_table(table, folder / f"{split}.parquet", compression="none", use_dictionary=False)
    return folder / "test.parquet"


def test_letters_that_are_none_are_named_with_their_file_and_row(tmp_path: Path):
    path = write_words(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"second", b"sec\xffnd"))
    found = find_texts(TextOptions(path=tmp_path))
    with pytest.raises(ValueError, match=r"test.parquet, row 1' is damaged: .* Fetch it again\.") as raised:
        list(found.read())
    assert type(raised.value) is ValueError


def test_letters_of_a_label_that_are_none_are_named_with_their_file(tmp_path: Path):
    path = write_words(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"two", b"t\xffo"))
    with pytest.raises(ValueError, match=r"test.parquet' is damaged: .* Fetch it again\.") as raised:
        find_texts(TextOptions(path=tmp_path))
    assert type(raised.value) is ValueError


def test_a_schema_with_a_flipped_byte_is_named_with_its_file(tmp_path: Path):
    write_parquet(tmp_path / "train.parquet", [0, 1])
    path = tmp_path / "train.parquet"
    table = pq.read_table(path)
    flipped = table.schema.metadata[b"huggingface"].replace(b"ClassLabel", b"ClassM!bel")
    pq.write_table(table.replace_schema_metadata({"huggingface": flipped}), path)
    with pytest.raises(ValueError, match=r"train.parquet' is damaged, empty or no parquet file that `datasets` reads"):
        find_images(ImageOptions(path=tmp_path))


def test_a_text_column_of_another_name_in_one_file_is_said_with_it(tmp_path: Path):
    write(tmp_path, [0, 1])
    pq.write_table(pa.table({"sentence": ["a"], "label": [0]}), tmp_path / "test.parquet")
    with pytest.raises(
        ValueError, match=r"test.parquet' has no columns \['text'\], which '.*train.parquet' has; it has"
    ):
        find_texts(TextOptions(path=tmp_path))


@pytest.mark.parametrize(("labels", "message"), [("stars", "no column 'label'"), ("label", "words in one split")])
def test_labels_of_another_name_or_kind_in_one_file_are_refused(tmp_path: Path, labels: str, message: str):
    write(tmp_path, [0, 1])
    pq.write_table(pa.table({"text": ["a"], labels: ["x"]}), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=message):
        find_texts(TextOptions(path=tmp_path))


def test_an_image_column_of_another_name_or_kind_in_one_file_is_said_with_it(tmp_path: Path):
    write_parquet(tmp_path / "train.parquet", [0, 1])
    whole = pq.read_table(tmp_path / "train.parquet")
    renamed = whole.replace_schema_metadata(None).rename_columns({"image": "img"})
    pq.write_table(renamed, tmp_path / "test.parquet")
    with pytest.raises(
        ValueError, match=r"test.parquet' has no columns \['image'\], which .* it has \['img', 'label'\]"
    ):
        find_images(ImageOptions(path=tmp_path))
    pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"test.parquet' has no column of images"):
        find_images(ImageOptions(path=tmp_path))


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}])
@pytest.mark.usefixtures("own_cache")
def test_a_cell_without_an_image_is_named_with_its_file_and_row(tmp_path: Path, cell: dict | None):
    write_parquet(tmp_path / "train.parquet", [0, 1, 2])
    table = pq.read_table(tmp_path / "train.parquet")
    cells = [*table["image"].to_pylist()[:2], cell]
    emptied = table.set_column(0, table.field("image"), pa.array(cells, table.field("image").type))
    pq.write_table(emptied, tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"test.parquet, row 2' is damaged: .*'image' holds no image. Fetch it again"):
        load_images(ImageOptions(path=tmp_path, image_size=8))


def test_a_column_of_words_instead_of_images_is_called_by_its_kind(tmp_path: Path):
    pq.write_table(pa.table({"image": ["a.png", "b.png"], "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"no column of images, .*; it has image \(string\), label \(int64\)"):
        find_images(ImageOptions(path=tmp_path))


def test_test_labels_that_no_training_sample_has_are_refused(tmp_path: Path):
    write(tmp_path, ["cat", "dog"])
    write(tmp_path, ["fox", "owl"], "test")
    with pytest.raises(ValueError, match=r"samples of 2 classes that no training sample has: \['fox', 'owl'\]"):
        find_texts(TextOptions(path=tmp_path))
