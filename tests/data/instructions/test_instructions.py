"""Instruction tables become federations: by the data's own clients, or each kind of task by itself."""

import json
import os
import re
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fedsim.data.builtin.toy_instructions import TASKS, ToyInstructions, toy_instructions
from fedsim.data.instructions.instructions import Instructions, instruction_clients
from fedsim.data.instructions.prompts import ByteTokenizer
from fedsim.data.instructions.registry import INSTRUCTION_SETS, InstructionSetName
from fedsim.data.instructions.tables import texts_of as texts_of_table

pytestmark = pytest.mark.usefixtures("own_cache")
BYTES = ByteTokenizer()
DATA = os.environ.get("FEDSIM_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="FEDSIM_DATA does not name a folder of data sets")


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def write(path: Path, **columns: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def texts_of(data, rows) -> list[tuple[str, str]]:
    """Prompt and answer of each of these rows."""
    found = []
    for row in rows.tolist():
        inputs, targets = data.inputs[row], data.targets[row]
        first = int((targets != -100).int().argmax())
        answer = [token for token in targets.tolist() if token != -100]
        found.append((BYTES.decode(inputs[: first + 1].tolist()), BYTES.decode(answer)))
    return found


@pytest.fixture
def by_client(tmp_path: Path) -> Path:
    """Clients 10, 2 and 3 with four training and two test samples each; one without an answer, one to validate."""
    clients = [10] * 6 + [2] * 6 + [3] * 6 + [2, 2]
    split = (["train"] * 4 + ["test"] * 2) * 3 + ["train", "eval"]
    task = ["sum 1"] * 6 + ["sum 2"] * 6 + ["name 1"] * 6 + ["sum 2"] * 2
    answers = [f"a{row}" for row in range(18)] + [" ", "a19"]
    columns = {"client": clients, "split": split, "kind": task, "output": answers}
    return write(tmp_path / "t.parquet", instruction=[f"i{row}" for row in range(20)], about=["x"] * 20, **columns)


OWN = {"task_column": "kind", "client_column": "client", "split_column": "split", "template": "plain"}


def test_clients_of_the_data_are_numbered_in_order_and_have_their_own_samples(by_client: Path):
    data = instruction_clients(Instructions(path=by_client, **OWN), BYTES, rng())
    assert [texts_of(data, rows) for rows in data.train] == [
        [(f"i{row}\n", f"a{row}") for row in range(start, start + 4)] for start in (6, 12, 0)
    ]
    assert [texts_of(data, rows) for rows in data.test] == [
        [(f"i{row}\n", f"a{row}") for row in range(start, start + 2)] for start in (10, 16, 4)
    ]
    assert [data.domain_names[domain] for domain in data.domains] == ["sum 2", "name 1", "sum 1"]


def test_samples_without_an_answer_are_left_out_and_counted_and_other_splits_are_only_left_out(by_client: Path):
    data = instruction_clients(Instructions(path=by_client, **OWN), BYTES, rng())
    assert data.notes["samples_without_answer"] == 1
    assert data.notes["samples"] == 18 == len(data.inputs)


def test_kinds_of_task_are_chosen_by_the_beginning_of_their_names(by_client: Path):
    data = instruction_clients(Instructions(path=by_client, tasks=("name", "sum 1"), **OWN), BYTES, rng())
    assert data.domain_names == ("name", "sum 1")
    assert data.domains == (0, 1)
    with pytest.raises(ValueError, match=r"no sample with an answer .*'name 1', 'sum 1', 'sum 2'"):
        instruction_clients(Instructions(path=by_client, tasks=("other",), **OWN), BYTES, rng())


def test_an_input_column_is_put_into_the_prompt(by_client: Path):
    data = instruction_clients(Instructions(path=by_client, input_column="about", **OWN), BYTES, rng())
    assert texts_of(data, data.train[0])[0][0] == "i6\nx\n"


def test_at_most_so_many_samples_of_a_client_are_kept(by_client: Path):
    options = Instructions(path=by_client, train_per_client=3, test_per_client=1, **OWN)
    data = instruction_clients(options, BYTES, rng())
    assert [len(rows) for rows in data.train] == [3] * 3
    assert [len(rows) for rows in data.test] == [1] * 3
    assert len(data.inputs) == 12


def test_without_clients_each_kind_of_task_has_some_and_a_share_is_held_out(tmp_path: Path):
    n = 120
    path = write(
        tmp_path / "t.parquet",
        instruction=[f"i{row}" for row in range(n)],
        output=["yes"] * n,
        kind=["a", "b", "c"] * (n // 3),
    )
    options = Instructions(path=path, task_column="kind", template="plain", test_share=0.25, clients_per_task=2)
    data = instruction_clients(options, BYTES, rng())
    assert data.domains == (0, 0, 1, 1, 2, 2)
    for domain in range(3):
        clients = [client for client in range(6) if data.domains[client] == domain]
        rows = torch.cat([data.train[k] for k in clients] + [data.test[k] for k in clients])
        assert sorted(int(prompt[1:]) % 3 for prompt, _ in texts_of(data, rows)) == [domain] * 40
        assert sum(len(data.test[k]) for k in clients) == 10
    rows = torch.cat([*data.train, *data.test])
    assert sorted(rows.tolist()) == list(range(n))


def test_where_clients_are_known_a_share_of_each_ones_samples_is_held_out(tmp_path: Path):
    """Ten clients take turns: every tenth sample of the one kind of task would be one client's."""
    n = 200
    columns = {"instruction": [f"i{row}" for row in range(n)], "output": ["yes"] * n}
    path = write(tmp_path / "t.parquet", **columns, who=[f"c{row % 10}" for row in range(n)])
    data = instruction_clients(Instructions(path=path, client_column="who", template="plain"), BYTES, rng())
    assert [(len(train), len(test)) for train, test in zip(data.train, data.test, strict=True)] == [(18, 2)] * 10


@pytest.mark.parametrize(("column", "name"), [("client", "client"), ("kind", "task"), ("split", "split")])
def test_a_sample_without_client_task_or_split_is_refused(tmp_path: Path, by_client: Path, column: str, name: str):
    table = pq.read_table(by_client).to_pydict()
    table[column][3] = None
    with pytest.raises(ValueError, match=rf"has empty entries in its column '{column}' \(--data.{name}-column\)"):
        instruction_clients(Instructions(path=write(tmp_path / "n.parquet", **table), **OWN), BYTES, rng())


def test_of_a_file_without_a_wanted_kind_one_sample_of_each_is_read():
    table = pa.table({"output": ["x"] * 6, "kind": ["b", "a", "b", "a", "b", "c"]})
    columns = {"answer": "output", "task": "kind"}
    assert texts_of_table(table, "t", columns, ("other",))["task"].to_pylist() == ["b", "a", "c"]
    assert texts_of_table(table, "t", columns, ("b",))["task"].to_pylist() == ["b", "b", "b"]


def test_lines_of_json_in_folders_of_splits_are_read_as_flan_has_them(tmp_path: Path):
    for split, count in (("train", 20), ("validation", 5), ("test", 10)):
        for name in ("common_gen", "other_task"):
            file = tmp_path / split / f"{name}_10templates_{split}.jsonl"
            file.parent.mkdir(exist_ok=True)
            lines = [{"inputs": f"{split} {k}", "targets": "t", "task": f"{name}:1.0.0"} for k in range(count)]
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = {"instruction_column": "inputs", "answer_column": "targets", "task_column": "task"}
    options = Instructions(path=tmp_path, tasks=("common_gen",), clients_per_task=2, template="plain", **columns)
    data = instruction_clients(options, BYTES, rng())
    for tables, split, count in ((data.train, "train", 20), (data.test, "test", 10)):
        prompts = [prompt for prompt, _ in texts_of(data, torch.cat(list(tables)))]
        assert sorted(prompts) == sorted(f"{split} {k}\n" for k in range(count))


def test_what_is_missing_is_named(tmp_path: Path, by_client: Path):
    missing = r"not to be had: --data.path 'nowhere' is no file or folder; .*--data.path, or .*\(--data.dataset"
    with pytest.raises(ValueError, match=missing):
        instruction_clients(Instructions(path=Path("nowhere")), BYTES, rng())
    with pytest.raises(ValueError, match=r"--data.path is not given; .*--data.path, or .*--data.dataset"):
        instruction_clients(Instructions(), BYTES, rng())
    with pytest.raises(ValueError, match=r"no column 'prompt' \(--data.instruction-column\); it has \['instruction'"):
        instruction_clients(Instructions(path=by_client, instruction_column="prompt"), BYTES, rng())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no parquet, no JSON and no CSV files"):
        instruction_clients(Instructions(path=tmp_path / "empty"), BYTES, rng())
    (tmp_path / "empty" / "half.parquet").write_bytes(by_client.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"half.parquet' is damaged"):
        instruction_clients(Instructions(path=tmp_path / "empty"), BYTES, rng())
    with pytest.raises(ValueError, match=r"beams is 0; .*max_length is 2; .*min_train is -1; .*\(--data\.\*\)"):
        Instructions(path=by_client, beams=0, max_length=2, min_train=-1)


def test_toy_instructions_need_nothing_and_no_client_tests_on_what_it_trained_on():
    data = toy_instructions(ToyInstructions(), rng())
    assert data.n_clients == 8
    for client in range(8):
        train, test = texts_of(data, data.train[client]), texts_of(data, data.test[client])
        assert (len(train), len(test)) == (40, 8)
        assert not set(train) & set(test)
        task = TASKS[data.domains[client]]
        for prompt, answer in train:
            assert prompt.startswith(f"{task}\n")
            word = prompt.split("\n")[1]
            assert answer == {"repeat": word, "reverse": word[::-1], "first letter": word[:1]}.get(task, word.upper())


@needs_data
def test_natural_instructions_have_a_kind_of_task_for_each_of_their_hundred_clients():
    options = Instructions(
        path=Path("text/natural_instructions_fed"), input_column="input", task_column="category",
        client_column="client", split_column="split", train_per_client=8, test_per_client=2, max_length=400,
    )  # fmt: skip
    data = instruction_clients(options, BYTES, rng())
    assert data.n_clients == 100
    assert len(set(data.domains)) == 100
    assert data.notes["prompts_cut"] > 0


@needs_data
def test_dolly_has_eight_kinds_of_task():
    few = {"train_per_client": 8, "test_per_client": 2, "clients_per_task": 1}
    data = instruction_clients(Instructions(dataset="dolly", path=Path("text/dolly"), **few), BYTES, rng())
    assert data.n_clients == 8
    assert "closed_qa" in data.domain_names


def test_a_share_is_held_out_too_where_there_are_training_files_only(tmp_path: Path):
    write(tmp_path / "train.parquet", instruction=["i"] * 40, output=["yes"] * 40)
    data = instruction_clients(Instructions(path=tmp_path, test_share=0.25), BYTES, rng())
    assert sum(map(len, data.test)) == 10


# data sets by name


NAMED = {"template": "plain", "clients_per_task": 1, "min_test": 1}


def prompts_of(data, tables) -> list[str]:
    return sorted(prompt for prompt, _ in texts_of(data, torch.cat(list(tables))))


def no_hub(name: str) -> None:
    raise AssertionError(f"{name} was looked for on the hub")


def test_the_options_offer_exactly_the_known_sets():
    assert set(InstructionSetName.__args__) == INSTRUCTION_SETS.keys() | {"own"}


def test_what_is_given_is_kept_and_what_is_left_out_comes_from_the_set():
    dolly = Instructions(dataset="dolly", input_column="instruction").resolved()
    columns = (dolly.instruction_column, dolly.input_column, dolly.answer_column, dolly.task_column)
    assert columns == ("instruction", "instruction", "response", "category")
    assert (dolly.hub, dolly.path, dolly.client_column) == ("databricks/databricks-dolly-15k", None, "")
    own = Instructions().resolved()
    assert (own.instruction_column, own.input_column, own.answer_column, own.hub) == ("instruction", "", "output", "")


def test_a_known_set_is_found_in_the_folder_of_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = ("instruction", "context", "response", "category")
    lines = [dict(zip(names, (f"i{k}", "c", f"a{k}", "qa"), strict=True)) for k in range(20)]
    file = tmp_path / "databricks-dolly-15k" / "databricks-dolly-15k.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", no_hub)
    data = instruction_clients(Instructions(dataset="dolly", **NAMED), BYTES, rng())
    assert prompts_of(data, [*data.train, *data.test]) == sorted(f"i{k}\nc\n" for k in range(20))
    assert data.domain_names == ("qa",)


def test_a_known_set_comes_from_the_hub_where_no_folder_has_it(monkeypatch: pytest.MonkeyPatch):
    def split(name: str, count: int) -> datasets.Dataset:
        tasks = ["common_gen:1.0"] * count + ["other"] * 3
        rows = {"inputs": [f"{name} {k}" for k in range(count + 3)], "targets": ["t"] * (count + 3), "task": tasks}
        return datasets.Dataset.from_dict(rows)

    splits = datasets.DatasetDict({name: split(name, n) for name, n in (("train", 9), ("validation", 5), ("test", 4))})
    asked = []
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: asked.append(name) or splits)
    data = instruction_clients(Instructions(dataset="flan", tasks=("common_gen",), **NAMED), BYTES, rng())
    assert asked == ["Muennighoff/flan"]
    assert prompts_of(data, data.train) == [f"train {k}\n" for k in range(9)]
    assert prompts_of(data, data.test) == [f"test {k}\n" for k in range(4)]


@pytest.mark.parametrize("kind", [ConnectionError, datasets.exceptions.DatasetNotFoundError])
def test_what_was_tried_and_the_command_that_gets_a_set_are_said(kind: type, monkeypatch: pytest.MonkeyPatch):
    def refuse(name: str) -> None:
        raise kind("no network\nhere")

    monkeypatch.setenv("FEDSIM_DATA", "/nowhere")
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    tried = r"--data.path is not given; FEDSIM_DATA is '/nowhere', without 'flan'; .*\(no network\)\. .*"
    with pytest.raises(
        ValueError, match=tried + r"`hf download --repo-type dataset Muennighoff/flan --local-dir flan`"
    ):
        instruction_clients(Instructions(dataset="flan"), BYTES, rng())


def test_natural_instructions_of_the_hub_hold_out_of_each_task_and_ask_each_question_once(
    monkeypatch: pytest.MonkeyPatch,
):
    def split(task: str) -> datasets.Dataset:
        questions = [f"q{k}" for k in range(20) for _ in range(2)]
        answers = [f"a{k}" for k in range(40)]
        rows = {"task_name": [task] * 40, "definition": ["d"] * 40, "inputs": questions, "targets": answers}
        return datasets.Dataset.from_dict(rows)

    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    splits = datasets.DatasetDict(train=split("task1"), test=split("task2"))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits)
    data = instruction_clients(Instructions(dataset="natural-instructions", **NAMED), BYTES, rng())
    assert (data.domain_names, data.domains) == (("task1", "task2"), (0, 1))
    for train, test in zip(data.train, data.test, strict=True):
        assert prompts_of(data, [train, test]) == sorted(f"d\nq{k}\n" for k in range(20))
        assert {answer for _, answer in texts_of(data, torch.cat([train, test]))} == {f"a{2 * k}" for k in range(20)}
        assert len(test) == 2


