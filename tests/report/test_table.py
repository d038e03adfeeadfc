"""What the terminal shows at the end: no number is cut at any width, and the last lines say where the rest is."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from fedsim.report.comparison import PRINTED
from fedsim.report.table import print_end, print_table

ROWS = [
    ["hilora-of-a-long-name", "0.612 ± 0.011", "0.433", "0.387 ± 0.020", "12.34", "+0.041 [−0.002, +0.084]", "better"],
    ["fedit", "0.571 ± 0.009", "0.401", "–", "1,024.00", "–", "–"],
]  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_no_number_is_cut(width):
    screen = io.StringIO()
    print_table(Console(file=screen, width=width), PRINTED, ROWS)
    text = screen.getvalue()
    assert "…" not in text
    assert all(cell in text for row in ROWS for cell in row)
    assert all(column in text for column in PRINTED[1:])
    assert max(map(len, text.splitlines())) <= width


def test_where_it_is_narrow_each_method_is_a_block():
    screen = io.StringIO()
    print_table(Console(file=screen, width=60), ("method", "mean", "p10"), [["x" * 50, "0.612", "0.433"]])
    assert screen.getvalue() == f"{'x' * 50}\n  mean  0.612\n  p10   0.433\n"


def test_the_last_lines_name_the_folder_the_report_and_the_digest(capsys):
    screen = io.StringIO()
    print_end(Console(file=screen, width=40), Path("runs/a folder of a long name that is not broken"), "abc")
    folder = "runs/a folder of a long name that is not broken"
    assert screen.getvalue() == f"results  {folder}\nreport   python -m fedsim.report '{folder}'\n"
    assert capsys.readouterr().out == "digest abc\n"
