"""RESULTS.md: a table's section from its kept cells, and the first screen from all tables' verdicts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gates import Gate, gate_table, read_gates, verdict
from kept import Cell
from results import markdown, write

from fedsim.report.paired import Difference, mean_and_sd

if TYPE_CHECKING:
    from tables import Table

GATES = Path(__file__).parent / "gates.toml"
COLUMNS = ("row", "seeds", "mean", "p10", "worst", "steps", "MB up", "MB down", "s")
FACTS = ("K", "ARI", "routed")
"""Facts that are shown as columns where a row has them: means over seeds."""
Judged = Sequence[tuple[Gate, Difference | None]]


def write_pages(tables: Mapping[str, "Table"], everything: Mapping[str, "Table"], path: Path | None) -> None:
    """Print the tables and write them, and the first screen, to RESULTS.md; all in a file of their own where named."""
    sections = {name: section(table) for name, table in tables.items()}
    screen = first_screen(everything)
    for text in (*sections.values(), screen):
        print(text + "\n")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join([screen, *sections.values()]) + "\n")
        return
    for name, text in sections.items():
        write(name, text, f"{title_of(name)}: {tables[name].setting.title}")
    write("summary", screen)


def title_of(name: str) -> str:
    """Return what a table is called: D1, Curves."""
    return name.capitalize()


def judged(table: "Table") -> tuple[Judged, tuple[int, ...]]:
    """Return what a table's cells say of its gates, and when it is judged; of smoke size with two seeds."""
    gates = read_gates(GATES, table.name)
    looks = (2,) if table.options.is_smoke else gates.looks
    if table.options.is_smoke:
        gates = type(gates)(
            tuple(gate for gate in gates.gates if gate.better in table.setting.rows), looks, gates.margin
        )
    return gates.judged(table.cell, table.seeds), looks


def section(table: "Table") -> str:
    """Return a table and its verdicts in markdown, with the command, where and how long it ran."""
    cells = {row: [c for seed in table.seeds if (c := table.cell(row, seed))] for row in table.setting.rows}
    found, looks = judged(table)
    own = [cell for row, of_row in cells.items() if row not in table.setting.same for cell in of_row]
    rows = [line(name, of_row) for name, of_row in cells.items()]
    return "\n\n".join([
        provenance(table, own),
        markdown((*COLUMNS, *FACTS), [row for row in rows if row]) if own else "No cell has been run yet.",
        gate_table(found, looks),
        how(table, looks),
    ])  # fmt: skip


def provenance(table: "Table", cells: Sequence[Cell]) -> str:
    """Return the command, how much of the table is there, and on what it ran for how long."""
    n_all = table.setting.seeds * (len(table.setting.rows) - len(table.setting.same))
    command = f"`make reproduce TABLE={table.name}`"
    if not cells:
        return f"{command} — none of {n_all} cells."
    machines = "; ".join(sorted({cell.machine for cell in cells}))
    versions = [len({cell.code for cell in cells if cell.row == row}) for row in table.setting.rows]
    by_code = " Not all cells of a row were run by the same code (column code)." if max(versions) > 1 else ""
    minutes = sum(cell.seconds for cell in cells) / 60
    return f"{command} — {len(cells)} of {n_all} cells, {minutes:.0f} minutes in all; {machines}.{by_code}"


def line(name: str, cells: Sequence[Cell]) -> list[str]:
    """Return a row's line, empty where nothing of it is there."""
    if not cells:
        return []
    scores = [cell.of("global") for cell in cells]
    found = [name, str(len(cells)), spread([float(s.mean()) for s in scores])]
    found += [f"{np.mean([np.percentile(s, 10) for s in scores]):.3f}", f"{np.mean([s.min() for s in scores]):.3f}"]
    found += [mean_of(cells, "steps", ".0f"), mean_of(cells, "MB up", ".2f"), mean_of(cells, "MB down", ".2f")]
    found.append(f"{np.mean([cell.seconds for cell in cells]):.0f}")
    return [*found, mean_of(cells, "K", ".1f"), mean_of(cells, "ARI", ".2f"), mean_of(cells, "routed", ".0%")]


def mean_of(cells: Sequence[Cell], fact: str, form: str) -> str:
    """Return the mean of a fact over the cells that have it, – where none has."""
    values: list[Any] = [cell.facts[fact] for cell in cells if fact in cell.facts]
    return format(float(np.mean(values)), form) if values else "–"


def spread(means: Sequence[float]) -> str:
    """Return mean ± deviation over seeds."""
    mean, sd = mean_and_sd(means)
    return f"{mean:.3f} ± {sd:.3f}" if len(means) > 1 else f"{mean:.3f}"


def how(table: "Table", looks: Sequence[int]) -> str:
    """Return in words how the orderings were judged."""
    at = ", ".join(map(str, looks))
    return (
        "Accuracy of seen clients after the last round; ± is over seeds; steps: local steps of a client that takes "
        f"part in all rounds. The seed is the unit: paired t-tests on the means of seeds, judged after {at} seeds, "
        "Holm over the table's orderings; the interval is that of the seeds shown, uncorrected."
    )


def first_screen(tables: Mapping[str, "Table"]) -> str:
    """Return for each table what holds, what does not, what makes no difference, and how much is open."""
    lines = []
    for name, table in tables.items():
        found, looks = judged(table)
        by_word: dict[str, list[str]] = {}
        for gate, difference in found:
            word = verdict(difference, looks)
            by_word.setdefault(word.split(" (")[0].split(":")[0].replace("*", ""), []).append(gate.claim)
        told = [f"{word}: {', '.join(by_word.pop(word))}" for word in ("holds", "does not hold", "no difference")
                if word in by_word]  # fmt: skip
        told += [f"{word}: {len(claims)} of {len(found)}" for word, claims in by_word.items()]
        lines.append(f"- **{title_of(name)}**, {table.setting.title}: {'; '.join(told)}.")
    return "\n".join(lines)
