"""Texts as cells of a table in LaTeX or CSV, whoever wrote them: nothing in them is a command or a formula."""

import csv
import io
from collections.abc import Iterable, Sequence

TEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    **{character: f"\\{character}" for character in "%_&#${}"},
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "*": r"$^*$",
}
"""What characters are in LaTeX that are not themselves there."""


def tabular(header: Sequence[str], rows: Sequence[Sequence[str]], remarks: Sequence[str] = ()) -> str:
    """Return texts as a LaTeX tabular (booktabs), under remarks as comments."""
    body = [" & ".join(map(_escaped, row)) + r" \\" for row in rows]
    top = [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", " & ".join(map(_escaped, header)) + r" \\"]
    comments = [f"% {_in_a_line(line)}" for line in remarks]
    return "\n".join([*comments, *top, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escaped(text: str) -> str:
    """A text in LaTeX, in one line; after a line's end, a [ would begin an argument."""
    text = "".join(TEX.get(character, character) for character in _in_a_line(text))
    return f"{{[}}{text[1:]}" if text.startswith("[") else text


def _in_a_line(text: str) -> str:
    """A text without characters that end a line or are not printed."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def as_csv(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as a CSV file, in which no text is a formula."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([csv_cell(cell) for cell in row] for row in rows)
    return text.getvalue()


def csv_cell(cell: object) -> object:
    """Return a cell for a CSV file: a text is one line, and one that a spreadsheet would compute (=, +, -, @) gets a '.

    Numbers stay as they are, also as texts.
    """
    if not isinstance(cell, str):
        return cell
    try:
        float(cell)
    except ValueError:
        cell = _in_a_line(cell)
        return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell
    return cell
