"""Pictures of a run: there where the events call for them, with what the events say, and nowhere else."""

import re

import numpy as np
import pytest
import torch
from conftest import TinyAttention, tiny_data
from scipy.spatial.distance import pdist, squareform

import fedsim
from fedsim.parts.tree import TreeCuts
from fedsim.report.figures import draw_figures
from fedsim.report.tree_figures import draw_tree
from fedsim.storage.run_folder import RunFolder


def texts(path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def events(n: int = 6, depths: int = 4, **settings) -> list[dict]:
    """A tree of n clients whose ids are 10, 11, … at depths 0, 1, …, with two rounds of λ."""
    points = [np.random.default_rng(depth).normal(size=(n, 3)) for depth in range(depths)]
    distances = [torch.from_numpy(squareform(pdist(p))) for p in points]
    cuts = TreeCuts(**settings).cut(distances)
    tree = {
        "round": 5,
        "trees": [tree.tolist() for tree in cuts.trees],
        "tree_clients": list(range(10, 10 + n)),
        "depths": list(range(depths)),
        "cuts": cuts.counts,
        "silhouettes": [list(map(list, scores.items())) for scores in cuts.scores],
        "groups": [labels.tolist() for labels in cuts.labels],
    }
    lambdas = [
        {"round": 6 + r, "lambda": [0.5 + 0.1 * r] * depths, "lambda_by_client": {"10": [0.6] * depths}} for r in (0, 1)
    ]
    return [{"round": 1}, tree, *lambdas]


def test_a_run_with_a_tree_leaves_its_picture_as_svg_and_pdf_and_no_other_run_does(tiny_run, monkeypatch):
    monkeypatch.setenv("FEDSIM_FIGURES", "1")
    method = fedsim.FedTreeLoRA(lora_rank=2, warmup_rounds=1, tree=TreeCuts(clusters=2))
    common = {"data": tiny_data(7), "backbone": TinyAttention(), "rounds": 2}
    first, again, plain = tiny_run("a", method=method, **common), tiny_run("b", method=method, **common), tiny_run("c")
    assert {"tree.svg", "tree.pdf"} <= {path.name for path in first.folder.iterdir()}
    assert (first.folder / "tree.pdf").read_bytes().startswith(b"%PDF")
    found = texts(first.folder / "tree.svg")
    assert "Tree of 6 clients, from all depths" in found
    assert "c = 2, depths 0–1" in found
    for name in ("tree.svg", "tree.pdf"):
        assert (first.folder / name).read_bytes() == (again.folder / name).read_bytes()
        assert not (plain.folder / name).exists()


def lines_of(axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.lines}


def test_the_panels_show_the_cuts_the_groups_and_lambda():
    found = events(tau=-1.0)
    tree, groups, staircase, _bar, lambdas = draw_tree(found).axes
    n_links = 5
    splits = {cut for cut in found[1]["cuts"] if cut > 1}
    assert len(tree.lines) == n_links + len(splits)
    ids = [int(text.get_text()) for text in groups.get_xticklabels()]
    assert sorted(ids) == list(range(10, 16))
    assert any(np.array_equal(line.get_ydata(), found[1]["cuts"]) for line in staircase.lines)
    named = lines_of(lambdas)
    assert named["mean, round 6"].tolist() == [0.5] * 4
    assert named["mean, round 7"].tolist() == [0.6] * 4
    image = groups.images[0].get_array()
    row = {id_: tuple(image[-1, position]) for position, id_ in enumerate(ids)}
    for i, one in enumerate(found[1]["groups"][-1]):
        for j, other in enumerate(found[1]["groups"][-1]):
            assert (row[10 + i] == row[10 + j]) == (one == other)


@pytest.mark.parametrize(
    ("n", "depths", "settings"),
    [(2, 1, {}), (12, 3, {"clusters": 1}), (12, 3, {"clusters": 12}), (70, 30, {"clusters": 3, "one_tree": False})],
)
def test_every_kind_of_tree_can_be_drawn(tmp_path, monkeypatch, n, depths, settings):
    monkeypatch.setenv("FEDSIM_FIGURES", "1")
    folder = RunFolder(tmp_path)
    for event in events(n, depths, **settings):
        folder.log_event(event.pop("round") - 1, event)
    draw_figures(folder)
    assert (tmp_path / "tree.svg").exists()


def test_without_events_or_without_a_tree_nothing_is_drawn():
    assert draw_tree([]) is None
    assert draw_tree([{"round": 1, "stage": "train"}, {"round": 2, "trees": []}]) is None
