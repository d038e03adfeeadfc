"""Known data sets in the files that their authors give out: every one is read from a miniature in its own layout."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsim.data.known import TEXT_SETS
from fedsim.data.text_files import OWN_FILES
from fedsim.data.texts import TextOptions, find_texts

pytestmark = pytest.mark.usefixtures("own_cache")


def zhang(*rows: str) -> Callable[[Path], None]:
    """The layout of Zhang et al. (2015): csv without a header, every field in quotes, quotes doubled."""

    def write(folder: Path) -> None:
        (folder / "classes.txt").write_text("names\n")
        (folder / "train.csv").write_text("\n".join(rows) + "\n")
        (folder / "test.csv").write_text(rows[-1] + "\n")

    return write


def glue(folder: str, *rows: str, tests: tuple[str, ...] = ("dev",)) -> Callable[[Path], None]:
    """The layout of GLUE: tsv, in which a quote is nothing special. The first row is the header but for CoLA."""

    def write(top: Path) -> None:
        (top / folder).mkdir()
        (top / folder / "train.tsv").write_text("\n".join(rows) + "\n")
        for test in tests:
            head = [] if folder == "CoLA" else [rows[0]]
            (top / folder / f"{test}.tsv").write_text("\n".join([*head, rows[-1]]) + "\n")
        (top / folder / "test.tsv").write_text("index\tsentence\n0\tsecret\n")

    return write


def folders(train: str, test: str, texts: dict[str, str], encoding: str = "utf-8") -> Callable[[Path], None]:
    def write(top: Path) -> None:
        for split in (train, test):
            for name, text in texts.items():
                (top / split / name).mkdir(parents=True)
                (top / split / name / "100_1").write_text(text, encoding=encoding)
        (top / train / "unsup").mkdir() if "pos" in texts else None
        (top / "README").write_text("notes")

    return write


def lines(top: Path) -> None:
    for name in ("train_5500.label", "TREC_10.label"):
        rows = ["DESC:manner How did serfdom develop ?", "ABBR:exp What is caf\xe9 ?"]
        (top / name).write_text("\n".join(rows) + "\n", encoding="latin-1")


MNLI = "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence1\tsentence2\tlabel1\tgold_label"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
LAYOUTS: dict[str, tuple[Callable[[Path], None], list[tuple[str, ...]], list[int], int]] = {
    "agnews": (
        zhang('"3","Fears for ""T N""","Unions, they say"', '"4","The Race","second\\team"'),
        [('Fears for "T N" Unions, they say',), ("The Race second\\team",)],
        [2, 3],
        4,
    ),
    "dbpedia": (
        zhang('1,"E. D. Abbott Ltd"," Abbott of Farnham"', '14,"A book"," It is"'),
        [("E. D. Abbott Ltd", " Abbott of Farnham"), ("A book", " It is")],
        [0, 13],
        14,
    ),
    "yahoo": (
        zhang('"5","why doesn\'t it?","","answer\\nmore"', '"10","who?","this, that","he"'),
        [("why doesn't it?", ""), ("who?", "this, that")],
        [4, 9],
        10,
    ),
    "imdb": (
        folders("train", "test", {"pos": "good\nfilm", "neg": "bad"}),
        [("bad",), ("good\nfilm",)],
        [0, 1],
        2,
    ),
    "20newsgroups": (
        folders("20news-bydate-train", "20news-bydate-test", {"alt.atheism": "From: é", "sci.med": "Hi"}, "latin-1"),
        [("From: é",), ("Hi",)],
        [0, 1],
        2,
    ),
    "trec": (lines, [("How did serfdom develop ?",), ("What is café ?",)], [2, 0], 6),
    "cola": (
        glue("CoLA", 'gj04\t1\t\tThe "so-called book.', "gj04\t0\t*\tBook the red."),
        [('The "so-called book.',), ("Book the red.",)],
        [1, 0],
        2,
    ),
    "sst2": (
        glue("SST-2", "sentence\tlabel", 'hide new " secretions \t0', "fine \t1"),
        [('hide new " secretions ',), ("fine ",)],
        [0, 1],
        2,
    ),
    "mrpc": (
        glue(
            "MRPC",
            "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
            '1\t70\t71\tHe said " so .\tSo he said .',
            "0\t72\t73\tYes\tNo",
        ),
        [('He said " so .', "So he said ."), ("Yes", "No")],
        [1, 0],
        2,
    ),
    "qqp": (
        glue("QQP", QQP, "0\t1\t2\tWhy?\tHow?\t0", "1\t3\t4\tbroken", "2\t5\t6\tA\tB\t1"),
        [("Why?", "How?"), ("A", "B")],
        [0, 1],
        2,
    ),
    "qnli": (
        glue(
            "QNLI", "index\tquestion\tsentence\tlabel", "0\tWhen?\tIn May.\tentailment", "1\tWho?\tX.\tnot_entailment"
        ),
        [("When?", "In May."), ("Who?", "X.")],
        [0, 1],
        2,
    ),
    "rte": (
        glue("RTE", "index\tsentence1\tsentence2\tlabel", "0\ta\tb\tnot_entailment", "1\tc\td\tentailment"),
        [("a", "b"), ("c", "d")],
        [1, 0],
        2,
    ),
    "mnli": (
        glue(
            "MNLI",
            MNLI,
            "0\t1\t1n\tfiction\t( x )\tOne.\tTwo.\tneutral\tcontradiction",
            "1\t1\t1n\tfiction\t( x )\tThree.\tFour.\tneutral\tneutral",
            tests=("dev_matched", "dev_mismatched"),
        ),
        [("One.", "Two."), ("Three.", "Four.")],
        [2, 1],
        3,
    ),
}