def test_another_json_and_a_damaged_one_are_named(tmp_path: Path):
    file = tmp_path / "t.json"
    damaged = "is damaged, empty or no json file"
    for content, message in (('{"instruction": "i", "out', damaged), ('{"a": 1}', "has no column 'instruction'")):
        file.write_text(content)
        with pytest.raises(ValueError, match=f"'{re.escape(str(file))}' .*{message}"):
            instruction_clients(Instructions(path=tmp_path), BYTES, rng())


# too few samples, and columns without texts


def test_the_least_samples_of_a_client_may_be_lowered(tmp_path: Path):
    path = write(tmp_path / "t.parquet", instruction=["i"] * 12, output=["yes"] * 12, kind=["a"] * 6 + ["b"] * 6)
    options = {"path": path, "task_column": "kind", "test_share": 0.34}
    advice = r"\(--data.clients-per-task, --data.min-train, --data.min-test\)"
    with pytest.raises(ValueError, match=r"Kind of task 'a': .* at least 4 and 2.*" + advice):
        instruction_clients(Instructions(**options), BYTES, rng())
    data = instruction_clients(Instructions(min_train=1, min_test=0, **options), BYTES, rng())
    assert data.domains == (0, 0, 1, 1)
    with pytest.raises(ValueError, match=r"Kind of task 'a' has 6 training and 0 test samples.*--data.test-share"):
        instruction_clients(Instructions(**options | {"test_share": 0.1}), BYTES, rng())


