"""Loading anything never executes code: no pickle, no evaluated text, no code from a model's or data set's author."""

import ast

import pytest
import torch
from test_architecture import FILES, RECIPES, TREES

from fedsim.storage.wire import unpack

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "code", "codeop", "imp"}
"""Those that run what they read, or might."""
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    "timm.models.load_state_dict", "torch.load", "torch.hub.load", "torch.jit.load",
    "torch.package.PackageImporter", "np.load", "numpy.load",
    "pd.read_pickle", "pandas.read_pickle", "runpy.run_path", "runpy.run_module", "importlib.import_module",
    "os.system", "os.popen",
}  # fmt: skip
HARMLESS = {
    ("torch.load", "weights_only", True),
    ("timm.models.load_state_dict", "weights_only", True),
    ("np.load", "allow_pickle", False),
}
FORBIDDEN_OPTIONS = {"trust_remote_code", "allow_pickle", "weights_only", "shell"}


def dangers(tree: ast.AST) -> set[str]:
    """What in a file loads or runs something that may be code."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in MODULES}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} if (node.module or "").split(".")[0] in MODULES else set()
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & METHODS
        elif isinstance(node, ast.Call):
            found |= dangers_of_call(node)
    return found


def dangers_of_call(node: ast.Call) -> set[str]:
    name = ast.unparse(node.func)
    given = {(name, word.arg, word.value.value) for word in node.keywords if isinstance(word.value, ast.Constant)}
    if given & HARMLESS:
        return set()
    found = {name} if name in METHODS or (isinstance(node.func, ast.Name) and name in CALLS) else set()
    for word in node.keywords:
        is_off = isinstance(word.value, ast.Constant) and word.value.value is (word.arg == "weights_only")
        if word.arg in FORBIDDEN_OPTIONS and not is_off:
            found.add(f"{name}({word.arg}={ast.unparse(word.value)})")
    return found


TYPED = {"fedsim/experiments/any_method.py": {"importlib.import_module"}}
"""What is imported since its name was typed, and never since a file says so (tests/experiments/test_any_method.py)."""


def test_nothing_that_is_loaded_can_execute_code():
    assert {name: found for name in FILES | RECIPES if (found := dangers(TREES[name]))} == TYPED


def test_such_lines_would_be_seen():
    texts = (
        "import pickle",
        "from pickle import loads",
        "import yaml.loader",
        "torch.load(path)",
        "from torch import load",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "eval(text)",
        "exec(compile(text, 'x', 'exec'))",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "load_dataset(name, trust_remote_code=anything)",
        "subprocess.run(text, shell=True)",
        "pd.read_pickle(path)",
    )
    assert not [text for text in texts if not dangers(ast.parse(text))]


def test_what_is_harmless_passes():
    texts = ("torch.load(path, weights_only=True)", "model.eval()", "re.compile('a')")
    assert not [text for text in texts if dangers(ast.parse(text))]


def test_a_pickle_in_place_of_a_checkpoint_is_not_opened(tiny_run, tmp_path):
    """With a valid manifest, as who means harm would write it."""
    import hashlib
    import json
    import pickle

    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    folder = tiny_run(rounds=1).folder
    payload = pickle.dumps(Harm())
    path = folder / "checkpoints" / "round-000001.safetensors"
    path.write_bytes(payload)
    manifest = json.loads(path.with_suffix(".json").read_text()) | {"sha256": hashlib.sha256(payload).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"round-000001.safetensors' is damaged"):
        tiny_run(rounds=1, resume=True)
    torch.save({"a": torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.raises(Exception, match=r"(?i)header"):
        unpack((tmp_path / "weights.pt").read_bytes())
    assert not (tmp_path / "harm").exists()
