"""Your own data work as people have them: folders by class, by split, by domain, and tables of two columns."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniatures import COLOURS, colours, names, picture, write_parquet
from runs import python, run

from fedsim.data.images.images import ImageOptions, find_images, load_images
from fedsim.data.sources.registry import IMAGE_SETS
from fedsim.data.texts.texts import TextOptions, find_texts

pytestmark = pytest.mark.usefixtures("own_cache")
SEVEN = ("bear", "cat", "cow", "dog", "fox", "hen", "pig")


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FEDSIM_DATA", raising=False)


def write_images(folder: Path, *tops: str, classes: tuple[str, ...] = tuple(COLOURS), count: int = 5) -> None:
    """JPEGs of each class in folders of its name, inside each of `tops`; a class that is no colour is red."""
    for top in tops:
        for name in classes:
            (folder / top / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                picture(name if name in COLOURS else "bird").save(folder / top / name / f"{number}.jpg", quality=95)


# folders of images


@pytest.mark.parametrize(
    ("tops", "sizes", "domains"),
    [
        (("",), (12, 3), ()),
        (("train",), (12, 3), ()),
        (("train", "test"), (15, 15), ()),
        (("train", "val"), (15, 15), ()),
        (("train", "val", "test"), (15, 15), ()),
        (("home", "street"), (24, 6), ("home", "street")),
    ],
)
def test_every_layout_of_folders_is_read_and_what_is_held_out_is_said(tmp_path: Path, tops, sizes, domains):
    write_images(tmp_path, *tops)
    found = find_images(ImageOptions(path=tmp_path))
    assert (found.sizes, found.domain_names, found.class_names) == (sizes, domains, tuple(COLOURS))
    train, test = load_images(ImageOptions(path=tmp_path, image_size=8))
    assert (colours(train.inputs), colours(test.inputs)) == (names(train), names(test))
    is_held_out = sizes[0] != sizes[1]
    assert train.presented.get("notes") == ({"test_samples_held_out": sizes[1]} if is_held_out else None)


def test_nothing_is_said_of_downloads_while_local_files_are_read(tmp_path: Path, capfd: pytest.CaptureFixture):
    write_images(tmp_path / "images", "")
    find_images(ImageOptions(path=tmp_path / "images"))
    find_texts(TextOptions(path=write_table(tmp_path / "texts.csv", text=["a", "b"] * 5, label=[0, 1] * 5)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("known", [name for name in IMAGE_SETS])
def test_folders_by_class_are_no_known_set_whatever_a_recipe_names(tmp_path: Path, known: str):
    write_images(tmp_path, "", classes=SEVEN)
    found = find_images(ImageOptions(dataset=known, path=tmp_path, top_classes=10))
    assert (found.class_names, found.sizes, found.options.stored_size) == (SEVEN, (28, 7), None)
    assert found.notes == {"top_classes_asked_for": 10, "classes": 7, "test_samples_held_out": 7}


def test_classes_that_are_called_as_splits_may_lie_side_by_side(tmp_path: Path):
    write_images(tmp_path, "", classes=("bus", "test", "train"))
    (tmp_path / "readme.csv").write_text("no,image\n")
    (tmp_path / "train" / "thumbs").mkdir()
    assert find_images(ImageOptions(path=tmp_path)).class_names == ("bus", "test", "train")


def test_images_at_two_depths_are_refused(tmp_path: Path):
    write_images(tmp_path, "", "home")
    with pytest.raises(ValueError, match=r"images at two depths: .*15 of them, as in <class>/ .*\(--data.path\)"):
        find_images(ImageOptions(path=tmp_path))


# tables


def write_table(path: Path, **columns: list) -> Path:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        table.to_pandas().to_csv(path, index=False)
    return path


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("texts", "labels", "words"),
    [
        ("text", "label", True),
        ("text", "sentiment", True),
        ("review", "label", True),
        ("review", "stars", False),
        ("label", "label_text", None),
    ],
)
def test_a_table_of_two_columns_is_texts_and_labels(tmp_path: Path, ending, texts, labels, words):
    if words is None:
        texts, labels, words = "body", "label", False
    values = ["good", "bad"] * 10 if words else [0, 1] * 10
    path = write_table(tmp_path / f"reviews{ending}", **{labels: values, texts: [f"text {k}" for k in range(20)]})
    for where in (path, tmp_path):
        found = find_texts(TextOptions(path=where))
        assert (found.sizes, found.notes) == ((16, 4), {"test_samples_held_out": 4})
        assert found.class_names == (("bad", "good") if words else ("0", "1"))
        _, (text,) = next(found.train.read(np.arange(1)))
        assert text == "text 0"


def test_of_two_columns_of_words_with_other_names_none_is_guessed(tmp_path: Path):
    path = write_table(tmp_path / "reviews.csv", review=["a", "b"] * 2, mood=["good", "bad"] * 2)
    with pytest.raises(ValueError, match=r"no columns \['text'\] \(--data.text-columns\); it has \['mood', 'review'\]"):
        find_texts(TextOptions(path=path))
    said = TextOptions(path=path, text_columns=("review",), label_column="mood", test_share=0.5)
    assert find_texts(said).sizes == (2, 2)


def test_a_known_sets_columns_are_not_looked_for_in_your_own_table_where_you_say_so(tmp_path: Path):
    path = write_table(tmp_path / "reviews.csv", text=["a", "b"] * 5, label=[0, 1] * 5)
    with pytest.raises(ValueError, match=r"of data that are not 'qnli' say so: --data.task own\.$"):
        find_texts(TextOptions(path=path, task="qnli"))
    assert find_texts(TextOptions(path=path, task="own")).sizes == (8, 2)


@pytest.mark.parametrize("column", ["image", "animal"])
def test_a_table_of_images_needs_no_name_of_its_other_column(tmp_path: Path, column: str):
    write_parquet(tmp_path / "animals.parquet", ["bird", "zebra"] * 5)
    table = pq.read_table(tmp_path / "animals.parquet").rename_columns(["picture", column])
    pq.write_table(table, tmp_path / "animals.parquet")
    for where in (tmp_path, tmp_path / "animals.parquet"):
        train, test = load_images(ImageOptions(path=where, image_size=8))
        assert colours(train.inputs) == names(train)
        assert len(test.targets) == 2


@pytest.mark.parametrize("columns", [("file", "label"), ("id", "label"), ("file_name", "species")])
def test_a_csv_names_images_beside_it_and_their_classes(tmp_path: Path, columns: tuple[str, str]):
    (tmp_path / "images").mkdir()
    labels = list(COLOURS) * 5
    for number, name in enumerate(labels):
        picture(name).save(tmp_path / "images" / f"{number}.jpg", quality=95)
    files = [f"images/{number}.jpg" for number in range(15)]
    path = write_table(tmp_path / "labels.csv", **dict(zip(columns, (files, labels), strict=True)))
    for where in (path, tmp_path):
        train, test = load_images(ImageOptions(path=where, image_size=8))
        assert (colours(train.inputs), colours(test.inputs)) == (names(train), names(test))
        assert (len(train.targets), len(test.targets)) == (12, 3)
    picture("bird").save(tmp_path / "images" / "2.jpg", quality=94)
    assert "zebra" not in colours(load_images(ImageOptions(path=path, image_size=8))[0].inputs[2:3]), "it has changed"
    (tmp_path / "images" / "3.jpg").unlink()
    with pytest.raises(ValueError, match=r"labels.csv, row 3' names the image '.*3.jpg', which is not there"):
        load_images(ImageOptions(path=path, image_size=8))


# recipes


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["hilora_cifar100.py", "hilora_domainnet.py"])
def test_a_recipe_says_what_a_folder_of_seven_classes_would_cost(tmp_path: Path, recipe: str):
    by_domain = recipe == "hilora_domainnet.py"
    write_images(tmp_path / "pets", *(("home", "street") if by_domain else ("",)), classes=SEVEN, count=20)
    clients = ("--data.dataset", "own", "--data.clients-per-domain") if by_domain else ("--data.n-clients",)
    options = ("--data.path", tmp_path / "pets", *clients, 3, "--data.unseen-fraction", 0, "--dry-run")
    small = ("--model.no-pretrained", "--model.name", "vit_tiny_patch16_224", "--rounds", 2)
    done = run(python(f"recipes/{recipe}", *options, *small, "--out", tmp_path / "run"))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_recipe_trains_on_a_folder_by_class_and_says_what_it_held_out(tmp_path: Path):
    write_images(tmp_path / "pets", "", classes=SEVEN, count=20)
    options = ("--data.path", tmp_path / "pets", "--data.n-clients", 3, "--data.image-size", 32, "--rounds", 1)
    small = ("--model.no-pretrained", "--model.name", "vit_tiny_patch16_224", "--data.unseen-fraction", 0)
    done = run(python("recipes/hilora_cifar100.py", *options, *small, "--out", tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "data · test_samples_held_out 28" in done.stdout
