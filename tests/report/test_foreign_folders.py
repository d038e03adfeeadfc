"""A run folder from a stranger: it is read as it lies there, nothing is written elsewhere, errors are one message."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import TinyAttention, tiny_data

import fedsim
from fedsim.report.__main__ import main
from fedsim.report.page import safe_name, write_report
from fedsim.report.reading import read_run
from fedsim.storage.disk import DEEPEST, check_own_files, own_bytes, parse_json
from fedsim.storage.run_folder import RunFolder, load_checkpoint

READ = ("recipe.json", "metrics.csv", "clients.csv", "timing.csv", "events.jsonl", "result.json", "split.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A finished run of two rounds."""
    out = tmp_path_factory.mktemp("made") / "run"
    local = fedsim.LocalTraining(batch_size=4, learning_rate=1e-2)
    parts = {"method": fedsim.FedIT(lora_rank=2), "backbone": TinyAttention(), "data": tiny_data(), "local": local}
    fedsim.simulate(rounds=2, out=out, threads=1, recipe={"method_name": "fedit", "seed": 0, "rounds": 2}, **parts)
    return out


@pytest.fixture
def folder(made, tmp_path, monkeypatch) -> Path:
    """A copy of it; pages of it have no figures, and are made in a moment."""
    for name in ("draw_run", "draw_several"):
        monkeypatch.setattr(f"fedsim.report.page.{name}", lambda run: ())
    return shutil.copytree(made, tmp_path / "run")


def refusal(capsys, *arguments: object) -> str:
    """The one message with which the command ends."""
    assert main(list(map(str, arguments))) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_file_that_is_no_file_of_its_own_is_named_and_not_read(folder, tmp_path, capsys, name, kind):
    path = folder / name
    path.rename(tmp_path / "secret")
    if kind == "link":
        path.symlink_to(tmp_path / "secret")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    message = refusal(capsys, folder, "--to", tmp_path / "page" / "page.html")
    assert f"'{path}'" in message
    assert "is a link, a pipe, a device or a folder" in message


def test_a_device_is_not_read(tmp_path):
    with pytest.raises(ValueError, match=r"'/dev/zero' is a link, a pipe, a device"):
        own_bytes(Path("/dev/zero"))


def test_the_folder_of_figures_and_tables_is_never_a_link(folder, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    (folder / "report-files").symlink_to(tmp_path / "elsewhere")
    assert f"'{folder / 'report-files'}' is a link" in refusal(capsys, folder)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not (folder / "report.html").exists()


def test_links_in_place_of_pages_and_tables_are_replaced_and_not_written_through(folder, tmp_path, capsys):
    (tmp_path / "precious").write_text("kept")
    (folder / "report-files").mkdir()
    names = ("report.html", "report-files/models-accuracy.csv", "report-files/models-accuracy.tex")
    for name in names:
        (folder / name).symlink_to(tmp_path / "precious")
        (folder / name).with_name(f".{Path(name).name}.partial").symlink_to(tmp_path / "precious")
    assert main([str(folder)]) == 0
    assert (tmp_path / "precious").read_text() == "kept"
    assert not any((folder / name).is_symlink() for name in names)


def test_a_comparison_does_not_lead_elsewhere(folder, tmp_path, capsys):
    (tmp_path / "study" / "seed-0").mkdir(parents=True)
    (tmp_path / "study" / "seed-0" / "fedit").symlink_to(folder)
    assert "fedit' is a link" in refusal(capsys, tmp_path / "study")


def test_a_folder_where_the_page_should_be_is_one_message(folder, capsys):
    (folder / "report.html").mkdir()
    assert "report.html" in refusal(capsys, folder)


def test_a_metrics_name_cannot_lead_a_file_elsewhere(folder, tmp_path):
    name = "../../../escaped"
    table = (folder / "clients.csv").read_text().replace("accuracy", name)
    (folder / "clients.csv").write_text(table)
    result = json.loads((folder / "result.json").read_text()) | {"metric": name}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "report-files" / "models-..").mkdir(parents=True)
    before = {path.name for path in tmp_path.iterdir()}
    write_report([folder], folder / "report.html")
    assert {path.name for path in tmp_path.iterdir()} == before
    written = [path.name for path in (folder / "report-files").iterdir() if path.is_file()]
    assert any(name.startswith("models-") and name.endswith(".csv") for name in written)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.") for name in written)


def test_file_names_are_safe_and_stay_apart():
    assert safe_name("curve-macro_f1.5") == "curve-macro_f1.5"
    unsafe = ["a/b", "a b", "a\0b", "ä", "..", ".a", "x" * 300, "x" * 301, "\ud800"]
    names = [safe_name(text) for text in unsafe]
    assert len(set(names)) == len(names)
    for name in names:
        assert name.isascii()
        assert set("/\0") & set(name) == set()
        assert not name.startswith(".")
        assert len(name) < 100


