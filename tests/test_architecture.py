"""The house rules that a parser can check: who imports whom, how long things are, that they are explained."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "fedsim").rglob("*.py"))}
RECIPES = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "recipes").glob("*.py"))}
BENCHMARKS = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "benchmarks").rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in (FILES | RECIPES | BENCHMARKS).items()}

MAY_IMPORT = {
    "adapters": set(),
    "options": set(),
    "data": {"cache", "options"},
    "randomness": set(),
    "cache": set(),
    "local_training": set(),
    "faults": set(),
    "blocks": set(),
    "provenance": set(),
    "rollcall": set(),
    "workers": {"adapters", "faults", "rollcall"},
    "disk": {"faults"},
    "tables": {"disk"},
    "run_folder": {"adapters", "disk", "provenance", "tables"},
    "resources": {"adapters", "local_training"},
    "profiling": {"adapters", "resources"},
    "devices": {"resources"},
    "curves": {"disk", "run_folder"},
    "interruption": {"workers"},
    "launch": {"interruption"},
    "command_line": {"devices", "disk", "options", "run_folder", "faults", "interruption", "launch", "workers"},
    "round": {"adapters", "local_training"},
    "divergence": {"faults", "round"},
    "models": {"adapters", "cache", "local_training"},
    "parts": {"adapters", "round"},
    "plan": {"adapters", "local_training", "round", "parts"},
    "methods": {"adapters", "round", "parts", "plan"},
    "engines": {"adapters", "blocks", "local_training", "round", "models", "plan", "data"},
    "messages": {"adapters", "round", "workers"},
    "workload": {"adapters", "blocks", "local_training", "resources", "round", "plan"},
    "federation": {"adapters", "devices", "round", "plan", "data"},
    "evaluation": {"adapters", "round", "plan", "data"},
    "aggregator": {
        "adapters",
        "blocks",
        "local_training",
        "round",
        "plan",
        "data",
        "devices",
        "federation",
        "messages",
        "workers",
        "workload",
    },
    "report": {"adapters", "round", "plan", "data", "disk", "evaluation", "faults", "run_folder"},
    "recorder": {"adapters", "curves", "round", "plan", "data", "devices", "evaluation", "report", "run_folder"},
}
"""What a file or folder of fedsim may import beside itself and `randomness`. What is not listed may import anything."""

TOP = {
    "__init__",
    "setting",
    "starting",
    "simulation",
    "rehearsal",
    "tuning",
    "cost",
    "comparison",
    "experiments",
    "model_record",
    "recorded_model",
    "exporting",
    "export",
}
"""Those that may import anything of the above, and that nothing else imports."""

EXCEPTIONS = {
    ("fedsim/workload.py", "fedsim.parts.sharing"): "is_private: a private copy does not travel",
}

LIGHTNING = (
    "fedsim/models/client_module.py",
    "fedsim/engines/",
    "fedsim/curves.py",
    "fedsim/launch.py",
    "fedsim/simulation.py",
    "fedsim/cost.py",
    "recipes/",
    "benchmarks/",
)
"""Where processes, devices and loggers are."""


def unit(name: str) -> str:
    """fedsim/parts/tree.py, or fedsim.parts.tree, to parts."""
    parts = name.removesuffix(".py").replace("/", ".").split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names of all modules that are imported, inside functions too; a relative import keeps its dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from names if module in ("fedsim", "lightning") else [module]


def own_imports(name: str) -> list[str]:
    return [module for module in imports(TREES[name]) if module.split(".")[0] == "fedsim"]


def definitions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Every class, function and method with its dotted name, nested ones included."""

    def visit(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{prefix}{child.name}", child
                yield from visit(child, f"{prefix}{child.name}.")
            else:
                yield from visit(child, prefix)

    return visit(tree, "")


# who may import whom


def test_every_file_of_the_package_has_its_place_in_the_table():
    assert {unit(name) for name in FILES} <= set(MAY_IMPORT) | TOP


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_only_what_its_place_allows(name):
    if unit(name) in TOP:
        return
    allowed = MAY_IMPORT[unit(name)] | {unit(name), "randomness"}
    wrong = [module for module in own_imports(name) if unit(module) not in allowed and (name, module) not in EXCEPTIONS]
    assert not wrong, f"{name} imports {wrong}; {unit(name)} may import {sorted(allowed)}"


def test_the_table_itself_has_no_circles():
    settled: set[str] = set()
    while left := MAY_IMPORT.keys() - settled:
        free = {place for place in left if MAY_IMPORT[place] <= settled}
        assert free, f"{sorted(left)} import each other"
        settled |= free


@pytest.mark.parametrize(("name", "module"), EXCEPTIONS)
def test_every_exception_is_still_needed(name, module):
    assert module in own_imports(name)
    assert unit(module) not in MAY_IMPORT[unit(name)]


@pytest.mark.parametrize(
    "name", [name for name in FILES if unit(name) == "methods" and not name.endswith("__init__.py")]
)
def test_methods_know_nothing_of_each_other(name):
    assert not [module for module in own_imports(name) if unit(module) == "methods"]


@pytest.mark.parametrize("name", FILES)
def test_imports_are_absolute(name):
    assert not [module for module in imports(TREES[name]) if module.startswith(".")]


@pytest.mark.parametrize("name", TREES)
def test_lightning_is_imported_only_where_processes_devices_and_loggers_are(name):
    if any(module.split(".")[0] in ("lightning", "pytorch_lightning") for module in imports(TREES[name])):
        assert name.startswith(LIGHTNING)


@pytest.mark.parametrize("name", FILES | BENCHMARKS)
def test_nothing_imports_a_recipe(name):
    assert not [module for module in imports(TREES[name]) if module.split(".")[0] == "recipes"]


@pytest.mark.parametrize("name", RECIPES | BENCHMARKS)
def test_recipes_and_benchmarks_use_public_names_only(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fedsim":
            assert not [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not [part for part in node.module.split(".") if part.startswith("_")]


# budgets


def lines_allowed(name: str) -> int:
    if name.startswith("recipes/"):
        return 70
    return 120 if unit(name) == "methods" else 250


@pytest.mark.parametrize("name", TREES)
def test_files_stay_within_their_budget_of_lines(name):
    assert len((ROOT / name).read_text().splitlines()) <= lines_allowed(name)


@pytest.mark.parametrize("name", TREES)
def test_functions_have_at_most_forty_lines(name):
    lengths = {
        path: node.end_lineno - node.lineno + 1
        for path, node in definitions(TREES[name])
        if not isinstance(node, ast.ClassDef)
    }
    assert not {path: length for path, length in lengths.items() if length > 40}


# explanations


@pytest.mark.parametrize("name", TREES)
def test_every_module_and_every_public_class_and_function_says_what_it_is(name):
    assert ast.get_docstring(TREES[name])
    silent = [
        path
        for path, node in definitions(TREES[name])
        if not any(part.startswith("_") for part in path.split(".")) and not ast.get_docstring(node)
    ]
    nested = {
        f"{outer}.{inner}"
        for outer, node in definitions(TREES[name])
        if not isinstance(node, ast.ClassDef)
        for inner, _ in definitions(node)
    }
    assert not set(silent) - nested


# one table, no branches on methods


METHOD_CLASSES = {
    node.name
    for name, tree in TREES.items()
    if unit(name) == "methods" and name in FILES
    for node in tree.body
    if isinstance(node, ast.ClassDef)
}


def mentions_a_method(node: ast.AST) -> bool:
    """Whether an expression names a method: a variable called so, one of the classes, or its name as text."""
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    names |= {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    texts = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)}
    known = {text.lower() for text in METHOD_CLASSES} - {"local"}  # also a head policy
    return bool(names & ({"method", "method_name"} | METHOD_CLASSES) or {text.lower() for text in texts} & known)


def branches_on_methods(tree: ast.AST) -> list[int]:
    """Line numbers of comparisons, isinstance and issubclass calls and match statements that mention a method."""
    found = []
    for node in ast.walk(tree):
        is_check = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        is_check = is_check and node.func.id in ("isinstance", "issubclass", "hasattr")
        compared = isinstance(node, ast.Compare) and any(mentions_a_method(p) for p in (node.left, *node.comparators))
        checked = is_check and any(mentions_a_method(argument) for argument in node.args)
        matched = isinstance(node, ast.Match) and mentions_a_method(node.subject)
        if compared or checked or matched:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("name", FILES)
def test_no_file_of_the_package_branches_on_a_method(name):
    assert not branches_on_methods(TREES[name])


BRANCHES = (
    "if method == 1: pass",
    "isinstance(method, X)",
    "isinstance(x, HiLoRA)",
    "name == 'fedit'",
    "self.method is Local",
    "match method:\n  case _: pass",
)


@pytest.mark.parametrize("text", BRANCHES)
def test_such_a_branch_would_be_seen(text):
    assert branches_on_methods(ast.parse(text))


def test_methods_are_plain_frozen_dataclasses_without_a_base():
    for name, tree in TREES.items():
        for node in tree.body if name in FILES and unit(name) == "methods" else ():
            if isinstance(node, ast.ClassDef):
                assert not node.bases, name
                assert [ast.unparse(decorator) for decorator in node.decorator_list] == [
                    "dataclass(frozen=True, kw_only=True)"
                ]
