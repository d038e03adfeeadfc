"""Several methods over several seeds: one folder, one table; tuned fairly; resumed; or only counted."""

import csv
import json
import re
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from conftest import TinyAttention, tiny_data

import fedsim
from fedsim.costs.devices import DeviceProfiles
from fedsim.experiments.comparison import Cells
from fedsim.experiments.dry_run import estimate
from fedsim.experiments.tuning import with_validation
from fedsim.report.comparison import latex, markdown, scores_of, table_csv
from fedsim.run_spec import RunSpec

METHODS = {
    "fedit": fedsim.FedIT(lora_rank=2),
    "local": fedsim.Local(lora_rank=2),
    "hilora": fedsim.HiLoRA(lora_rank=2, tolerance=0.0),
}
LOCAL = fedsim.LocalTraining(batch_size=4, learning_rate=1e-2)


def federation(seed: int) -> fedsim.FederatedData:
    return tiny_data(seed=seed)


def common(**changes):
    return {"backbone": TinyAttention(), "rounds": 3, "local": LOCAL, "threads": 1} | changes


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "run"
    return fedsim.compare(METHODS, federation, out=out, seeds=(0, 3), reference="fedit", **common())


def by_client(folder, seeds, name):
    """Accuracy of every seen client and seed after the last round, read from the tables by hand."""
    found = {}
    for seed in seeds:
        with (folder / f"seed-{seed}" / name / "clients.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                if row["evaluation"] == "global" and row["round"] == "3":
                    found[seed, row["client"]] = float(row["accuracy"])
    return found


def test_a_cell_is_the_run_that_simulate_makes(compared, tmp_path):
    alone = fedsim.simulate(method=METHODS["hilora"], data=federation(3), seed=3, out=tmp_path / "alone", **common())
    assert compared.results["hilora"][1].digest == alone.digest
    assert compared.results["hilora"][1].folder == compared.folder / "seed-3" / "hilora"


def test_the_table_holds_means_over_clients_and_then_seeds(compared):
    text = markdown(compared)
    for name in METHODS:
        found = by_client(compared.folder, (0, 3), name)
        means = [np.mean([value for (of, _), value in found.items() if of == seed]) for seed in (0, 3)]
        assert f"| {name} | {np.mean(means):.3f} ± {np.std(means, ddof=1):.3f} |" in text
    summary = json.loads((compared.folder / "result.json").read_text())
    runs = [json.loads((run.folder / "result.json").read_text()) for run in compared.results["local"]]
    for key in ("global.p10", "unseen.tuned.mean", "bytes.up"):
        assert summary[f"local.{key}"] == pytest.approx(np.mean([run[key] for run in runs]))


def test_differences_are_paired_by_seed(compared):
    ours, theirs = (by_client(compared.folder, (0, 3), name) for name in ("local", "fedit"))
    gaps = [np.mean([ours[key] - theirs[key] for key in ours if key[0] == seed]) for seed in (0, 3)]
    found = compared.differences["local"]
    assert (found.reference, found.seeds) == ("fedit", 2)
    assert gaps[0] == pytest.approx(gaps[1])
    assert found.mean == pytest.approx(np.mean(gaps))
    assert found.p == 0.5, "equal in both seeds, so their signs are all there is"
    assert "fedit" not in compared.differences


def test_the_table_is_kept_in_three_forms(compared):
    for suffix, text in (("md", markdown), ("tex", latex)):
        assert (compared.folder / f"comparison.{suffix}").read_text() == text(compared)
    assert latex(compared).count(r"\\") == 4
    with (compared.folder / "comparison.csv").open(newline="") as file:
        rows = {(row[0], row[1]): row[2:] for row in csv.reader(file)}
    assert float(rows["hilora", "global.mean"][0]) == pytest.approx(compared.summary()["hilora.global.mean"])
    assert len(rows["hilora", "global.mean"]) == 4


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rounds": 4}, "rounds was 3 and is 4"),
        ({"local": fedsim.LocalTraining(batch_size=4, learning_rate=2e-2)}, "local.learning_rate was 0.01 and is 0.02"),
        ({"backbone": TinyAttention(depth=3)}, "backbone was 'TinyAttention, .*' and is 'TinyAttention, "),
        (
            {"devices_profile": DeviceProfiles(gflops=1.0, mbps_down=2.0, mbps_up=3.0)},
            "devices_profile.gflops was None and is 1",
        ),
        ({"evaluate_every": 2}, "evaluate_every was 1 and is 2"),
        ({"validation_share": 0.4}, "validation_share was 0.2 and is 0.4"),
    ],
)
def test_a_comparison_in_python_is_not_resumed_over_another_one(compared, changes, named):
    with pytest.raises(ValueError, match=named):
        fedsim.compare(METHODS, federation, out=compared.folder, seeds=(0, 3), resume=True, **common(**changes))
    with pytest.raises(ValueError, match=r"not the same: seed-0.inputs, seed-0.targets, seed-3.inputs"):
        fedsim.compare(METHODS, lambda s: tiny_data(seed=9), out=compared.folder, seeds=(0, 3), resume=True, **common())