@pytest.mark.parametrize("name", ["recipe.json", "result.json", "split.json", "events.jsonl"])
@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '{"a":' * 500 + "1" + "}" * 500])
def test_a_json_that_is_nested_very_deep_is_one_message(folder, capsys, name, text):
    (folder / name).write_text(f'{{"x": {text}}}\n')
    message = refusal(capsys, folder)
    assert str(folder / name) in message
    assert f"nested more than {DEEPEST} deep" in message


def test_a_json_is_read_up_to_the_depth_that_is_allowed():
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        parse_json("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1))


def test_a_field_that_is_too_long_for_a_table_is_one_message(folder, capsys):
    with (folder / "metrics.csv").open("a") as file:
        file.write("x" * 200_000 + "\n")
    assert "metrics.csv' is damaged: field larger than field limit" in refusal(capsys, folder)


def test_an_event_is_an_object(folder):
    (folder / "events.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"events.jsonl' is damaged: line 1 holds no object"):
        read_run(folder, "run")


@pytest.mark.parametrize("name", [".lock", "metrics.csv", "events.jsonl", "checkpoints", "tensorboard", "new"])
def test_a_run_does_not_go_on_through_a_link(tmp_path, tiny_run, name):
    """Also one that leads to nothing yet, which appending would make."""
    run = tiny_run("own", rounds=1).folder
    shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"{name}' is a link, a pipe or a device"):
        tiny_run("own", rounds=1, resume=True)
    assert not (tmp_path / "elsewhere").exists()


def test_tables_are_not_appended_to_through_a_link_that_leads_to_nothing(tmp_path):
    (tmp_path / "costs.csv").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link"):
        RunFolder(tmp_path).append("costs.csv", [{"round": 0}])
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_a_checkpoint_is_not_read_through_a_link_or_from_a_pipe(folder, tmp_path, kind):
    path = folder / "checkpoints" / f"round-000002.{kind}"
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"round-000002.safetensors' is damaged: .* is a link"):
        load_checkpoint(folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"round-000002.safetensors' is damaged: .* is a link, a pipe"):
        load_checkpoint(folder)


def test_the_links_that_wandb_keeps_in_its_own_folder_are_left_alone(tmp_path):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "latest-run").symlink_to("run-1")
    check_own_files(tmp_path)
    (tmp_path / "latest").symlink_to("run-1")
    with pytest.raises(ValueError, match="latest' is a link"):
        check_own_files(tmp_path)


WRONG = {
    "result.json": [
        {"global.mean": "text"},
        {"global.mean": [1]},
        {"bytes.up": "many"},
        {"seconds": None},
        {"metric": ["a"], "global.mean": {}},
        {"clusters.count": "x"},
        {"global.best.round": 1e999, "global.best.mean": 1},
        {"rounds": "x", "stage.a.mean": "x", "stage.b.mean": 1},
    ],
    "recipe.json": [{"environment": [1]}, {"environment": {"git": 5}}, {"seed": "x"}, {"seed": [0]}],
    "split.json": [{"domains": 5}, {"domains": [1]}],
}


@pytest.mark.parametrize(("name", "change"), [(name, change) for name, changes in WRONG.items() for change in changes])
def test_what_makes_no_sense_in_a_folder_is_one_message_or_is_shown_and_nothing_half_is_written(
    folder, tmp_path, capsys, name, change
):
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))
    to = tmp_path / "page" / "page.html"
    for runs in ([folder], [folder, shutil.copytree(folder, tmp_path / "other")]):
        status = main([*map(str, runs), "--to", str(to)])
        message = capsys.readouterr().err
        assert status in (0, 2)
        assert to.parent.exists() == (status == 0)
        if status:
            assert str(folder) in message
            assert "Traceback" not in message
        shutil.rmtree(to.parent, ignore_errors=True)


@pytest.mark.parametrize("name", ["metrics.csv", "clients.csv", "timing.csv", "events.jsonl"])
@pytest.mark.parametrize(
    "text", ["a,b\n1,2\n", "round\nx\n", '{"labels": [1], "round": "x"}\n', "\0\n", "\xff,\xfe\n1,2\n"]
)
def test_a_table_of_other_columns_is_one_message_or_is_left_out(folder, capsys, name, text):
    (folder / name).write_bytes(text.encode("latin-1"))
    if main([str(folder)]):
        assert str(folder) in capsys.readouterr().err


def test_no_text_of_a_folder_becomes_a_part_of_the_page(folder, tmp_path):
    evil = "</pre></td></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe |= {"method_name": evil, evil: evil, "environment": {"device": evil, "git": evil, "workers": evil}}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    result = json.loads((folder / "result.json").read_text())
    result |= {f"stage.{evil}.{name}": 0.5 for name in ("mean", "std", "worst", "p10", "weighted_mean")}
    result |= {f"stage.b.{name}": 0.5 for name in ("mean", "std", "worst", "p10", "weighted_mean")}
    (folder / "result.json").write_text(json.dumps(result))
    html = write_report([folder], tmp_path / "page.html").read_text()
    assert html.count("&lt;script&gt;alert(1)") >= 4
    assert "<script" not in html
    assert "<img" not in html
    assert "onerror=" not in re.sub(r"&lt;img src=x onerror=", "", html)
