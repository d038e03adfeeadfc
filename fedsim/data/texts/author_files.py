"""Known texts in the files that their authors give out: tables (csv, tsv), folders of one text each, lines.

They become tables with the columns and the numbers of classes that the same data have on the hub, so that a run on
either is the same but for the texts' wording.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

Read = tuple[pa.Table, tuple[str, ...]]
"""A split's table, whose columns are the hub's and whose labels are numbers, and the names of its classes."""


@dataclass(frozen=True)
class Delimited:
    """A table for each split. `columns` says which column each of the hub's is, or which ones it joins.

    Without a header columns are f0, f1, … `label` is how the hub calls the column of labels, and which one it is;
    `labels` are what stands there for class 0, 1, …, and `names` what these classes are called.
    """

    files: Mapping[str, str]
    columns: Mapping[str, str | tuple[str, ...]]
    label: tuple[str, str]
    labels: tuple[str, ...]
    names: tuple[str, ...]
    has_header: bool = True
    skips_short_rows: bool = False
    """QQP's own files have a few rows that lack their end; the hub leaves them out too."""

    def read(self, folder: Path, split: str) -> Read:
        """Return a split."""
        path = inside(folder, self.files[split])
        table = self._table(path)
        column, wanted = self.label
        columns = {name: _joined(table, path, of) for name, of in self.columns.items()}
        numbers = {label: number for number, label in enumerate(self.labels)}
        values = _joined(table, path, wanted)
        if strange := sorted(set(values) - numbers.keys()):
            raise ValueError(f"'{path}' has the labels {strange[:5]}, which are none of {list(self.labels)}.")
        return pa.table(columns | {column: [numbers[value] for value in values]}), self.names

    def _table(self, path: Path) -> pa.Table:
        """All columns as text; in tsv files a quote is a letter like any other."""
        is_csv = path.suffix == ".csv"
        skip = pa.csv.ParseOptions(
            delimiter="," if is_csv else "\t",
            quote_char='"' if is_csv else False,
            newlines_in_values=is_csv,
            invalid_row_handler=(lambda row: "skip") if self.skips_short_rows else None,
        )
        read = pa.csv.ReadOptions(autogenerate_column_names=not self.has_header)
        try:
            names = pa.csv.open_csv(path, read_options=read, parse_options=skip).schema.names
            as_text = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
            return pa.csv.read_csv(path, read_options=read, parse_options=skip, convert_options=as_text)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"'{path}' is damaged or of another format: {error}. Fetch it again.") from error


def _joined(table: pa.Table, path: Path, of: str | tuple[str, ...]) -> list[str]:
    """A column, or several side by side with spaces between."""
    names = (of,) if isinstance(of, str) else of
    if absent := [name for name in names if name not in table.column_names]:
        raise ValueError(f"'{path}' has no columns {absent}; it has {table.column_names}.")
    return [" ".join(parts) for parts in zip(*(table.column(name).to_pylist() for name in names), strict=True)]


@dataclass(frozen=True)
class ClassFolders:
    """A folder for each split, in it one for each class, in it a file for each text; other folders are left out."""

    files: Mapping[str, str]
    classes: tuple[str, ...] = ()
    """In the hub's order; by default all that the training folder has, in alphabetical order."""
    encoding: str = "utf-8"

    def read(self, folder: Path, split: str) -> Read:
        """Return a split; its files are in the order of their names."""
        top, train = (inside(folder, self.files[name]) for name in (split, "train"))
        names = self.classes or tuple(sorted(path.name for path in train.iterdir() if path.is_dir()))
        found = [(path, k) for k, name in enumerate(names) for path in sorted((top / name).glob("*")) if path.is_file()]
        if len({label for _, label in found}) < len(names):
            raise ValueError(f"'{top}' lacks texts of some of the classes {list(names)}; unpack it whole.")
        texts = [path.read_text(self.encoding, errors="replace") for path, _ in found]
        return pa.table({"text": texts, "label": [label for _, label in found]}), names


@dataclass(frozen=True)
class LabelledLines:
    """A file for each split, whose lines are `CLASS:kind the text`."""

    files: Mapping[str, str]
    classes: tuple[str, ...]
    column: str
    encoding: str = "latin-1"

    def read(self, folder: Path, split: str) -> Read:
        """Return a split."""
        path = inside(folder, self.files[split])
        texts, labels = [], []
        for number, line in enumerate(path.read_text(self.encoding).splitlines(), 1):
            label, _, text = line.partition(" ")
            name = label.partition(":")[0]
            if name not in self.classes or not text:
                raise ValueError(f"'{path}', line {number}, is '{line[:80]}' and not 'CLASS:kind text'.")
            texts.append(text.strip())
            labels.append(self.classes.index(name))
        return pa.table({"text": texts, self.column: labels}), self.classes