def test_data_that_changed_are_noticed_also_where_the_next_cell_is_not_begun(tmp_path, monkeypatch):
    """A comparison from the command line, whose recipe does not speak of tensors, is ended after its first cell."""
    two = {name: METHODS[name] for name in ("fedit", "local")}
    arguments = {"out": tmp_path / "run", "seeds": (0, 3), "recipe": {"seeds": [0, 3]}, **common()}
    real = Cells._simulate

    def end(self, *cell):
        real(self, *cell)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Cells, "_simulate", end)
        patch.setattr("fedsim.experiments.comparison.handle_signals", nullcontext)
        with pytest.raises(KeyboardInterrupt):
            fedsim.compare(two, federation, **arguments)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())

    def changed(seed):
        data = federation(seed)
        data.inputs[0, 0] += seed  # of the second seed alone, of which nothing is begun
        return data

    with pytest.raises(ValueError, match=r"other data or weights; not the same: seed-3.inputs\."):
        fedsim.compare(two, changed, resume=True, **arguments)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
    assert fedsim.compare(two, federation, resume=True, **arguments).digest


def test_the_table_says_what_its_methods_had_in_common_and_what_not(compared, tmp_path):
    assert "3 rounds; head policy tier" in markdown(compared)
    steps = r"Local steps of a client in a round, on average: fedit (\d\.\d), twice (\d\.\d)\."
    methods = {"fedit": METHODS["fedit"], "twice": fedsim.FedDPA(lora_rank=2, head_policy="local")}
    found = markdown(fedsim.compare(methods, federation, out=tmp_path / "run", **common()))
    assert "head policies fedit: tier, twice: local" in found
    once, twice = map(float, re.search(steps, found).groups())
    assert twice == pytest.approx(2 * once, abs=0.1)


def test_a_number_that_one_seed_lacks_leaves_its_place_empty(compared):
    results = {name: list(runs) for name, runs in compared.results.items()}
    less = {k: v for k, v in results["local"][0].summary.items() if k != "global.p10"}
    results["local"][0] = replace(results["local"][0], summary=less)
    rows = csv.reader(table_csv(replace(compared, results=results)).splitlines())
    (row,) = [row for row in rows if row[:2] == ["local", "global.p10"]]
    assert row[4:] == ["", str(results["local"][1].summary["global.p10"])]


@pytest.mark.slow
def test_only_what_is_missing_is_run_again(compared, tmp_path, monkeypatch):
    out = tmp_path / "run"
    fedsim.compare(METHODS, federation, out=out, seeds=(0, 3), reference="fedit", **common())
    kept = out / "seed-0" / "fedit" / "result.json"
    before = kept.stat().st_mtime_ns
    (out / "seed-3" / "local" / "result.json").unlink()
    (out / "comparison.md").unlink()
    again = fedsim.compare(METHODS, federation, out=out, seeds=(0, 3), reference="fedit", resume=True, **common())
    assert again.digest == compared.digest
    assert kept.stat().st_mtime_ns == before
    assert (out / "comparison.md").exists()


