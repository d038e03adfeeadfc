"""What a private run gave away is told wherever its results are: rounds, tables, the page."""

import re

from conftest import TinyAttention, tiny_data

import fedsim
from fedsim.parts.privacy import Privacy
from fedsim.report.page import write_report
from fedsim.report.table import print_result


def test_epsilon_stands_in_lines_of_rounds_tables_and_the_page(tmp_path, capsys):
    methods = {"fedit": fedsim.FedIT(lora_rank=2), "fedsa": fedsim.FedSALoRA(lora_rank=2)}
    common = {"backbone": TinyAttention(), "rounds": 2, "threads": 1, "out": tmp_path / "both"}
    found = fedsim.compare(methods, lambda seed: tiny_data(), privacy=Privacy(clip=0.1, noise_multiplier=2.0), **common)
    spent = found.results["fedit"][0].summary["epsilon"]
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r"round \d/2 ", line)]
    assert [f" ε {spent:.3g} " in line for line in lines] == [False, True] * 2
    header, *rows = (tmp_path / "both" / "comparison.md").read_text().splitlines()
    place = [cell.strip() for cell in header.split("|")].index("ε")
    assert {row.split("|")[place].strip() for row in rows if row.startswith("| fed")} == {f"{spent:.2f}"}
    print_result(found.results["fedit"][0])
    shown = capsys.readouterr().out
    assert f"ε {spent:.3g} at δ 1e-05" in shown
    page = write_report([found.results["fedit"][0].folder], tmp_path / "page.html").read_text()
    assert f"ε {spent:.3g} at δ 1e-05" in page
    assert "ε at δ 1e-05" in page
    assert "ε by round" in page


def test_epsilon_of_samples_stands_beside_that_of_clients(tmp_path, capsys, tiny_run):
    local = fedsim.LocalTraining(batch_size=4, sample_clip=0.5, sample_noise=1.0)
    both = tiny_run(rounds=2, local=local, privacy=Privacy(clip=0.1, noise_multiplier=2.0))
    of_clients, of_samples = both.summary["epsilon"], both.summary["sample_epsilon"]
    assert of_clients != of_samples > 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round 2/2")]
    assert [f"ε {of_clients:.3g} · ε (samples) {of_samples:.3g} ·" in line for line in lines] == [True]
    print_result(both)
    shown = capsys.readouterr().out
    assert f"differential privacy of clients: ε {of_clients:.3g} at δ 1e-05" in shown
    assert f"differential privacy of samples: ε {of_samples:.3g} at δ 1e-05" in shown
    page = write_report([both.folder], tmp_path / "page.html").read_text()
    for title in ("ε (samples) at δ 1e-05", "ε (samples) by round", "ε by round", f"{of_samples:.3g}"):
        assert title in page
    compared = fedsim.compare(
        {"fedit": fedsim.FedIT(lora_rank=2)}, lambda seed: tiny_data(), backbone=TinyAttention(), rounds=2, threads=1,
        local=local, out=tmp_path / "compared",
    )  # fmt: skip
    header, *rows = (compared.folder / "comparison.md").read_text().splitlines()
    place = [cell.strip() for cell in header.split("|")].index("ε (samples)")
    assert [row.split("|")[place].strip() for row in rows if row.startswith("| fedit")] == [f"{of_samples:.2f}"]
    assert "| ε |" not in header


def test_a_run_without_noise_promises_nothing(tiny_run):
    done = tiny_run(rounds=1, privacy=Privacy(clip=0.1, noise_multiplier=0.0))
    assert "epsilon" not in done.summary
    assert (done.folder / "metrics.csv").read_text().splitlines()[1].split(",")[-2:] == ["inf", "1e-05"]