UNREADABLE = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (UNREADABLE, r"t.parquet' is damaged: .*Invalid UTF8"),
        (pa.nulls(1), r"t.parquet' has nothing but null in its column 'output', .*\(--data.answer-column\)"),
        (
            pa.array([["yes"]]),
            r"t.parquet' has nothing but list<.*> in its column 'output', .*\(--data.answer-column\)",
        ),
        (pa.array([{"text": "yes"}]), r"t.parquet' has nothing but struct<.*> in its column 'output', "),
        (pa.array([b"yes"]), r"t.parquet' has nothing but binary in its column 'output', "),
    ],
)
def test_a_column_that_has_no_texts_is_named_with_its_file(answers: pa.Array, message: str, tmp_path: Path):
    path = write(tmp_path / "t.parquet", instruction=["i"], output=answers)
    with pytest.raises(ValueError, match=message):
        instruction_clients(Instructions(path=path), BYTES, rng())


def test_an_input_may_be_missing_in_a_whole_file(tmp_path: Path):
    path = write(tmp_path / "t.parquet", instruction=["i"] * 20, about=pa.nulls(20), output=["yes"] * 20)
    data = instruction_clients(Instructions(path=path, input_column="about", **NAMED), BYTES, rng())
    assert prompts_of(data, data.test) == ["i\n"] * 2