def test_further_seeds_are_added_to_a_finished_comparison_and_only_they_are_run(compared, tmp_path):
    two = {name: METHODS[name] for name in ("fedit", "local")}
    arguments = {"out": tmp_path / "run", "reference": "fedit", **common()}
    fedsim.compare(two, federation, seeds=(0,), **arguments)
    kept = tmp_path / "run" / "seed-0" / "fedit" / "metrics.csv"
    before, environment = (
        kept.stat().st_mtime_ns,
        json.loads((tmp_path / "run" / "recipe.json").read_text())["environment"],
    )
    (tmp_path / "run" / "seed-0" / "local" / "result.json").unlink()  # one that is begun has the seeds of before
    again = fedsim.compare(two, federation, seeds=(0, 3), resume=True, **arguments)
    for name in two:
        assert [run.digest for run in again.results[name]] == [run.digest for run in compared.results[name]]
    assert kept.stat().st_mtime_ns == before
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (recipe["seeds"], recipe["environment"]) == ([0, 3], environment)
    assert "standard deviation over seeds (0, 3)" in (tmp_path / "run" / "comparison.md").read_text()
    for seeds in ((0,), (3, 0), (0, 5)):
        with pytest.raises(ValueError, match=r"seeds was \[0, 3\] and is "):
            fedsim.compare(two, federation, seeds=seeds, resume=True, **arguments)
    with pytest.raises(ValueError, match=r"run folder of another recipe: .*lora_rank was 2 and is 1"):
        fedsim.compare(
            {**two, "local": fedsim.Local(lora_rank=1)}, federation, seeds=(0, 3, 4), resume=True, **arguments
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "flora"}, "reference is 'flora'; it must be one of several methods: fedit, local, hilora"),
        ({"seeds": (1, 1)}, r"seeds are \[1, 1\]; they must be distinct"),
        ({"cohort_size": 99}, "cohort_size is 99"),
        ({"methods": {"../x": METHODS["fedit"]}}, r"a method is called '../x'; names of methods name folders"),
        ({"methods": {"": METHODS["fedit"]}}, "a method is called ''"),
        ({"methods": {"..": METHODS["fedit"], 3: METHODS["local"]}}, r"called '\.\.'.*called 3"),
        ({"methods": {"it": METHODS["fedit"]}, "reference": "local"}, "but there is one method only"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, changes, message):
    arguments = {"methods": METHODS, **common(**changes)}
    with pytest.raises(ValueError, match=message):
        fedsim.compare(data=federation, out=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


# tuning

GRIDS = {
    "fedit": fedsim.Grid(METHODS["fedit"], {"local.learning_rate": (1e-5, 1e-2)}),
    "hilora": fedsim.Grid(METHODS["hilora"], {"gamma_c": (0.0, 0.3)}),
}


@pytest.mark.slow
def test_the_best_trial_on_validation_rows_is_what_runs(tmp_path):
    found = fedsim.compare(GRIDS, federation, out=tmp_path / "run", seeds=(1, 2), **common(rounds=2))
    report = json.loads((tmp_path / "run" / "tuning.json").read_text())
    for name, of_method in report["methods"].items():
        folders = [tmp_path / "run" / "tuning" / f"{name}-{index}" for index in range(2)]
        scores = [json.loads((folder / "result.json").read_text())["global.mean"] for folder in folders]
        assert [trial["score"] for trial in of_method["trials"]] == scores
        best = of_method["trials"][scores.index(max(scores))]["values"]
        assert found.chosen[name] == of_method["chosen"] == best
        for seed in (1, 2):
            recipe = json.loads((tmp_path / "run" / f"seed-{seed}" / name / "recipe.json").read_text())
            assert recipe["values"] == best
    rate = found.chosen["fedit"]["local.learning_rate"]
    alone = fedsim.simulate(
        method=METHODS["fedit"],
        data=federation(2),
        seed=2,
        out=tmp_path / "alone",
        **common(rounds=2, local=replace(LOCAL, learning_rate=rate)),
    )
    assert found.results["fedit"][1].digest == alone.digest
    assert "was tuned to" in markdown(found)


def test_unequal_numbers_of_trials_are_refused(tmp_path):
    methods = {**GRIDS, "local": METHODS["local"]}
    with pytest.raises(ValueError, match=r"same number of trials.*fedit has 2, hilora has 2, local has 1"):
        fedsim.compare(methods, federation, out=tmp_path / "run", **common())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [({"gamma": (1,)}, "names 'gamma'; HiLoRA has the fields lora_rank"), ({"gamma_c": ()}, "no values for gamma_c")],
)
def test_a_grid_over_what_is_no_field_is_refused(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        fedsim.compare({"a": fedsim.Grid(METHODS["hilora"], values)}, federation, out=tmp_path / "run", **common())


def test_a_grid_has_every_combination_and_reaches_nested_fields():
    values = {"clustering.k_min": (2, 3), "local.learning_rate": (0.1, 0.2, 0.3)}
    cells = Cells({"a": fedsim.Grid(METHODS["hilora"], values)}, federation, (0,), None, 0.2, {})
    points = [(trial.method.clustering.k_min, trial.local.learning_rate) for trial in cells.trials["a"]]
    assert points == [(2, 0.1), (2, 0.2), (2, 0.3), (3, 0.1), (3, 0.2), (3, 0.3)]


def test_validation_rows_are_a_clients_own_training_rows_and_no_test_row_is_left():
    data = federation(0)
    held = with_validation(data, 0.25, seed=0)
    for client in range(data.n_clients):
        train, test = set(held.train[client].tolist()), set(held.test[client].tolist())
        if client in data.unseen:
            assert not train | test
            continue
        assert train | test == set(data.train[client].tolist())
        assert not train & test
        assert len(test) == round(0.25 * data.train_size(client))
    first = next(client for client in range(data.n_clients) if client not in data.unseen)
    one = replace(data, train=[rows[: 1 + (client == first)] for client, rows in enumerate(data.train)])
    assert [len(rows) for rows in with_validation(one, 0.2, 0).test] == [k == first for k in range(data.n_clients)]
    with pytest.raises(ValueError, match="No client that takes part has two training samples"):
        with_validation(replace(data, train=[rows[:1] for rows in data.train]), 0.2, 0)


# costs

RANKS = fedsim.LoraRanks(values=(1, 2, 3))
COUNTED = {
    **METHODS,
    "flexlora": fedsim.FlexLoRA(ranks=RANKS),
    "ilora": fedsim.ILoRA(ranks=RANKS),
    "flora": fedsim.FLoRA(ranks=RANKS),
    "flora, its head with the tier": fedsim.FLoRA(ranks=RANKS, head_policy="tier"),
    "fedex": fedsim.FedExLoRA(ranks=RANKS),
    "hetlora": fedsim.HetLoRA(ranks=RANKS),
    "own adapters": fedsim.FedALT(lora_rank=2),
    "two passes": fedsim.FedDPA(lora_rank=2, variant="T"),
    "two stages": fedsim.FedDPA(lora_rank=2, variant="F", tuning_share=0.4),
    "three stages": fedsim.FDLoRA(lora_rank=2, personal_share=0.2, fusion_share=0.2),
    "tree": fedsim.FedTreeLoRA(lora_rank=2, warmup_rounds=2),
    "depths": fedsim.DepthFedIT(lora_rank=2, capabilities=fedsim.Capabilities(values=(1, 2), assign="cycle")),
    "drawn": fedsim.FedHeLLo(
        lora_rank=2, strategy="rgd", capabilities=fedsim.Capabilities(values=(1, 2), assign="cycle")
    ),
}
EXACT = 1e-9
ROUGH = {
    "hilora": 0.7,
    "flora": EXACT,
    "flora, its head with the tier": EXACT,
    "fedex": 0.3,
    "hetlora": 0.1,
    "tree": 0.5,
    "drawn": EXACT,
}
"""How far estimates are off where plans depend on what is learnt, or a tier grows."""


@pytest.mark.parametrize("name", COUNTED)
def test_a_dry_run_estimates_the_bytes_that_a_run_sends(name, tiny_run):
    """Exactly where all take part and nothing is learnt that plans depend on; it says where that is not so."""
    sent = tiny_run(method=COUNTED[name], rounds=5, evaluate_every=5).summary
    found = estimate(RunSpec(method=COUNTED[name], backbone=TinyAttention(), data=tiny_data(), rounds=5, local=LOCAL))
    assert found.is_rough == (name in ROUGH)
    assert found.up == pytest.approx(sent["bytes.up"], rel=ROUGH.get(name, EXACT))
    assert found.down == pytest.approx(sent["bytes.down"], rel=ROUGH.get(name, EXACT))


def test_an_estimate_for_part_of_the_clients_is_their_share_of_all(tiny_run):
    """Unequal LoRA ranks average out over rounds, and who missed a round of a tier that grows is sent it whole."""
    for name, tolerance in (("flexlora", 0.1), ("flora", 0.25)):
        setting = {"method": COUNTED[name], "rounds": 20, "cohort_size": 3, "evaluate_every": 20}
        sent = tiny_run(name, **setting).summary
        found = estimate(RunSpec(backbone=TinyAttention(), data=tiny_data(), local=LOCAL, **setting))
        assert found.up == pytest.approx(sent["bytes.up"], rel=tolerance), name
        assert found.down == pytest.approx(sent["bytes.down"], rel=tolerance), name


def test_steps_and_samples_are_those_of_the_engine(tiny_run, monkeypatch):
    from fedsim.data.federated import FederatedData

    seen = []
    real = FederatedData.train_steps

    def counted(self, *arguments):
        for rows, draws in real(self, *arguments):
            seen.append(len(rows))
            yield rows, draws

    monkeypatch.setattr(FederatedData, "train_steps", counted)
    local = fedsim.LocalTraining(batch_size=5, epochs=3, share=0.7)
    setting = {"method": METHODS["fedit"], "rounds": 2, "local": local}
    data = replace(tiny_data(), unseen=frozenset())
    tiny_run(engine="sequential", cohort_size=4, data=data, **setting)
    cost = estimate(RunSpec(backbone=TinyAttention(), data=data, cohort_size=4, **setting))
    assert (cost.steps, cost.samples) == (len(seen), sum(seen))


def test_scores_are_in_client_order(compared):
    run = compared.results["fedit"][0]
    found = by_client(compared.folder, (0,), "fedit")
    assert scores_of(run).tolist() == [found[0, str(client)] for client in range(5)]
