"""The tables of RESULTS.md: orderings named before the runs, cells kept as text, verdicts from those alone."""

import csv
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import fedsim

needs_data = pytest.mark.skipif(not os.environ.get("FEDSIM_DATA"), reason="FEDSIM_DATA names no folder of data sets")


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def cell(row: str, seed: int, mean: float, **changes):
    """A kept cell of four clients around a mean."""
    import kept

    scores = {"global": {client: mean + 0.001 * client for client in range(4)}}
    made = kept.Cell(row, seed, "s", "d", "c", "some machine", 60.0, "abc", {"steps": 4}, scores)
    return replace(made, **changes)


# orderings


def test_every_ordering_names_two_rows_of_its_table_and_the_last_look_is_at_all_its_seeds():
    from gates import read_gates
    from pages import GATES
    from settings import SETTINGS

    for name, setting in SETTINGS.items():
        gates, rows = read_gates(GATES, name), setting(False).rows
        assert gates.looks[-1] == setting(False).seeds, name
        assert len({(gate.claim) for gate in gates.gates}) == len(gates.gates)
        assert {row for gate in gates.gates for row in (gate.better, gate.worse)} <= rows.keys(), name
        assert {gate.evaluation for gate in gates.gates} <= set(setting(False).evaluations)


def test_a_list_of_orderings_that_cannot_be_judged_is_refused(tmp_path: Path):
    from gates import read_gates

    path = tmp_path / "gates.toml"
    path.write_text("[d1]\nlooks = [4, 2]\ngates = []\n[d2]\nlooks = [4]\ngates = [{ best = 'a', worse = 'b' }]\n")
    with pytest.raises(ValueError, match="looks are"):
        read_gates(path, "d1")
    with pytest.raises(ValueError, match=r"'d2' in .* cannot be read: .*'best'"):
        read_gates(path, "d2")
    with pytest.raises(ValueError, match="no gates of table 'd3'"):
        read_gates(path, "d3")


def test_seeds_count_up_to_the_first_that_is_not_finished_and_only_where_they_test_something():
    from gates import Gate

    cells = {(row, seed): cell(row, seed, 0.5) for row in "ab" for seed in range(5)}
    del cells["b", 3]
    assert len(Gate("a", "b").gaps(lambda *at: cells.get(at), range(5))) == 3
    for seed, groups in enumerate(([1, 1, 2], [1, 1, 1], [1, 3, 3])):
        cells["a", seed] = cell("a", seed, 0.5, facts={"groups": groups})
    assert len(Gate("a", "b", only="groups").gaps(lambda *at: cells.get(at), range(5))) == 2


def test_verdicts_are_those_of_the_differences_and_undecided_ones_say_how_many_seeds_would_do():
    from gates import Gate, Gates, gate_table, verdict

    rng = np.random.default_rng(0)
    shifts = {"better": 0.1, "worse": -0.1, "same": 0.0, "open": 0.02}
    spreads = {"better": 0.01, "worse": 0.01, "same": 0.001, "open": 0.03}
    cells = {("base", seed): cell("base", seed, 0.5) for seed in range(8)}
    for name, shift in shifts.items():
        for seed in range(8):
            cells[name, seed] = cell(name, seed, 0.5 + shift + rng.normal(0, spreads[name]))
    gates = Gates(tuple(Gate(name, "base") for name in (*shifts, "absent")), (4, 8))
    judged = gates.judged(lambda *at: cells.get(at), range(8))
    words = [verdict(found, gates.looks) for _, found in judged]
    assert words[:3] == ["holds", "does **not** hold", "no difference (±0.01)"]
    assert re.fullmatch(r"undecided: \d+ more seeds", words[3])
    assert words[4] == "not yet run"
    assert all(found is None or found.pairs == 5 for _, found in judged), "what is not run yet counts in Holm too"
    text = gate_table(judged, gates.looks)
    assert "| better > base | – | +0.1" in text
    assert text.count("\n") == 6
    early = gates.judged(lambda row, seed: cells.get((row, seed)) if seed < 3 else None, range(8))
    assert verdict(early[0][1], gates.looks) == "undecided: first judged with 4 seeds"


# kept cells


def test_a_cell_is_read_as_it_was_kept(tmp_path: Path):
    from kept import Kept

    table, made = Kept(tmp_path, "t"), cell("a, b", 3, 0.25, facts={"groups": [1, 2]})
    table.add(replace(made, settings=table.hash_of([{"rounds": (3, False)}])))
    again = Kept(tmp_path, "t")
    found = again.get("a, b", 3, again.hash_of([{"rounds": (3, False)}]))
    assert found is not None
    assert found.scores == made.scores
    assert replace(found, settings="s") == made
    assert again.get("a, b", 3, again.hash_of([{"rounds": (4, False)}])) is None
    with pytest.raises(ValueError, match=r"No scores of 'unseen.tuned' are kept for a, b, seed 3"):
        found.of("unseen.tuned")


def test_two_results_of_one_cell_are_told_in_one_message(tmp_path: Path):
    from kept import Kept

    first, second = Kept(tmp_path, "t"), Kept(tmp_path, "t")
    first.add(cell("a", 0, 0.5))
    second.add(cell("a", 0, 0.5))
    Kept(tmp_path, "t")
    second.add(cell("a", 0, 0.52, machine="another machine"))
    with pytest.raises(
        ValueError, match=r"two results of one cell. a, seed 0: 4 of 4 scores differ, by 0.020 .*another"
    ):
        Kept(tmp_path, "t")


