"""The page about runs: what is on it, that its numbers are the run's, and that it asks nobody for anything."""

import json
import re
import shutil
import time
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import TinyAttention, tiny_data

import fedsim
from fedsim.costs.devices import DeviceProfiles
from fedsim.parts.directions import SubspaceClustering
from fedsim.report.__main__ import main
from fedsim.report.drawing import Picture, inlined, read_picture
from fedsim.report.how_to_read import how_to_read
from fedsim.report.page import write_report
from fedsim.report.reading import find_runs, read_run
from fedsim.report.several import rows_of
from fedsim.storage.run_folder import RunFolder

DOMAINS = [client % 2 for client in range(8)]


class Page(HTMLParser):
    """Elements with their attributes, tables as texts and full numbers, and the text outside of figures."""

    def __init__(self, path: Path):
        super().__init__()
        self.html = path.read_text()
        self.elements: list[tuple[str, dict]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.open: list[str] = []
        self.text = ""
        self.feed(self.html)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.elements.append((tag, found))
        self.open.append(tag)
        if tag == "table":
            self.rows = self.tables[found["id"]] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        elif tag == "data" and "td" in self.open:
            self.rows[-1][-1] = found["value"]

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.text += data if "svg" not in self.open and "style" not in self.open else ""
        if self.open and self.open[-1] in ("th", "td"):  # a <data> has its full number already
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    def titles(self) -> list[str]:
        return re.findall(r"<h2>(.*?)</h2>", self.html)


def simulate(folder: Path, **changes):
    """HiLoRA on eight tiny clients, of which one is unseen."""
    data = tiny_data(8, unseen=(7,))
    arguments = {
        "method": fedsim.HiLoRA(lora_rank=2, clustering=SubspaceClustering(k_min=2)),
        "backbone": TinyAttention(),
        "data": data,
        "rounds": 4,
        "out": folder,
        "local": fedsim.LocalTraining(batch_size=4, learning_rate=1e-2),
        "threads": 1,
    }
    return fedsim.simulate(**(arguments | changes))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """out/seed-S/<method> of HiLoRA and FedIT over two seeds, and out/one, whose clients have domains."""
    out = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        for name, method in (("hilora", {}), ("fedit", {"method": fedsim.FedIT(lora_rank=2)})):
            simulate(
                out / f"study/seed-{seed}" / name,
                seed=seed,
                recipe={"method_name": name, "rounds": 4, "seed": seed},
                **method,
            )
    one = shutil.copytree(out / "study/seed-0/hilora", out / "one")
    with_groups(one)
    return out


def with_groups(folder: Path) -> None:
    """Give clients domains, as some data have them."""
    path = folder / "clients.csv"
    header, *lines = path.read_text().splitlines()
    place = header.split(",").index("domain"), header.split(",").index("client")
    rows = [line.split(",") for line in lines]
    for row in rows:
        row[place[0]] = str(DOMAINS[int(row[place[1]])])
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")


@pytest.fixture(scope="module")
def page(runs) -> Page:
    """The report of one finished run of HiLoRA."""
    return Page(write_report([runs / "one"], runs / "page/one.html"))


@pytest.fixture(scope="module")
def study(runs) -> Page:
    """The report of the comparison's folder, without the curves of every single run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsim.report.page.draw_run", lambda run: ())
        return Page(write_report([runs / "study"], runs / "page/study.html"))


@pytest.fixture
def without_curves(monkeypatch) -> None:
    """Pages that are made in a moment."""
    for name in ("draw_run", "draw_clusters", "draw_several"):
        monkeypatch.setattr(f"fedsim.report.page.{name}", lambda run: ())


def half_done(runs: Path, to: Path) -> Path:
    """A run in its third round, whose last lines are only half written."""
    folder = shutil.copytree(runs / "one", to)
    (folder / "result.json").unlink()
    for name in ("metrics.csv", "clients.csv", "timing.csv", "events.jsonl"):
        path = folder / name
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if not re.match(r'(4|5),|\{"round": [45]', line)]
        torn = [line for line in kept if not re.match(r'3,|\{"round": 3', line)]
        path.write_text("".join(torn) + kept[len(torn)][:9])
    return folder


def test_every_section_that_the_run_has_numbers_for_is_there(page):
    assert page.titles() == ["Curves", "Clients", "Stages", "Clusters", "Cost"]
    assert "finished after 4 rounds" in page.text


def test_every_figure_says_in_words_what_it_shows(page, study):
    for found in (page, study):
        pictures = [attributes for attributes in found.all("svg") if attributes.get("role") == "img"]
        assert len(pictures) == len(found.all("figure")) > 5
        assert all(len(attributes["aria-label"]) > 20 for attributes in pictures)


def test_every_figure_says_how_it_is_read_and_axes_say_what_is_better(page, study):
    for found in (page, study):
        how = re.findall(r'<span class="how">How to read this: (.{20,}?)</span>', found.html)
        assert len(how) == len(found.all("figure"))
    for axis in ("accuracy (higher is better)", "training loss (lower is better)", "down (less is better)"):
        assert axis in page.html
    assert "right of zero is better" in study.html


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("run-tree", ("c* is the number of groups", "τ", "λ is how much a client weighs its own group")),
        ("run-allocations", ("rgd-hla (layers drawn anew by a pattern)", "fim-hla")),
        ("curve-by-bytes", ("against what was spent",)),
        ("curve-accuracy", ("10th percentile", "worst client")),
        ("unheard-of", ("",)),
    ],
)
def test_the_signs_of_a_figure_are_explained_under_it(name, words):
    assert all(word in how_to_read(name) for word in words)
    assert bool(how_to_read(name)) == (name != "unheard-of")


def test_a_page_is_called_by_methods_data_and_day_and_names_its_backbone(runs, tmp_path, without_curves):
    folder = shutil.copytree(runs / "one", tmp_path / "one")
    recipe = json.loads((folder / "recipe.json").read_text())
    for data, model, title, backbone in (
        ({"dataset": "cifar100", "path": "x/y"}, {"name": "vit_tiny"}, "hilora on cifar100", "vit_tiny"),
        ({"dataset": "own", "path": "photos/pets"}, {}, "hilora on pets", "TinyAttention"),
        ({"task": "own", "hub": "someone/texts"}, {}, "hilora on someone/texts", "TinyAttention"),
        ({"clients_per_style": 4}, {}, "hilora on the embedded data", "TinyAttention"),
        (None, None, "hilora", "TinyAttention"),
    ):
        (folder / "recipe.json").write_text(json.dumps(recipe | {"data": data, "model": model}))
        found = Page(write_report([folder], tmp_path / "page.html"))
        day = time.strftime("%Y-%m-%d", time.localtime((folder / "metrics.csv").stat().st_mtime))
        assert f"<h1>{title}</h1>" in found.html
        assert f"backbone {backbone} · run one · {day}" in found.text


def test_the_comparison_begins_with_differences_and_a_method_that_sends_nothing_is_drawn(study, runs, tmp_path):
    comparison = study.html[study.html.index("<h2>Comparison</h2>") : study.html.index("<h2>Curves</h2>")]
    assert comparison.index('id="differences-') < comparison.index('id="comparison"')
    found = rows_of(find_runs([runs / "study"])).comparison().differences
    (label,) = re.findall(r'aria-label="(Differences of methods[^"]*)"', comparison)
    for name, gap in found.items():
        assert f"{name} − {gap.reference} {gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]" in label
    simulate(
        tmp_path / "local", method=fedsim.Local(lora_rank=2), recipe={"method_name": "local", "rounds": 4, "seed": 0}
    )
    page = write_report([tmp_path / "local", runs / "study/seed-0/fedit"], tmp_path / "page.html")
    assert re.search(r'aria-label="bytes sent by the end: [^"]*local 0 MB"', page.read_text())


def test_the_split_stands_before_what_was_found_out(runs, tmp_path):
    folder = shutil.copytree(runs / "one", tmp_path / "one")
    (folder / "split.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="10pt"><path d="M0 0"/></svg>')
    (folder / "tree.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="10pt"><path d="M0 1"/></svg>')
    html = write_report([folder], tmp_path / "page.html").read_text()
    order = [
        "<h2>Split of the data</h2>",
        "Best mean of global models",
        "<h2>Curves</h2>",
        "<h2>Found out by the run</h2>",
    ]
    assert sorted(order, key=html.index) == order


def test_the_page_loads_nothing_and_runs_nothing(page, study):
    for found in (page, study):
        assert not found.all("script")
        assert not found.all("iframe")
        loads = [(tag, a) for tag, attributes in found.elements for a in attributes if a in ("src", "srcset", "data")]
        assert not loads
        for tag, attributes in found.elements:
            places = [attributes[name] for name in ("href", "xlink:href") if name in attributes]
            assert all("://" not in place and (tag == "a" or place.startswith(("#", "data:"))) for place in places)
        assert not re.search(r"url\(\s*[\"']?(?!#)", found.html)
        assert "@import" not in found.html
        assert "default-src 'none'" in found.html


def test_ids_occur_once(page, study):
    for found in (page, study):
        ids = [attributes["id"] for _, attributes in found.elements if attributes.get("id")]
        assert len(ids) == len(set(ids))


def test_the_numbers_in_the_tables_are_the_runs_own(page, runs):
    summary = json.loads((runs / "one/result.json").read_text())
    header, *rows = page.tables["models-accuracy"]
    assert header == ["accuracy", "clients", "mean", "weighted mean", "std", "worst", "p10"]
    keys = {
        "global": "global",
        "personal": "personal",
        "unseen, untuned": "unseen.untuned",
        "unseen, tuned": "unseen.tuned",
    }
    assert [row[0] for row in rows] == list(keys)
    for title, n_clients, *values in rows:
        key = keys[title]
        expected = [summary[f"{key}.{name}"] for name in ("mean", "weighted_mean", "std", "worst", "p10")]
        assert list(map(float, values)) == expected
        assert int(n_clients) == summary[f"{key}.clients"]


def test_figures_and_tables_lie_beside_the_page_as_files(page, runs):
    files = runs / "page/one-files"
    for attributes in page.all("a"):
        assert (runs / "page" / attributes["href"]).is_file()
    names = {path.name for path in files.iterdir()}
    assert {
        "curve-accuracy.pdf",
        "curve-accuracy.svg",
        "clients.pdf",
        "models-accuracy.csv",
        "models-accuracy.tex",
    } <= names
    assert (files / "curve-accuracy.pdf").read_bytes().startswith(b"%PDF")
    assert r"\toprule" in (files / "models-accuracy.tex").read_text()


def test_the_same_run_gives_the_same_page(page, runs, tmp_path):
    assert write_report([runs / "one"], tmp_path / "one.html").read_text() == page.html


def test_clusters_are_counted_against_natural_groups(page, runs):
    _, *rows = page.tables["contingency"]
    event = next(e for e in read_run(runs / "one", "one").events if e.get("labels"))
    for domain, *counts in rows:
        labels = [
            label for c, label in zip(event["clients"], event["labels"], strict=True) if str(DOMAINS[c]) == domain
        ]
        assert list(map(int, counts)) == np.bincount(labels, minlength=len(counts)).tolist()
    assert "similarity of 7 clients" in page.html


def test_it_is_readable_on_a_phone_and_in_the_dark(page):
    assert "width=device-width" in page.html
    assert "prefers-color-scheme: dark" in page.html
    assert "overflow-x: auto" in page.html
    assert "var(--line-0)" in page.html
    assert "currentColor" in page.html
    figures = page.html[page.html.index("<main>") :]
    assert not re.search(r"(?:fill|stroke): ?#(?:0{6}|333333|f{6})", figures)


def test_a_run_that_is_still_going_is_reported_on_up_to_its_last_whole_line(runs, tmp_path):
    folder = half_done(runs, tmp_path / "going")
    found = Page(write_report([folder], folder / "report.html"))
    last = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((folder / "metrics.csv").stat().st_mtime))
    assert f"round 2 of 4, no result yet; last row at {last}" in found.text
    assert "Curves" in found.titles()
    assert "models-accuracy" in found.tables


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "name"),
    [
        (fedsim.FedTreeLoRA(lora_rank=2, warmup_rounds=1), "tree"),
        (fedsim.FedRA(lora_rank=2, capabilities=fedsim.Capabilities(values=(1, 2))), "allocations"),
    ],
)
def test_figures_that_a_run_has_not_come_to_draw_or_to_draw_whole_are_drawn_for_the_page(tmp_path, method, name):
    folder = simulate(tmp_path / "whole", method=method, rounds=3).folder
    drawn = len(Page(write_report([folder], tmp_path / "whole.html")).all("figure"))
    (folder / "result.json").unlink()
    found = Page(write_report([folder], tmp_path / "going.html"))
    assert f"{name.capitalize()} of this run" in found.html
    assert len(found.all("figure")) == drawn
    assert not (folder / f"{name}.svg").exists(), "the folder is the run's"
    (folder / f"{name}.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><path ')
    found = Page(write_report([folder], tmp_path / "torn.html"))
    assert f"{name.capitalize()} of this run" in found.html, "what is not whole is drawn anew"


def test_clusters_stand_against_the_names_of_domains(runs, tmp_path):
    folder = shutil.copytree(runs / "one", tmp_path / "one")
    split = json.loads((folder / "split.json").read_text())
    split["domains"] = {str(domain): f"style {domain}" for domain in DOMAINS}
    (folder / "split.json").write_text(json.dumps(split))
    rows = Page(write_report([folder], tmp_path / "one.html")).html
    assert all(f"style {domain}" in rows for domain in DOMAINS)


@pytest.mark.slow
def test_accuracy_is_drawn_over_bytes_and_where_devices_are_simulated_over_time(runs, page, study, tmp_path):
    names = [figure for figure in ("curve-by-bytes", "curve-by-time") if f'id="{figure}-' in page.html]
    assert names == ["curve-by-bytes"], "no device, no time"
    devices = DeviceProfiles(gflops=1e-6, gflops_sigma=0.5, mbps_down=0.01, mbps_up=0.01, deadline=40)
    for name in ("a", "b"):
        recipe = {"method_name": name, "rounds": 2, "seed": 0}
        method = fedsim.FedIT(lora_rank=2)
        simulate(tmp_path / name, rounds=2, recipe=recipe, devices_profile=devices, method=method)
    run = read_run(tmp_path / "a", "a")
    rows = RunFolder(tmp_path / "a").read_table("metrics.csv")
    seconds = [float(row["simulated_seconds"]) for row in rows]
    assert run.spent("s") == [seconds[0], seconds[0] + seconds[1]]
    assert run.spent("MB")[0] == (int(rows[0]["bytes.up"]) + int(rows[0]["bytes.down"])) / 1e6
    found = Page(write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "page.html"))
    for figure in ("several-bytes", "several-time", "a-curve-by-bytes", "a-curve-by-time"):
        assert f'id="{figure}-' in found.html
    header, first, _ = found.tables["comparison"]
    assert first[header.index("simulated s")] == f"{sum(seconds):.0f}"
    assert "simulated s" not in study.tables["comparison"][0]
    assert run.summary["dropped"] > 0
    assert f"<dt>dropped out</dt><dd>{run.summary['dropped']}</dd>" in found.html


def test_a_run_that_has_only_begun_has_a_page_too(runs, tmp_path):
    folder = tmp_path / "begun"
    folder.mkdir()
    shutil.copy(runs / "one/recipe.json", folder)
    assert "round 0 of 4, no result yet; last written at" in Page(write_report([folder], folder / "report.html")).text


def test_a_comparison_folder_is_several_runs_and_those_of_two_seeds_are_one_row(study, runs):
    header, *rows = study.tables["comparison"]
    assert [row[0] for row in rows] == ["fedit", "hilora"]
    for row in rows:
        means = [
            json.loads((runs / f"study/seed-{seed}" / row[0] / "result.json").read_text())["global.mean"]
            for seed in (0, 1)
        ]
        assert row[1] == f"{np.mean(means):.3f} ± {np.std(means, ddof=1):.3f}"
    assert header[:5] == ["method", "mean", "difference [95 %]", "p (Holm)", "verdict"]
    assert all(row[4] != "–" for row in rows)
    assert len(study.all("details")) >= 4


@pytest.mark.usefixtures("without_curves")
def test_runs_on_other_clients_or_still_going_are_shown_but_not_tested(runs, tmp_path):
    fewer = tmp_path / "fewer"
    simulate(fewer, data=tiny_data(6), recipe={"method_name": "fewer", "rounds": 4, "seed": 0}, rounds=4)
    for other, why in (
        (fewer, "not evaluated on the same clients"),
        (half_done(runs, tmp_path / "going"), "have no result yet"),
    ):
        rows = rows_of(find_runs([runs / "study/seed-0/fedit", other]))
        assert why in rows.untested
        assert not rows.comparison().differences
        found = Page(write_report([runs / "study/seed-0/fedit", other], tmp_path / "page.html"))
        assert why in found.text
        assert len(found.tables["comparison"]) == 3


def test_runs_of_one_name_are_told_apart_by_their_folders(runs):
    names = [run.name for run in find_runs([runs / "study"])]
    assert names == ["seed-0/fedit", "seed-0/hilora", "seed-1/fedit", "seed-1/hilora"]


@pytest.mark.usefixtures("without_curves")
def test_the_figures_that_a_run_left_are_embedded(runs, tmp_path):
    folder = shutil.copytree(runs / "one", tmp_path / "run")
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="10pt"><path id="p" style="fill: #000000"/></svg>'
    (folder / "allocation.svg").write_text(svg)
    (folder / "torn.svg").write_text(svg[:30])
    found = Page(write_report([folder], folder / "report.html"))
    assert f'src="data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}"' in found.html
    assert "Allocation of this run" in found.html
    assert "Torn" not in found.html


FOREIGN = (
    "<script>1</script>",
    '<image href="https://example.org/a.png"/>',
    '<path style="fill:url(http://x.org)"/>',
    '<g onload="x()"/>',
)


@pytest.mark.parametrize("content", FOREIGN)
def test_a_figure_that_would_run_or_load_something_becomes_a_still_image(content):
    shown = inlined(f'<svg xmlns="http://www.w3.org/2000/svg">{content}</svg>', "x", "words")
    assert shown.startswith('<img class="paper" alt="words" src="data:image/svg+xml;base64,')


@pytest.mark.usefixtures("without_curves")
def test_names_and_recipes_cannot_break_the_page(runs, tmp_path):
    folder = shutil.copytree(runs / "one", tmp_path / "<b>&")
    recipe = json.loads((folder / "recipe.json").read_text()) | {"note": "</pre><script>x</script>"}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    found = Page(write_report([folder], tmp_path / "page.html"))
    assert not found.all("script")
    assert not found.all("b")


def test_what_is_no_run_folder_is_one_message_and_nothing_is_written(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    damaged = shutil.copytree(runs / "one", tmp_path / "damaged")
    (damaged / "events.jsonl").write_text('{"round": 0}\n{"rou\n{"round": 2}\n')
    to = tmp_path / "out" / "page.html"
    for folder, why in (
        (tmp_path / "none", "there is no such folder"),
        (tmp_path / "empty", "it has no recipe.json"),
        (damaged, "line 2"),
    ):
        assert main([str(folder), "--to", str(to)]) == 2
        assert why in capsys.readouterr().err
    assert main([str(runs / "one"), "--to", str(tmp_path / "page.txt")]) == 2
    assert main([str(runs / "study"), "--to", str(to), "--reference", "none"]) == 2
    assert "fedit, hilora" in capsys.readouterr().err
    assert not to.parent.exists()


@pytest.mark.usefixtures("without_curves")
def test_without_to_the_page_lies_in_the_folder(runs, tmp_path, capsys):
    folder = shutil.copytree(runs / "one", tmp_path / "run")
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out == f"report {folder / 'report.html'}\n"
    assert (folder / "report.html").exists()


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def chromium():
    """Headless Chromium, as Playwright has it in hand."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright (pip install -e '.[dev]')")
    if CHROMIUM is None:
        pytest.skip("no Chromium here (apt-get install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium):
    """Open a page from its file, and note what its console says."""
    opened = []

    def browse(path: Path, width: int = 1280, scheme: str = "light", **options):
        opened.append(chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options))
        opened[-1].set_default_timeout(120_000)  # milliseconds, on a machine that does other things too
        page, said = opened[-1].new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.goto(path.as_uri())
        return page, said

    yield browse
    for context in opened:
        context.close()


