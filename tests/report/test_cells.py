"""Cells of tables: what a stranger wrote in a name is neither a command of LaTeX nor a formula of a spreadsheet."""

import csv
import io

import pytest

from fedsim.report.cells import as_csv, csv_cell, tabular
from fedsim.report.run_tables import Sheet

HOSTILE = "a$b{c}^d~e\\input{/etc/passwd}#%&_\n\\end{tabular}\r\x0c\x1b"


def test_every_command_of_latex_is_escaped():
    row = tabular(["x"], [[HOSTILE]]).splitlines()[4]
    assert row.startswith(
        r"a\$b\{c\}\textasciicircum{}d\textasciitilde{}e\textbackslash{}input\{/etc/passwd\}\#\%\&\_ "
    )
    assert row.rstrip(" \\").endswith(r"\textbackslash{}end\{tabular\}")
    assert tabular(["x"], [[HOSTILE]]).count("\n") == 7, "a line a row"


def test_what_the_tables_write_themselves_stays():
    text = tabular(["p (Holm)"], [["0.8 ± 0.1"], ["+0.1 [-0.1, +0.3] − b"], ["–"], ["0.01*"], ["[a]"]])
    assert r"0.8 $\pm$ 0.1 \\" in text
    assert r"+0.1 [-0.1, +0.3] $-$ b \\" in text
    assert r"-- \\" in text
    assert r"0.01$^*$ \\" in text
    assert r"{[}a] \\" in text


def test_a_remark_cannot_leave_its_comment():
    text = tabular(["x"], [["y"]], ["one\n\\input{x}\u2028\\input{y}\x0b\\input{z}"])
    assert text.splitlines()[0].startswith("% one \\input{x}")
    assert sum("input" in line for line in text.splitlines()) == 1


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", " =1+1", "\t=1", "\r\n=1", "--1"])
def test_a_text_that_a_spreadsheet_would_compute_is_text(text):
    assert csv_cell(text) == f"'{text.strip()}"


@pytest.mark.parametrize(
    "cell", ["-0.5", "+3", "-1e-05", "-inf", "nan", -0.5, -3, None, "", "accuracy", "a-b", "–", "a=b"]
)
def test_numbers_and_plain_texts_stay_as_they_are(cell):
    assert csv_cell(cell) is cell or csv_cell(cell) == cell


def test_a_csv_has_a_line_for_each_row():
    text = as_csv([["a\nb", -1.5, 'x,"y"'], ["=1", None, 2]])
    assert text.splitlines() == ['a b,-1.5,"x,""y"""', "'=1,,2"]
    assert next(csv.reader(io.StringIO(text))) == ["a b", "-1.5", 'x,"y"']


def test_a_sheet_is_saved_escaped(tmp_path):
    Sheet("s", ["=head", "x"], [["@group", -0.25], ["$g_1$", 3]]).save(tmp_path)
    assert (tmp_path / "s.csv").read_text().splitlines() == ["'=head,x", "'@group,-0.25", "$g_1$,3"]
    assert r"\$g\_1\$ & 3 \\" in (tmp_path / "s.tex").read_text()
