"""README, CONTRIBUTING and the pages of docs/ tell the truth: links, files, commands and scripts are right."""

import csv
import importlib.metadata
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import tyro
from conftest import ROOT
from runs import SMALL, environment, load, python, run

import fedsim
from fedsim.data.instructions.generation_task import Generation
from fedsim.data.task import Classification, ClassificationF1
from fedsim.report.comparison import Comparison, table_csv
from fedsim.report.summary import Result

sys.path.insert(0, str(ROOT / "docs"))
import generate

README = (ROOT / "README.md").read_text()
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("[0-9]*.py"))
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *TUTORIALS]


def text_of(path: Path) -> str:
    """A page in Markdown; of a tutorial its cells, with their code in fences."""
    if path.suffix == ".md":
        return path.read_text()
    return "\n\n".join(
        body if is_text else f"```python\n{body}\n```" for is_text, body in generate.cells(path.read_text())
    )


def library_script() -> str:
    """The one script in Python of the page about the library."""
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/guide/library.md").read_text(), flags=re.DOTALL)
    return script


@pytest.mark.slow
def test_the_library_script_runs_as_printed(tmp_path):
    script = library_script()
    assert len(script.splitlines()) <= 40
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"0\.\d+ [0-9a-f]{64}", done.stdout.splitlines()[-1])
    assert (tmp_path / "runs" / "mine" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path: Path, tmp_path: Path):
    if generate.outputs_of(path).exists():
        return  # `make docs` has run it with fedsim as it is, and would have failed with it
    done = subprocess.run([sys.executable, path], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_tutorials_page_shows_behind_each_cell_what_it_printed_and_drew(tmp_path: Path, monkeypatch):
    for name in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(name, reason=f"{name} is not installed (pip install -e '.[docs]')")
    tutorial = (
        "# %% [markdown]\n# # A title\n\n# %%\nprint('one')\nprint('two')\n\n# %%\n"
        "from fedsim.report.drawing import Picture\nPicture('<svg/>', 'name', 'Title', 'a line that rises')\n\n"
        "# %%\nx = 1\n"
    )
    (tmp_path / "docs/tutorials").mkdir(parents=True)
    (tmp_path / "docs/tutorials/101_first_run.py").write_text(tutorial)
    monkeypatch.setattr(generate, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "state_of_fedsim", lambda: "as it is")
    generate.tutorials(tmp_path)
    page = (tmp_path / "101_first_run.md").read_text()
    assert page.startswith("# A title\n\n*This page is a file that runs")
    assert "```text\none\ntwo\n```\n" in page
    assert "'a line that rises')\n```\n\n![a line that rises](101_first_run-1.svg)\n\n```python\nx = 1\n```\n" in page
    assert (tmp_path / "101_first_run-1.svg").read_text() == "<svg/>"
    kept = generate.outputs_of(tmp_path / "docs/tutorials/101_first_run.py")
    written = kept.stat().st_mtime_ns
    generate.tutorials(tmp_path)
    assert kept.stat().st_mtime_ns == written, "it runs once"
    assert '"one\\n' in (tmp_path / "101_first_run.ipynb").read_text()


@pytest.mark.slow
def test_the_pictures_of_the_pages_are_those_that_the_demos_commands_make(tmp_path: Path):
    out = tmp_path / "demo"
    for command in (
        python("recipes/quickstart.py", *SMALL, "--rounds", 2, "--out", out),
        [sys.executable, "-m", "fedsim.report", str(out)],
    ):
        done = run(command, variables={**environment(), "FEDSIM_FIGURES": "1"})
        assert done.returncode == 0, done.stdout + done.stderr
    assert "<h1>fedit, hilora, local on the embedded data</h1>" in (out / "report.html").read_text()
    made = {path.name for path in (out / "report-files").glob("*.svg")}
    of_demo = [name.removeprefix("demo-") for name in generate.FIGURES if name.startswith("demo-")]
    assert len(of_demo) == 6
    assert [name for name in of_demo if not any(file.endswith(name) for file in made)] == []


# what is said of the code


def test_readme_is_short_and_shows_the_demo():
    assert len(README.splitlines()) <= 150
    assert (ROOT / "docs/images/report.png").stat().st_size < 300_000
    for name in fedsim.methods.__all__:
        assert (
            f"fedsim/methods/{sys.modules[getattr(fedsim, name).__module__].__name__.rpartition('.')[2]}.py" in README
        )


def test_every_file_of_the_tree_exists_and_every_module_is_in_the_tree():
    tree = (ROOT / "CONTRIBUTING.md").read_text().split("```\nfedsim/\n")[1].split("```")[0]
    inside = [line.split()[0] for line in tree.splitlines() if line.startswith("  ")]
    assert all((ROOT / "fedsim" / name).exists() for name in inside)
    there = {path.name + ("/" if path.is_dir() else "") for path in (ROOT / "fedsim").iterdir()}
    assert there - {"__init__.py", "__pycache__/"} == set(inside)


def test_every_installation_hint_installs_from_the_checkout_and_not_a_namesake_from_the_index():
    texts = [
        *PAGES,
        *(
            path
            for top in ("fedsim", "recipes", "benchmarks", "slurm")
            for path in (ROOT / top).rglob("*")
            if path.suffix in (".py", ".md", ".sbatch")
        ),
    ]
    hints = [(path.name, hint) for path in texts for hint in re.findall(r"pip install ([^`\n]*)", path.read_text())]
    assert ("loggers.py", "-e '.[wandb]'") in hints
    assert [hint for hint in hints if re.search(r"\bfedsim\b", hint[1])] == []
    assert 'name = "fedsim-lora"' in (ROOT / "pyproject.toml").read_text()


# links


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and zensical make them."""
    headings = re.findall(r"(?m)^#+ (.+?)\s*$", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    plain = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).lower() for heading in headings)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip()) for heading in plain}


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def built_from(target: Path) -> Path:
    """What a page that docs/generate.py makes is made of; another file is itself."""
    inside = target.relative_to(ROOT / "docs").as_posix() if target.is_relative_to(ROOT / "docs") else ""
    if inside in generate.REPOSITORY_PAGES:
        return ROOT / generate.REPOSITORY_PAGES[inside]
    is_notebook = target.suffix == ".ipynb" and target.stem in generate.NOTEBOOKS
    is_page = target.parent.name == "tutorials" and target.suffix == ".md" and not target.exists()
    return target.with_suffix(".py") if is_notebook or is_page else target


def test_every_internal_link_and_anchor_resolves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    lost, count = [], 0
    for page in PAGES:
        text = generate.linked(text_of(page), "glossary.md") if page.suffix == ".py" else text_of(page)
        for link in links(text):
            where, _, anchor = link.partition("#")
            if re.match(r"\w+:", link):
                continue
            base = ROOT / "docs" if link.startswith("glossary.md#") else page.parent
            target = built_from((base / where).resolve() if where else page)
            count += 1
            known = anchors(generate.filled(text_of(target))) if anchor and target.exists() else set()
            if not target.exists() or (anchor and anchor not in known):
                lost.append((page.name, link))
    assert lost == []
    assert count > 100


def test_the_first_use_of_a_term_is_linked_and_nothing_else_is_touched():
    text = "# A client\n\nA client has `client` and [client](x.md), a [site](y.md).\n\n```\nclient\n```\n\nClients.\n"
    assert generate.linked("of capabilities", "g.md") == "of [capabilities](g.md#capability)"
    found = generate.linked(text, "glossary.md")
    assert found == text.replace("A client has", "A [client](glossary.md#client) has", 1)
    assert re.sub(r"\[([^\]]*)\]\(glossary.md#[^)]*\)", r"\1", found) == text


# what the code knows


def test_every_option_of_every_part_and_every_method_is_listed_with_what_it_is():
    lines = [*generate.options().splitlines(), *generate.methods().splitlines()]
    rows = [line for line in lines if line.startswith("| `--")]
    assert len(rows) > 150
    assert [row for row in rows if row.endswith("|  |")] == []
    assert any(row.startswith("| `--data.top-classes` | `none` | Keep at most") for row in rows)
    assert any(row.startswith("| `--method.gamma-c` | `0.1` | γ_c") for row in rows)


def test_every_column_that_a_run_or_a_comparison_writes_has_a_meaning(tmp_path: Path):
    text = generate.columns()
    for name in ("global.weighted_mean", "simulated_seconds", "clusters.ari", "stage.leaf.p10", "bytes_down"):
        assert f"| `{name}` | " in text
    for task in (Classification(), ClassificationF1(2), Generation):
        assert [name for name in task.columns if f"| `{name}` | " not in text] == []
        assert [name for name in task.pooled if f"| `global.{name}` | " not in text] == []
    compared = Comparison(tmp_path, (0,), {"a": [Result(tmp_path, {"global.mean": 0.5}, "")]}, "")
    vars(compared)["differences"] = {}
    (header, *_) = csv.reader(table_csv(compared).splitlines())
    assert [name for name in header if f"| `{name}` | " not in text] == []
    with pytest.raises(ValueError, match="empty"):
        generate.meaning("nobody.knows")


# commands


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every shell command, without variables that are set before it and comments behind it."""
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", text_of(page), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for part in " ".join(shlex.split(line, comments=True) and [line.split("  #")[0]]).split("&&"):
                    words = shlex.split(part, comments=True)
                    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                        words = words[1:]
                    if words:
                        yield page.name, words


def check(words: list[str]) -> None:
    """Parse a command as the program would that it names; raises SystemExit, ValueError or AssertionError."""
    program, arguments = Path(words[0]).name, words[1:]
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        variables = dict(word.split("=", 1) for word in arguments if "=" in word)
        for target in (word for word in arguments if "=" not in word):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
        if "RECIPE" in variables:
            check(["python", variables["RECIPE"], *shlex.split(variables.get("ARGS", ""))])
    elif program == "fabric":
        (entry,) = importlib.metadata.entry_points(group="console_scripts", name="fabric")
        context = entry.load().commands["run"].make_context("run", arguments[1:])
        check(["python", context.params["script"], *context.params["script_args"]])
    elif program == "sbatch":
        script = next(index for index, word in enumerate(arguments) if word.endswith(".sbatch"))
        assert (ROOT / arguments[script]).exists()
        check(["fabric", "run", *arguments[script + 1 :]])
    elif program == "python" and arguments[0] == "-m":
        if arguments[1].startswith("fedsim."):
            kind = {"fedsim.report": "fedsim.report.__main__.ReportOptions", "fedsim.export": "fedsim.export.Options"}
            tyro.cli(generate.read(kind[arguments[1]]), args=arguments[2:])
        else:
            assert arguments[1] in ("venv", "pytest"), arguments
    elif program == "python":
        assert (ROOT / arguments[0]).exists(), arguments[0]
        if arguments[0].startswith("recipes/") and "--help" not in arguments:
            module = load(Path(arguments[0]).name)
            kinds = [k for k in vars(module).values() if isinstance(k, type) and issubclass(k, fedsim.RunOptions)]
            (kind,) = [k for k in kinds if k.__module__.startswith("recipe_")]
            if hasattr(module, "recipe_type"):  # which depends on the command line
                with mock.patch.object(sys, "argv", arguments):
                    kind = module.recipe_type()
            tyro.cli(kind, default=kind(), args=arguments[1:])
    else:
        assert program in ("pip", "hf", "docker", "scancel"), program


def test_every_shell_command_of_the_pages_is_one_that_its_program_takes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    wrong, count = [], 0
    for page, words in commands():
        count += 1
        try:
            check(words)
        except BaseException as error:
            wrong.append((page, " ".join(words), repr(error)))
    assert wrong == []
    assert count > 50
    with pytest.raises(SystemExit):
        check(["python", "recipes/quickstart.py", "--no-such-option", "1"])
    with pytest.raises(AssertionError, match="nothing"):
        check(["make", "nothing"])


# the site


def built_site(tmp_path: Path) -> Path:
    """The site that `make docs` has built, strictly, where nothing has changed since; else one without outputs."""
    made = ROOT / "site" / "index.html"
    tops = [ROOT / "zensical.toml", *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*"), *(ROOT / "fedsim").rglob("*.py")]
    if made.exists() and made.stat().st_mtime > max(path.stat().st_mtime for path in tops if path.is_file()):
        return made.parent
    config = (ROOT / "zensical.toml").read_text().replace('"build/docs"', '"docs"').replace('["."]', f'["{ROOT}"]')
    (tmp_path / "zensical.toml").write_text(config)
    generated = [ROOT / "docs/generate.py", tmp_path / "docs", "--without-outputs"]
    for command in (generated, ["-m", "zensical", "build", "--strict"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return tmp_path / "site"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_its_notebooks_are_made(tmp_path: Path):
    for name in ("zensical", "mkdocstrings", "jupytext"):
        pytest.importorskip(name, reason=f"{name} is not installed (pip install -e '.[docs]')")
    site = built_site(tmp_path)
    assert {path.stem for path in (site / "tutorials").glob("*.ipynb")} == set(generate.NOTEBOOKS)
    pages = [path for path in site.rglob("*.html") if path.name != "404.html"]
    assert len(pages) >= 35
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img)[^>]* (?:src|href)=\"?(https?://[^\" >]+)", page.read_text())
        assert loaded == [], "nothing is loaded from elsewhere"
        assert "<!-- generated" not in page.read_text()