@dataclass(frozen=True)
class Before:
    rate: float = 0.1


@dataclass(frozen=True)
class After:
    rate: float = 0.1
    momentum: float = 0.0


def test_an_option_that_fedsim_gained_leaves_cells_there_and_a_changed_one_does_not(tmp_path: Path):
    from kept import Kept, described

    After.__name__ = "Before"
    table = Kept(tmp_path, "t")
    old = table.hash_of([described(Before(), "method")])
    assert table.hash_of([described(After(), "method")]) == old
    assert table.hash_of([described(After(momentum=0.9), "method")]) != old
    assert table.hash_of([described(After(rate=0.2), "method")]) != old


def test_what_a_cell_is_made_with_names_every_option_of_its_method_and_no_path_of_a_model():
    from settings import SETTINGS
    from tables import Options, Table

    table = Table("d4", Options(tables=("d4",)))
    name = table.settings_of("tau-0")
    known = {key: value for part in name.split("+") for key, value in table.kept.known[part].items()}
    assert known["method.tree.tau"] == 0.0
    assert known["data.split.alpha"] is None
    assert "model.name" not in known
    for table in (Table(name, Options(tables=(name,))) for name in SETTINGS):
        assert len({table.settings_of(row) for row in table.setting.rows}) == len(table.setting.rows), table.name


def test_the_code_of_a_method_does_not_count_its_words_or_other_methods():
    from kept import code_of

    assert code_of(fedsim.FedIT) != code_of(fedsim.Local)
    assert code_of(fedsim.FedIT) == code_of(fedsim.FedIT)


def test_an_unknown_table_or_row_is_refused():
    from tables import Options, Table

    with pytest.raises(ValueError, match=r"no table \['d9'\]; there are d1, d2, d3, d4, d5, curves"):
        Options(tables=("d9",))
    with pytest.raises(ValueError, match=r"no row \['hilra'\]; it has hilora, local"):
        Table("d1", Options(tables=("d1",), rows=("hilra",)))
    with pytest.raises(ValueError, match="needs the folder of a text encoder"):
        _ = Table("d4", Options(tables=("d4",))).task


def test_the_tables_of_results_are_those_of_the_kept_cells():
    from pages import first_screen, section
    from settings import SETTINGS
    from tables import Options, Table

    text = (ROOT / "RESULTS.md").read_text()
    tables = {name: Table(name, Options()) for name in SETTINGS}
    for name, table in tables.items():
        assert f"<!-- {name} -->\n{section(table)}\n<!-- /{name} -->" in text, "python benchmarks/tables.py --no-run"
    assert f"<!-- summary -->\n{first_screen(tables)}\n<!-- /summary -->" in text


# runs


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """A text encoder of random weights, with the tokenizer of $FEDSIM_DATA."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = BertTokenizerFast.from_pretrained(Path(os.environ["FEDSIM_DATA"]) / "tokenizers/bert-base-uncased")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", ["d1", "d2", "d3", "d4", "d5", "curves"])
def test_a_table_runs_at_smoke_size_and_its_scores_are_those_of_the_runs(name, tmp_path, encoder, capsys):
    import tables

    options = tables.Options(tables=(name,), size="smoke", out=tmp_path, text_model=encoder)
    assert tables.main(options) == 0
    table = tables.Table(name, options)
    for seed, row in table.chosen():
        cell = table.cell(row, seed)
        with (table.folder(row, seed) / "clients.csv").open(newline="") as file:
            rows = [line for line in csv.DictReader(file) if line["evaluation"] == "global"]
        last = {int(line["client"]): float(line["accuracy"]) for line in rows}
        assert cell.scores["global"] == pytest.approx(last, abs=1e-6)
    text = (tmp_path / "RESULTS.md").read_text()
    assert f"`make reproduce TABLE={name}`" in text
    assert "| ordering | published |" in text
    assert "not yet run" not in text


@pytest.mark.slow
@needs_data
def test_cells_that_are_there_are_not_run_again_and_one_that_comes_out_otherwise_is_noticed(tmp_path, capsys):
    import kept
    import tables

    options = tables.Options(tables=("d3",), size="smoke", rows=("base", "flexlora"), seeds=1, out=tmp_path)
    tables.main(options)
    folder = tmp_path / "d3/seed-0/base"
    folder.rename(tmp_path / "moved")
    tables.main(replace(options, seeds=2))
    assert not folder.exists()
    assert (tmp_path / "d3/seed-1/base/result.json").exists()
    assert tables.main(replace(options, again=True)) == 0, "the same code on the same machine finds the same"
    path = tmp_path / "scores/d3.csv"
    with path.open(newline="") as file:
        lines = [kept.cell_of(line) for line in csv.DictReader(file)]
    path.unlink()
    for line in lines:
        other = {client: score + 0.01 for client, score in line.scores["global"].items()}
        kept.Kept(tmp_path / "scores", "d3").add(
            replace(line, scores={"global": other}) if line.row == "base" else line
        )
    capsys.readouterr()
    assert tables.main(replace(options, again=True, rows=("base",))) == 1
    said = capsys.readouterr().out
    assert said.count("d3 · base, seed 0: 3 of 3 scores differ, by 0.010 at most") == 1
