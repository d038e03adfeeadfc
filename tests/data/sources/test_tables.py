"""Tables of parquet, JSON lines, JSON and CSV hold the same samples, and what they cannot say is refused."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedsim.data.sources.tables import table_files
from fedsim.data.texts.texts import TextOptions, find_texts

pytestmark = pytest.mark.usefixtures("own_cache")
ROWS = [{"text": text, "label": label} for text, label in (('a "b", c', 1), ("NA", 0), ("two\nlines", 1), ("é", 0))]


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_tsv(path: Path, rows: list[dict]) -> None:
    """In GLUE's own files a quote is a letter like any other."""
    path.write_text("\n".join("\t".join(map(str, row)) for row in (list(rows[0]), *(row.values() for row in rows))))


WRITERS: dict[str, Callable[[Path, list[dict]], object]] = {
    "parquet": lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path),
    "jsonl": lambda path, rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows)),
    "json": lambda path, rows: path.write_text(json.dumps(rows)),
    "csv": write_csv,
    "tsv": write_tsv,
}


def texts_of(split) -> list[str]:
    return [text for _, (text,) in split.read(np.arange(len(split.targets)))]


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_holds_the_same_samples(tmp_path: Path, kind: str):
    rows = [row for row in ROWS if kind != "tsv" or "\n" not in row["text"]]
    WRITERS[kind](tmp_path / f"train.{kind}", rows)
    WRITERS[kind](tmp_path / f"test.{kind}", rows[:2])
    found = find_texts(TextOptions(path=tmp_path))
    assert texts_of(found.train) == [row["text"] for row in rows]
    assert found.train.targets.tolist() == [row["label"] for row in rows]
    assert (texts_of(found.test), found.class_names) == (['a "b", c', "NA"], ("0", "1"))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_label_that_is_not_there_and_a_damaged_file_are_named(tmp_path: Path, kind: str):
    path = tmp_path / f"train.{kind}"
    WRITERS[kind](path, [*ROWS[:2], {"text": "x", "label": "" if kind in ("csv", "tsv") else None}])
    with pytest.raises(ValueError, match=r"has empty entries in the column 'label' \(--data.label-column\)"):
        find_texts(TextOptions(path=tmp_path))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"train.{kind}' is damaged, empty or no {kind} file that `datasets` reads"):
        find_texts(TextOptions(path=tmp_path))


def test_a_row_of_other_length_is_refused_with_its_file(tmp_path: Path):
    (tmp_path / "train.csv").write_text("text,label\na,0\nb,1,2,3\n")
    with pytest.raises(ValueError, match=r"train.csv' is damaged, .*Expected 2 fields in line 3, saw 4"):
        find_texts(TextOptions(path=tmp_path))


def test_of_a_folder_the_first_kind_of_table_is_read(tmp_path: Path):
    for name in ("b.csv", "a.csv", "notes.json"):
        WRITERS[name.partition(".")[2]](tmp_path / name, ROWS)
    assert [path.name for path in table_files(tmp_path)] == ["a.csv", "b.csv"]
    WRITERS["parquet"](tmp_path / "c.parquet", ROWS)
    assert [path.name for path in table_files(tmp_path)] == ["c.parquet"]


def test_a_folder_without_tables_and_one_whose_name_is_a_pattern(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no parquet, JSON or CSV files \(--data.path\)"):
        find_texts(TextOptions(path=tmp_path))
    folder = tmp_path / "a[1]*"
    folder.mkdir()
    WRITERS["csv"](folder / "train.csv", ROWS * 3)
    assert find_texts(TextOptions(path=folder, test_share=0.5)).sizes == (6, 6)


def test_a_file_that_changes_is_read_again(tmp_path: Path):
    WRITERS["csv"](tmp_path / "train.csv", ROWS)
    before = find_texts(TextOptions(path=tmp_path, test_share=0.5))
    WRITERS["csv"](tmp_path / "train.csv", ROWS * 2)
    after = find_texts(TextOptions(path=tmp_path, test_share=0.5))
    assert (before.sizes, after.sizes) == ((2, 2), (4, 4))
    assert before.train.identity != after.train.identity