class TestInChromium:
    def test_the_page_is_drawn_without_a_word_on_the_console(self, page, runs, browse):
        shown, said = browse(runs / "page/one.html")
        assert shown.locator('[role="img"]').count() == len(page.all("figure"))
        assert said == []

    def test_a_request_that_would_leave_the_page_is_refused_and_seen(self, page, tmp_path, browse):
        (tmp_path / "page.html").write_text(page.html.replace("<main>", '<main><img src="https://example.org/a.png">'))
        assert "Content Security Policy" in browse(tmp_path / "page.html")[1][0]

    @pytest.mark.parametrize("width", [390, 1400])
    @pytest.mark.parametrize("name", ["one", "study"])
    @pytest.mark.usefixtures("page", "study")
    def test_nothing_is_wider_than_a_phone_or_a_desk(self, name, width, runs, browse):
        shown, _ = browse(runs / f"page/{name}.html", width)
        shown.evaluate("for (const folded of document.querySelectorAll('details')) folded.open = true")
        assert shown.evaluate("document.documentElement.scrollWidth") <= width

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("name", ["one", "study"])
    @pytest.mark.usefixtures("page", "study")
    def test_axe_finds_nothing_that_keeps_people_out(self, name, scheme, runs, browse):
        axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe (pip install -e '.[dev]')")
        shown, _ = browse(runs / f"page/{name}.html", scheme=scheme, bypass_csp=True)
        shown.evaluate("for (const folded of document.querySelectorAll('details')) folded.open = true")
        found = axe.Axe().run(shown).response
        assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found["violations"]] == []
        assert {"color-contrast", "heading-order", "html-has-lang"} <= {rule["id"] for rule in found["passes"]}

    def test_axe_sees_pale_words_and_pictures_without_any(self, page, tmp_path, browse):
        axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe (pip install -e '.[dev]')")
        picture = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
        worse = page.html.replace("<main>", f'<main><p style="color:#ddd">pale</p><img src="{picture}">')
        (tmp_path / "page.html").write_text(worse)
        found = axe.Axe().run(browse(tmp_path / "page.html", bypass_csp=True)[0]).response
        assert {"color-contrast", "image-alt"} <= {rule["id"] for rule in found["violations"]}


def test_a_picture_that_a_run_left_is_an_image_and_a_link_is_no_picture(tmp_path):
    (tmp_path / "own.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><set attributeName="x"/></svg>')
    (tmp_path / "link.svg").symlink_to(tmp_path / "own.svg")
    shown = read_picture(tmp_path / "own.svg", "own").html()
    assert "<svg" not in shown
    assert 'src="data:image/svg+xml;base64,' in shown
    assert read_picture(tmp_path / "link.svg", "link") is None


def test_a_saved_picture_replaces_a_link_and_never_writes_through_it(tmp_path):
    (tmp_path / "precious").write_text("kept")
    for name in ("p.svg", "p.pdf", ".p.svg.partial", ".p.pdf.partial"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    Picture("<svg/>", "p", "Title", "words", pdf=b"pdf").save(tmp_path)
    assert (tmp_path / "precious").read_text() == "kept"
    assert (tmp_path / "p.svg").read_text() == "<svg/>"
