"""tests/ mirrors fedsim/: the tests of a module are found by its name, or are listed here."""

import inspect
from pathlib import Path

from conftest import ROOT

import fedsim

PAGE = "report/test_page.py"
RUNS = "test_simulation.py"
TESTED_IN = {
    "costs/accounting": "costs/test_devices.py",
    "costs/profiler": "costs/test_step_cost.py",
    "data/builtin/digits": "data/test_proxy.py",
    "data/builtin/topics": "models/test_text.py",
    "data/builtin/toy_instructions": "data/instructions/test_instructions.py",
    "data/client_options": "data/test_hostile.py",
    "data/images/decode": "data/images/test_images.py",
    "data/images/folders": "data/test_layouts.py",
    "data/instructions/registry": "data/instructions/test_instructions.py",
    "data/instructions/samples": "data/test_generating_runs.py",
    "data/instructions/tables": "data/instructions/test_instructions.py",
    "data/placement": "data/test_federated.py",
    "data/sources/labelled": "data/partition/test_dirichlet.py",
    "distributed/messages": RUNS,
    "distributed/rollcall": "test_errors.py",
    "engines/block_size": "engines/test_batched.py",
    "engines/stack": "engines/test_engines_agree.py",
    "experiments/dry_run": "costs/test_devices.py",
    "experiments/export": "engines/test_export.py",
    "experiments/help": "experiments/test_recipes.py",
    "experiments/tuning": "experiments/test_comparison.py",
    "export": "engines/test_export.py",
    "models/adapted": "engines/test_export.py",
    "models/client_module": "engines/test_sequential.py",
    "models/digits_vit": "test_learning.py",
    "models/frozen": "engines/test_frozen.py",
    "models/origin": "engines/test_export.py",
    "parts/budgets": "costs/test_step_cost.py",
    "parts/outer": "methods/test_personalised.py",
    "parts/ranks": "methods/test_unequal_ranks.py",
    "parts/stacking": "methods/test_unequal_ranks.py",
    "parts/variates": "methods/test_unequal_ranks.py",
    "plan_checks": "test_plan.py",
    "randomness": "server/test_workload.py",
    "records/model_record": "engines/test_export.py",
    "records/recorded_model": "engines/test_export.py",
    "records/recorder": RUNS,
    "report/card": "engines/test_export.py",
    "report/cluster_figures": PAGE,
    "report/comparison": "report/test_table.py",
    "report/drawing": PAGE,
    "report/how_to_read": PAGE,
    "report/page_style": PAGE,
    "report/page_template": PAGE,
    "report/reading": PAGE,
    "report/run_figures": PAGE,
    "report/run_tables": "report/test_cells.py",
    "report/several": PAGE,
    "report/split_figures": "report/test_split.py",
    "report/summary": RUNS,
    "report/tree_figures": "report/test_figures.py",
    "round": "test_plan.py",
    "server/aggregator": RUNS,
    "storage/cache": "data/images/test_images.py",
    "storage/run_folder": "records/test_resume.py",
    "storage/tables": "records/test_resume.py",
    "storage/wire": RUNS,
}
"""Modules without a test file of their own name, and where most of their tests stand."""


def modules() -> list[str]:
    paths = sorted((ROOT / "fedsim").rglob("*.py"))
    return [path.relative_to(ROOT / "fedsim").with_suffix("").as_posix() for path in paths if path.stem[:2] != "__"]


def own(module: str) -> Path:
    folder, _, name = module.rpartition("/")
    return ROOT / "tests" / folder / f"test_{name}.py"


def test_the_tests_of_every_module_are_found_by_its_name_or_listed():
    others = [module for module in modules() if not module.startswith("methods/")]
    assert [module for module in others if not own(module).exists() and module not in TESTED_IN] == []


def test_nothing_is_listed_that_is_not_there_or_has_a_file_of_its_own():
    gone = [module for module in TESTED_IN if module not in modules() or own(module).exists()]
    assert gone == []
    assert [path for path in TESTED_IN.values() if not (ROOT / "tests" / path).exists()] == []


def test_every_method_is_tested_in_its_own_file_or_among_those_of_its_kind():
    text = "\n".join(path.read_text() for path in (ROOT / "tests" / "methods").glob("test_*.py"))
    kinds = [getattr(fedsim, name) for name in fedsim.methods.__all__]
    assert {inspect.getmodule(kind).__name__.rpartition(".")[2] for kind in kinds} == {
        module.removeprefix("methods/") for module in modules() if module.startswith("methods/")
    }
    assert [kind.__name__ for kind in kinds if f"{kind.__name__}(" not in text] == []


def test_test_files_lie_in_folders_of_fedsims_names():
    inside = [path.parent for path in (ROOT / "tests").rglob("test_*.py")]
    folders = {folder.relative_to(ROOT / "tests").as_posix() for folder in inside}
    assert [folder for folder in folders if not (ROOT / "fedsim" / folder).is_dir()] == []
