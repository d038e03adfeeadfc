"""The house rules that a parser can check: who imports whom, how long things are, that they are explained."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "fedsim").rglob("*.py"))}
RECIPES = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "recipes").glob("*.py"))}
BENCHMARKS = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "benchmarks").rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in (FILES | RECIPES | BENCHMARKS).items()}

MAY_IMPORT: dict[str, set[str]] = {
    "adapters": set(),
    "errors": set(),
    "options": set(),
    "randomness": set(),
    "round": {"adapters", "options"},
    "storage": {"errors"},
    "data": {"options", "storage"},
    "distributed": {"adapters", "errors", "round", "storage"},
    "models": {"adapters", "options", "randomness", "storage"},
    "parts": {"adapters", "options", "randomness", "round"},
    "plan": {"adapters", "round", "parts"},
    "plan_checks": {"adapters", "round", "parts", "plan"},
    "costs": {"adapters", "options", "randomness", "round", "parts", "plan"},
    "report": {"errors", "randomness", "round", "storage", "data"},
    "engines": {"adapters", "options", "randomness", "round", "data", "distributed", "models", "plan"},
    "methods": {"adapters", "randomness", "round", "parts", "plan"},
    "run_spec": {
        "adapters",
        "errors",
        "options",
        "randomness",
        "costs",
        "round",
        "storage",
        "data",
        "distributed",
        "models",
        "parts",
        "plan",
        "plan_checks",
    },
    "server": {
        "adapters",
        "errors",
        "options",
        "randomness",
        "costs",
        "round",
        "distributed",
        "parts",
        "plan",
    },
    "records": {
        "adapters",
        "costs",
        "round",
        "storage",
        "data",
        "distributed",
        "models",
        "plan",
        "report",
        "server",
        "run_spec",
    },
    "simulation": {
        "adapters",
        "costs",
        "round",
        "storage",
        "data",
        "distributed",
        "models",
        "parts",
        "plan",
        "plan_checks",
        "report",
        "engines",
        "server",
        "run_spec",
        "records",
    },
    "experiments": {
        "adapters",
        "errors",
        "options",
        "randomness",
        "costs",
        "round",
        "storage",
        "data",
        "distributed",
        "models",
        "parts",
        "methods",
        "plan",
        "report",
        "engines",
        "server",
        "run_spec",
        "records",
        "simulation",
    },
    "__init__": {
        "options",
        "round",
        "data",
        "models",
        "parts",
        "plan",
        "report",
        "methods",
        "simulation",
        "experiments",
    },
    "export": {"experiments"},
}
"""What a folder or a file of fedsim may import beside itself, least first. CONTRIBUTING.md shows it."""

LIGHTNING = (
    "fedsim/models/client_module.py",
    "fedsim/engines/",
    "fedsim/storage/loggers.py",
    "fedsim/distributed/launch.py",
    "fedsim/simulation.py",
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


def test_a_file_imports_only_what_its_place_allows():
    assert {unit(name) for name in FILES} == MAY_IMPORT.keys()
    wrong = [
        (name, module)
        for name in FILES
        for module in own_imports(name)
        if unit(module) not in MAY_IMPORT[unit(name)] | {unit(name)} and module != "fedsim"
    ]
    assert not wrong


def test_the_table_itself_has_no_circles_and_allows_nothing_that_is_not_needed():
    above: set[str] = set()
    for place, allowed in MAY_IMPORT.items():
        assert allowed <= above, f"{place} stands before what it imports"
        above.add(place)
    used = {
        place: {unit(module) for name in FILES if unit(name) == place for module in own_imports(name)}
        for place in above
    }
    assert not {place: allowed - used[place] for place, allowed in MAY_IMPORT.items() if allowed - used[place]}


def test_no_chain_of_imports_is_longer_than_ten():
    length: dict[str, int] = {}
    for place, allowed in MAY_IMPORT.items():
        length[place] = 1 + max((length[other] for other in allowed), default=0)
    assert max(length.values()) <= 10


def test_contributing_shows_the_table():
    text = (ROOT / "CONTRIBUTING.md").read_text().split("Who may import whom")[1].split("`lightning` is imported")[0]
    shown = re.split(r"\n    (?=\w)", text)[1:]
    rows = {row.split()[0]: set(re.split(r",\s*", row.split(maxsplit=1)[1].strip())) - {"nothing"} for row in shown}
    assert rows == MAY_IMPORT


def test_methods_know_nothing_of_each_other():
    methods = [name for name in FILES if unit(name) == "methods" and not name.endswith("__init__.py")]
    assert len(methods) > 10
    assert not [(name, module) for name in methods for module in own_imports(name) if unit(module) == "methods"]


def test_imports_are_absolute():
    assert not [(name, module) for name in FILES for module in imports(TREES[name]) if module.startswith(".")]


def test_lightning_is_imported_only_where_processes_devices_and_loggers_are():
    users = {
        name
        for name in TREES
        if any(module.split(".")[0] in ("lightning", "pytorch_lightning") for module in imports(TREES[name]))
    }
    assert not [name for name in users if not name.startswith(LIGHTNING)]


def test_nothing_imports_a_recipe():
    names = FILES | BENCHMARKS
    assert not [name for name in names for module in imports(TREES[name]) if module.split(".")[0] == "recipes"]


def test_recipes_and_benchmarks_use_public_names_only():
    private = [
        (name, part)
        for name in RECIPES | BENCHMARKS
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fedsim"
        for part in (*node.module.split("."), *(alias.name for alias in node.names))
        if part.startswith("_")
    ]
    assert not private


# budgets


def lines_allowed(name: str) -> int:
    if name.startswith("recipes/"):
        return 70
    return 120 if unit(name) == "methods" else 300


def test_files_stay_within_their_budget_of_lines():
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in TREES}
    assert not {name: length for name, length in lengths.items() if length > lines_allowed(name)}


def test_functions_have_at_most_fifty_lines():
    lengths = {
        (name, path): node.end_lineno - node.lineno + 1
        for name, tree in TREES.items()
        for path, node in definitions(tree)
        if not isinstance(node, ast.ClassDef)
    }
    assert not {where: length for where, length in lengths.items() if length > 50}


# explanations


def silent(tree: ast.Module) -> set[str]:
    """Public classes and functions that do not say what they are; those inside functions need not."""
    found = {
        path
        for path, node in definitions(tree)
        if not any(part.startswith("_") for part in path.split(".")) and not ast.get_docstring(node)
    }
    functions = [(path, node) for path, node in definitions(tree) if not isinstance(node, ast.ClassDef)]
    return found - {f"{outer}.{inner}" for outer, node in functions for inner, _ in definitions(node)}


def test_every_module_and_every_public_class_and_function_says_what_it_is():
    assert not [name for name, tree in TREES.items() if not ast.get_docstring(tree)]
    assert not {name: silent(tree) for name, tree in TREES.items() if silent(tree)}


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


def test_no_file_of_the_package_branches_on_a_method():
    assert not {name: branches_on_methods(TREES[name]) for name in FILES if branches_on_methods(TREES[name])}


BRANCHES = (
    "if method == 1: pass",
    "isinstance(method, X)",
    "isinstance(x, HiLoRA)",
    "name == 'fedit'",
    "self.method is Local",
    "match method:\n  case _: pass",
)


def test_such_a_branch_would_be_seen():
    assert not [text for text in BRANCHES if not branches_on_methods(ast.parse(text))]


def test_methods_are_plain_frozen_dataclasses_without_a_base_but_for_options_that_several_share():
    for name, tree in TREES.items():
        for node in tree.body if name in FILES and unit(name) == "methods" else ():
            if isinstance(node, ast.ClassDef):
                assert {ast.unparse(base) for base in node.bases} <= {
                    "UnequalRanks",
                    "OverResidual",
                    "UnequalDepths",
                }, name
                assert [ast.unparse(decorator) for decorator in node.decorator_list] == [
                    "dataclass(frozen=True, kw_only=True)"
                ]
