"""tests/ mirrors fedsim/: a module's tests are found by its name in the folder of its package, or are listed here."""

import inspect
import re
from pathlib import Path

from conftest import ROOT

import fedsim

PAGE = "report/test_page.py"
RUNS = "test_simulation.py"
EXPORT = "engines/test_export.py"
UNEQUAL = "methods/test_unequal_ranks.py"
TESTED_IN = {
    "data/builtin/digits": "data/test_proxy.py",
    "data/builtin/topics": "models/test_text.py",
    "data/builtin/toy_instructions": "data/instructions/test_instructions.py",
    "data/client_options": "data/test_hostile.py",
    "data/images/folders": "data/test_layouts.py",
    "data/instructions/samples": "data/test_generating_runs.py",
    "data/sources/labelled": "data/partition/test_dirichlet.py",
    "distributed/messages": RUNS,
    "distributed/rollcall": "test_errors.py",
    "engines/references": "engines/test_engines_agree.py",
    "experiments/export": EXPORT,
    "experiments/help": "experiments/test_recipes.py",
    "export": EXPORT,
    "models/adapted": EXPORT,
    "models/digits_vit": "test_learning.py",
    "models/frozen": "engines/test_frozen.py",
    "models/origin": EXPORT,
    "parts/budgets": "costs/test_step_cost.py",
    "parts/outer": "methods/test_personalised.py",
    "parts/ranks": UNEQUAL,
    "parts/stacking": UNEQUAL,
    "parts/variates": UNEQUAL,
    "plan_checks": "test_plan.py",
    "randomness": "server/test_workload.py",
    "records/model_record": EXPORT,
    "records/recorded_model": EXPORT,
    "report/card": EXPORT,
    "report/cluster_figures": PAGE,
    "report/page_style": PAGE,
    "report/page_template": PAGE,
    "report/run_figures": PAGE,
    "report/summary": RUNS,
    "round": "test_plan.py",
    "server/aggregator": RUNS,
    "storage/cache": "data/images/test_images.py",
    "storage/tables": "records/test_resume.py",
    "storage/wire": RUNS,
}
"""Modules whose tests stand elsewhere than in a file of their name or in one beside it that imports them."""


def modules() -> list[str]:
    paths = sorted((ROOT / "fedsim").rglob("*.py"))
    return [path.relative_to(ROOT / "fedsim").with_suffix("").as_posix() for path in paths if path.stem[:2] != "__"]


def own(module: str) -> Path:
    folder, _, name = module.rpartition("/")
    return ROOT / "tests" / folder / f"test_{name}.py"


def is_imported_beside(module: str) -> bool:
    """Whether a test in the folder of the module's package imports it."""
    folder, _, name = module.rpartition("/")
    package = re.escape(f"fedsim.{folder.replace('/', '.')}")
    imports = re.compile(rf"(?m)^from {package}\.{name} import |^from {package} import (?:.*\W)?{name}\b")
    return bool(folder) and any(imports.search(path.read_text()) for path in own(module).parent.glob("test_*.py"))


def test_the_tests_of_every_module_are_found_by_its_name_or_listed():
    others = [module for module in modules() if not module.startswith("methods/") and module not in TESTED_IN]
    assert [module for module in others if not own(module).exists() and not is_imported_beside(module)] == []


def test_a_module_that_no_test_beside_it_imports_would_be_seen():
    assert is_imported_beside("costs/profiler")
    assert not is_imported_beside("report/page_style")
    assert not is_imported_beside("costs/nothing")


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