def inside(folder: Path, name: str) -> Path:
    """Return the file or folder of this name, the uppermost one inside `folder`; raises ValueError without one."""
    found = sorted(folder.rglob(name), key=lambda path: (len(path.parts), path))
    if folder.name == Path(name).parent.name:
        found += [path for path in (folder.parent / name,) if path.exists()]
    if not found:
        has = sorted(path.name for path in folder.iterdir())[:8]
        raise ValueError(f"'{folder}' has neither parquet files nor '{name}' (--data.path); it has {has}.")
    return found[0]


def _zhang(columns: Mapping[str, str | tuple[str, ...]], names: str, label: str = "label") -> Delimited:
    """Zhang et al. (2015) give out tables without a header whose first column is the class, from 1."""
    found = tuple(names.split(", "))
    numbers = tuple(str(number) for number in range(1, len(found) + 1))
    return Delimited({"train": "train.csv", "test": "test.csv"}, columns, (label, "f0"), numbers, found, False)


def _glue(
    folder: str, columns: Mapping[str, str], label: str, names: str, labels: tuple[str, ...] = ("0", "1"), **how: bool
) -> Delimited:
    files = {"train": f"{folder}/train.tsv", "validation": f"{folder}/dev.tsv"}
    if folder == "MNLI":
        files |= {f"validation_{kind}": f"{folder}/dev_{kind}.tsv" for kind in ("matched", "mismatched")}
    return Delimited(files, columns, ("label", label), labels, tuple(names.split(", ")), **how)


OwnFiles = Delimited | ClassFolders | LabelledLines
ENTAILS = ("entailment", "not_entailment")
OWN_FILES: Mapping[str, OwnFiles] = {
    "20newsgroups": ClassFolders(
        {"train": "20news-bydate-train", "test": "20news-bydate-test"}, encoding="latin-1"
    ),  # whole posts: the hub's lack headers, footers and what they quote
    "agnews": _zhang({"text": ("f1", "f2")}, "World, Sports, Business, Sci/Tech"),
    "cola": _glue("CoLA", {"sentence": "f3"}, "f1", "unacceptable, acceptable", has_header=False),
    "dbpedia": _zhang(
        {"title": "f1", "content": "f2"},
        "Company, EducationalInstitution, Artist, Athlete, OfficeHolder, MeanOfTransportation, Building, "
        "NaturalPlace, Village, Animal, Plant, Album, Film, WrittenWork",
    ),
    "imdb": ClassFolders({"train": "train", "test": "test"}, ("neg", "pos")),
    "mnli": _glue(
        "MNLI",
        {"premise": "sentence1", "hypothesis": "sentence2"},
        "gold_label",
        "entailment, neutral, contradiction",
        ("entailment", "neutral", "contradiction"),
    ),
    "mrpc": _glue(
        "MRPC", {"sentence1": "#1 String", "sentence2": "#2 String"}, "Quality", "not_equivalent, equivalent"
    ),
    "qnli": _glue("QNLI", {"question": "question", "sentence": "sentence"}, "label", ", ".join(ENTAILS), ENTAILS),
    "qqp": _glue(
        "QQP",
        {"question1": "question1", "question2": "question2"},
        "is_duplicate",
        "not_duplicate, duplicate",
        skips_short_rows=True,
    ),
    "rte": _glue("RTE", {"sentence1": "sentence1", "sentence2": "sentence2"}, "label", ", ".join(ENTAILS), ENTAILS),
    "sst2": _glue("SST-2", {"sentence": "sentence"}, "label", "negative, positive"),
    "trec": LabelledLines(
        {"train": "train_5500.label", "test": "TREC_10.label"},
        ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"),
        "coarse_label",
    ),
    "yahoo": _zhang(
        {"question_title": "f1", "question_content": "f2"},
        "Society & Culture, Science & Mathematics, Health, Education & Reference, Computers & Internet, Sports, "
        "Business & Finance, Entertainment & Music, Family & Relationships, Politics & Government",
        "topic",
    ),
}
"""LEDGAR is not among them: its own file is not the selection of 100 classes that is meant by it."""
