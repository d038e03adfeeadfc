"""An adapter folder from a stranger: what does not fit is one message, and reading takes a bounded time."""

import json
import os
import re
import time

import pytest
import torch
from safetensors.torch import save_file

from fedsim.adapters.peft_folder import CONFIG, KEY, WEIGHTS, read_adapter

SHAPES = {
    "blocks.0.q.weight": torch.Size((5, 4)),
    "blocks.1.q.weight": torch.Size((5, 4)),
    f"{'a' * 60}.weight": torch.Size((5, 4)),
}


@pytest.fixture
def folder(tmp_path):
    """Make a folder of one change of rank 2 at blocks.0.q and of rank 3 at blocks.1.q, but for what is given."""

    def make(config=(), tensors=(), text=None):
        ranks = {"blocks.0.q": 2, "blocks.1.q": 3}
        stored = {}
        for module, rank in ranks.items():
            stored[f"base_model.model.{module}.lora_A.weight"] = torch.ones(rank, 4)
            stored[f"base_model.model.{module}.lora_B.weight"] = torch.ones(5, rank)
        save_file(stored | dict(tensors), tmp_path / WEIGHTS)
        usual = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"1.q": 3}}
        (tmp_path / CONFIG).write_text(text or json.dumps(usual | dict(config)))
        return tmp_path

    return make


def test_scales_follow_the_patterns_as_peft_matches_them(folder):
    found = read_adapter(folder({"alpha_pattern": {"^q": 100, "blocks.1.q": 30}}), SHAPES)
    assert found.changes["blocks.0.q"].B.unique().tolist() == [2]
    assert found.changes["blocks.1.q"].B.unique().tolist() == [10]


@pytest.mark.parametrize(
    "key",
    ["blocks.1.q", "1.q", r"^blocks\.1\.q$", ".*1.q", r"blocks\.[0-9]+.q", r"blocks\.\d.(q|v)", "(?:1|2).q"],
)
def test_forms_that_name_modules_are_matched_as_peft_does(folder, key):
    from peft.utils.other import get_pattern_key

    modules = ("blocks.0.q", "blocks.1.q")
    is_meant = [get_pattern_key([key], module) == key for module in modules]
    found = read_adapter(folder({"alpha_pattern": {key: 30}}), SHAPES)
    expected = [(30 if is_in else 4) / rank for is_in, rank in zip(is_meant, (2, 3), strict=True)]
    assert [float(found.changes[module].B[0, 0]) for module in modules] == pytest.approx(expected)


WRONG_KEYS = ["(a+)+$", "(a*)*b", "(.|.)(.|.)(.|.)b", ".*.*.*b", "(?=a)", "a{9}", "a|b", r"(a)\1", "[a-z]q", "("]
WRONG_KEYS += ["x" * 201]


@pytest.mark.parametrize("key", WRONG_KEYS)
@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern"])
def test_a_key_that_could_take_for_ever_is_refused_by_what_is_allowed(folder, name, key):
    before = time.perf_counter()
    with pytest.raises(ValueError, match=rf"{name} is not allowed. A key is a module's name .* up to 200 characters"):
        read_adapter(folder({name: {key: 2}}), SHAPES)
    assert time.perf_counter() - before < 1


def test_the_worst_keys_that_are_allowed_are_matched_in_a_moment(folder):
    name = "a" * 60
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 4), f"{name}.lora_B.weight": torch.ones(5, 2)}
    keys = [f".*.*{'a' * 40}b{index}" for index in range(32)] + [f"({'|'.join('a' * 40)}).*b{i}" for i in range(32)]
    before = time.perf_counter()
    read_adapter(folder({"alpha_pattern": dict.fromkeys(keys, 1.0)}, tensors), SHAPES)
    assert time.perf_counter() - before < 2
    with pytest.raises(ValueError, match="in up to 64 keys"):
        read_adapter(folder({"alpha_pattern": dict.fromkeys([*keys, ".*c"], 1.0)}), SHAPES)


def test_checking_a_key_takes_a_moment_too():
    before = time.perf_counter()
    for text in ("(" + "a|" * 99, ".*" * 99 + "!", "." * 199 + "!", r"\d+" * 60 + "!"):
        assert not KEY.fullmatch(text)
    assert time.perf_counter() - before < 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 0}, "r is 0; it must be a whole number from 1"),
        ({"r": 2.0}, r"r is 2.0; it must be a whole number from 1"),
        ({"r": True}, "r is True"),
        ({"r": None}, "r is None"),
        ({"r": 10**400}, r"r is 1000.*\.\.\."),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan; it must be a number above 0"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"lora_alpha": -1}, "lora_alpha is -1"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"lora_alpha": [16]}, r"lora_alpha is \[16\]"),
        ({"rank_pattern": ["q"]}, r"rank_pattern is \['q'\]; it must map names of modules"),
        ({"rank_pattern": {"1.q": "3"}}, r"rank_pattern\['1.q'\] is '3'"),
        ({"alpha_pattern": {"1.q": float("inf")}}, r"alpha_pattern\['1.q'\] is inf"),
        ({"use_rslora": "no"}, "use_rslora is 'no'; it must be true or false"),
        ({"bias": ["all"]}, "trained biases"),
        ({"peft_type": ["LORA"]}, "its peft_type is not LORA"),
    ],
)
def test_a_number_out_of_range_or_of_a_wrong_type_is_one_message(folder, config, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_adapter(folder(config), SHAPES)
    assert CONFIG in str(caught.value)


A, B = (f"base_model.model.blocks.0.q.lora_{factor}.weight" for factor in "AB")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({A: torch.full((2, 4), 3e30), B: torch.full((5, 2), 3e30)}, "product is too large for 32 bits"),
        ({A: torch.full((2, 4), torch.nan)}, "not finite"),
        ({A: torch.ones(2, 4, dtype=torch.int64)}, r"of torch.int64, not of real numbers"),
        ({A: torch.ones(8)}, r"is \(8,\), and \(2, 4\) is needed"),
        ({A.removeprefix("base_model.model."): torch.ones(2, 4)}, "is there twice"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, tensors, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_adapter(folder(tensors=tensors), SHAPES)
    assert WEIGHTS in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '"text"', "[1]", "\0", "{", "x" * (5 * 2**20)])
def test_a_configuration_that_is_none_is_one_message(folder, text):
    with pytest.raises(ValueError, match=CONFIG):
        read_adapter(folder(text=text), SHAPES)


def test_a_pipe_in_place_of_a_file_does_not_hang(folder):
    path = folder()
    for name in (WEIGHTS, CONFIG):
        (path / name).unlink()
        os.mkfifo(path / name)
        with pytest.raises(ValueError, match=re.escape(name)):
            read_adapter(path, SHAPES)
