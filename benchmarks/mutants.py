"""What the default tests notice: the share of small changes of fedsim's code that make a test fail; and the others.

    make mutants                        # 60 mutants, about half an hour; started again, it goes on where it was
    make mutants ARGS="--count 200 --seed 1"

A mutant is one change of Cosmic Ray's: a comparison, an operator, a constant, a condition. A file is drawn by its size,
a place in it evenly, then one of the changes there. Each runs in a copy of the checkout against the default tests that
belong to its folder, until the first fails, or to the time limit, which counts as caught.
"""

import ast
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import tyro
from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[1]
RUN = ("tests/server", "tests/costs/test_devices.py", "tests/test_simulation.py")
TESTS = {
    "fedsim/adapters": ("tests/adapters", "tests/engines/test_engines_agree.py"),
    "fedsim/parts": ("tests/parts", "tests/methods"),
    "fedsim/methods": ("tests/methods",),
    "fedsim/engines": ("tests/engines",),
    "fedsim/plan.py": ("tests/test_plan.py", "tests/methods"),
    "fedsim/server/workload.py": RUN,
    "fedsim/server/aggregator.py": RUN,
    "fedsim/records/recorder.py": ("tests/test_simulation.py", "tests/records/test_resume.py"),
    "fedsim/storage/run_folder.py": ("tests/records/test_resume.py", "tests/storage/test_disk.py"),
}
"""What is changed, and the tests that belong to it."""
OTHERS = re.compile(r"Variable|Decorator|Exception|Shift$|_Bit(And|Or|Xor)$|(Eq|E|Lt|Gt)_Is(Not)?$")
"""Changes that need to be told more, or end every test: bits of what is no whole number, identity of numbers."""
IMPORTS = ("lightning.fabric", "peft", "scipy.stats", "sklearn.cluster", "timm", "transformers")
"""What takes long to import, and is imported once."""
Place = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How many mutants to draw, and where what became of them is kept."""

    count: int = 60
    """Mutants to draw."""
    seed: int = 0
    """Of the draw."""
    limit: float = 900
    """Seconds that the tests of a mutant may take."""
    results: Path = ROOT / ".cache" / "mutants.jsonl"
    """One line for each; a mutant that has a line is not run again while its file is the same."""


@cache
def places(path: str) -> dict[Place, list[tuple[str, int]]]:
    """Return where a file can be changed, annotations apart, and the changes there: operator and its occurrence."""
    source, found = (ROOT / path).read_text(), {}
    hints = [hint for node in ast.walk(ast.parse(source)) for hint in annotations(node)]
    nodes = list(walk(get_ast(source)))
    for name in [name for name in operator_names() if not OTHERS.search(name)]:
        operator = get_operator(name)()
        positions = (position for node in nodes for position in operator.mutation_positions(node))
        for occurrence, place in enumerate(positions):
            if not any(start <= place[0] <= end for start, end in hints):
                found.setdefault(place, []).append((name, occurrence))
    return found


def annotations(node: ast.AST) -> Iterator[Place]:
    """Return where a node's own annotations are."""
    for name in ("annotation", "returns"):
        if (hint := getattr(node, name, None)) is not None:
            yield (hint.lineno, hint.col_offset), (hint.end_lineno, hint.end_col_offset)


def walk(node: object) -> Iterator[object]:
    """Return a node and all below it, in Cosmic Ray's order."""
    yield node
    for child in getattr(node, "children", ()):
        yield from walk(child)


def draw(options: Options) -> Iterator[dict]:
    """Return the mutants: file, line, operator, occurrence, the line before and after, and the file's hash."""
    rng, seen = random.Random(options.seed), set()
    files = [
        p for part in TESTS for p in sorted((ROOT / part).rglob("*.py") if (ROOT / part).is_dir() else [ROOT / part])
    ]
    while len(seen) < options.count:
        path = rng.choices(files, [file.stat().st_size for file in files])[0].relative_to(ROOT).as_posix()
        if not (found := places(path)) or (key := (path, *rng.choice(found[rng.choice(sorted(found))]))) in seen:
            continue
        seen.add(key)
        yield described(*key)