def test_every_set_of_texts_has_a_layout_of_its_own_but_ledgar():
    assert OWN_FILES.keys() == LAYOUTS.keys() == TEXT_SETS.keys() - {"ledgar"}


@pytest.mark.parametrize("task", LAYOUTS)
def test_texts_are_read_from_the_authors_own_files_with_the_columns_and_numbers_of_the_hub(tmp_path: Path, task: str):
    write, texts, labels, n_classes = LAYOUTS[task]
    (tmp_path / "unpacked").mkdir()
    write(tmp_path / "unpacked")
    found = find_texts(TextOptions(task=task, path=tmp_path))
    assert [item for _, item in found.train.read(np.arange(len(texts)))] == texts
    assert (found.train.targets.tolist(), found.n_classes) == (labels, n_classes)
    last = len(found.test.targets) - 1
    assert [item for _, item in found.test.read(np.array([last]))] == texts[-1:]
    assert found.test.targets[last] == labels[-1]
    assert found.class_names[labels[0]] != found.class_names[labels[1]]


def test_a_change_of_the_files_is_noticed(tmp_path: Path):
    lines(tmp_path)
    before = find_texts(TextOptions(task="trec", path=tmp_path)).train.identity
    assert find_texts(TextOptions(task="trec", path=tmp_path)).train.identity == before
    (tmp_path / "train_5500.label").write_text("DESC:manner How did freedom develop ?\n")
    assert find_texts(TextOptions(task="trec", path=tmp_path)).train.identity != before


def test_the_folder_of_one_task_of_glue_may_be_named_itself(tmp_path: Path):
    LAYOUTS["rte"][0](tmp_path)
    assert find_texts(TextOptions(task="rte", path=tmp_path / "RTE")).sizes == (2, 1)


def broken(task: str, name: str, text: bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        LAYOUTS[task][0](folder)
        next(folder.rglob(name)).write_bytes(text)
        return task

    return write


def without(task: str, name: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        LAYOUTS[task][0](folder)
        path = next(folder.rglob(name))
        path.rename(path.with_name("elsewhere"))
        return task

    return write


def whole(task: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        LAYOUTS[task][0](folder)
        return task

    return write


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (broken("agnews", "train.csv", b'"9","a","b"\n'), {}, r"train.csv' has the labels \['9'\], which are none of"),
        (broken("agnews", "train.csv", b'"1","a","b"\n"2","a"\n'), {}, "train.csv' is damaged .* Expected 3 columns"),
        (broken("dbpedia", "train.csv", b""), {}, "train.csv' is damaged or of another format: Empty CSV"),
        (broken("agnews", "train.csv", gzip.compress(b"x" * 99)), {}, "train.csv' (is damaged|has)"),
        (broken("sst2", "train.tsv", b"index\tsentence\n0\tsecret\n"), {}, r"train.tsv' has no columns \['label'\]"),
        (broken("trec", "TREC_10.label", b"WHAT:x y\n"), {}, "TREC_10.label', line 1, is 'WHAT:x y' and not"),
        (without("imdb", "pos"), {}, "lacks texts of some of the classes"),
        (without("qnli", "dev.tsv"), {}, r"has neither parquet files nor 'QNLI/dev.tsv' \(--data.path\); it has"),
        (whole("qnli"), {"test_split": "test"}, "has no split 'test' .* it has train, validation"),
        (whole("qnli"), {"text_columns": ("x",)}, r"has no columns \['x'\] \(--data.text-columns\)"),
        (whole("qnli"), {"label_column": "x"}, r"has no column 'x' \(--data.label-column\)"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path: Path, write, options: dict, message: str):
    task = write(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        find_texts(TextOptions(task=task, path=tmp_path, **options))
    assert "\n" not in str(raised.value)