def described(path: str, name: str, occurrence: int) -> dict:
    """Return what a change of a file is, with the code that it leaves."""
    source = (ROOT / path).read_text()
    changed = mutate_code(source, get_operator(name)(), occurrence)
    lines = zip(source.splitlines(), changed.splitlines(), strict=False)
    line, (before, after) = next((number, pair) for number, pair in enumerate(lines, 1) if pair[0] != pair[1])
    sha256 = hashlib.sha256(source.encode()).hexdigest()
    shown = {"file": path, "line": line, "before": before.strip(), "after": after.strip()}
    return shown | {"operator": name, "occurrence": occurrence, "sha256": sha256, "code": changed}


def run_tests(copy: Path, tests: Sequence[str], limit: float | None) -> tuple[str, float]:
    """Run default tests in the copy; return "survived", "caught" or "too slow", and the seconds."""
    process, began = multiprocessing.get_context("fork").Process(target=in_copy, args=(copy, tests)), time.monotonic()
    process.start()
    process.join(limit)
    seconds = time.monotonic() - began
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return "too slow", seconds
    if process.exitcode == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise SystemExit(f"There are no tests in {' '.join(tests)}")
    return "caught" if process.exitcode else "survived", seconds


def in_copy(copy: Path, tests: Sequence[str]) -> None:
    """Run default tests in this process, a fork that has imported what is slow to import, and end it."""
    os.setsid()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    os.chdir(copy)
    sys.path[0] = str(copy)  # instead of this file's folder, in which tests would find other modules of their names
    os.environ |= {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    sys.dont_write_bytecode = True
    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests]))


def copied(folder: Path) -> Path:
    """Copy what git knows or does not ignore: nothing is ever changed in the checkout."""
    listed = subprocess.check_output(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, text=True)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def outcome(copy: Path, mutant: dict, limit: float) -> dict:
    """Change the file in the copy, run its tests and put it back."""
    path = copy / mutant["file"]
    source, code = path.read_bytes(), mutant.pop("code")
    try:
        path.write_text(code)
        result, seconds = run_tests(copy, tests_of(mutant["file"]), limit)
    finally:
        path.write_bytes(source)
    return mutant | {"outcome": result, "seconds": round(seconds, 1)}


def check_unchanged(copy: Path, results: Sequence[dict]) -> None:
    """Stop where tests fail without any change: a part of which no mutant survived may have none that pass."""
    for part, tests in TESTS.items():
        found = {mutant["outcome"] for mutant in results if mutant["file"].startswith(part)}
        if found and "survived" not in found and run_tests(copy, tests, None)[0] != "survived":
            raise SystemExit(f"These fail without any change: {' '.join(tests)}")


def tests_of(path: str) -> list[str]:
    """Return the test files that belong to a file, those that speak of most of what it defines first."""
    places = [ROOT / place for part, places in TESTS.items() if path.startswith(part) for place in places]
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("test_*.py")))]
    names = {getattr(node, "name", None) or "=" for node in ast.parse((ROOT / path).read_text()).body} - {"="}
    files.sort(key=lambda file: -sum(name in file.read_text() for name in names))
    return [file.relative_to(ROOT).as_posix() for file in files]


def main(options: Options) -> None:
    """Run the mutants that have no result yet; print the share that was caught and those that were not."""
    options.results.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    done = {(m["sha256"], m["operator"], m["occurrence"]): m for m in known}
    results = []
    for name in IMPORTS:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder, options.results.open("a") as file:
        copy = copied(Path(folder))
        for mutant in draw(options):
            key = (mutant["sha256"], mutant["operator"], mutant["occurrence"])
            if key not in done:
                done[key] = outcome(copy, mutant, options.limit)
                print(json.dumps(done[key]), file=file, flush=True)
            results.append(done[key])
            print(f"{len(results)} of {options.count}: {done[key]['outcome']}, {mutant['file']}", flush=True)
        check_unchanged(copy, results)
    survivors = [mutant for mutant in results if mutant["outcome"] == "survived"]
    print(f"caught {1 - len(survivors) / len(results):.0%} of {len(results)} (seed {options.seed}); survivors:")
    for mutant in sorted(survivors, key=lambda mutant: (mutant["file"], mutant["line"])):
        print(f"{mutant['file']}:{mutant['line']}\n  - {mutant['before']}\n  + {mutant['after']}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
