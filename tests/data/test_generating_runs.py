"""Whole runs that generate: a small language model learns, federatedly, to follow instructions."""

import csv
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from language_models import tiny_llama

import fedsim
from fedsim.data.builtin.toy_instructions import ToyInstructions, toy_instructions
from fedsim.data.instructions.samples import Texts, Wording, federation
from fedsim.models.causal import causal_backbone, causal_tokenizer
from fedsim.models.client_module import ClientModule
from fedsim.models.sites import find_sites
from fedsim.parts.tree import TreeCuts
from fedsim.report.evaluation import STATISTICS

needs_data = pytest.mark.skipif(not os.environ.get("FEDSIM_DATA"), reason="FEDSIM_DATA names no folder of data sets")
SAY = {"greet": "Hello, my friend!", "thank": "Thank you so much.", "refuse": "No, I do not want to."}
WHOM = (
    "cat dog bird fish tree house ball boat car duck frog bear cake hat book bed door box toy sun moon star rain snow "
    "river park girl boy mom dad friend lion mouse bunny horse cow sheep apple banana cookie"
)


def polite_clients(tokenizer) -> fedsim.FederatedData:
    """Four clients who greet, thank and refuse; whom they meet in the test they have never met before."""
    rng, instructions, whom, train, test = np.random.default_rng(0), [], [], [], []
    words = rng.permutation(WHOM.split())
    for _ in range(4):
        for tables, count, known in ((train, 24, words[:28]), (test, 9, words[28:])):
            tables.append(np.arange(len(whom), len(whom) + count))
            whom += list(rng.choice(known, count, replace=False))
            instructions += [list(SAY)[k % 3] for k in range(count)]
    answers, prompts = [SAY[name] for name in instructions], [f"{name} the" for name in instructions]
    texts = Texts(prompts, whom, answers, np.zeros(len(whom), int), ("toy",), None, None, 0)
    return federation(Wording(template="plain", max_new_tokens=14), texts, tokenizer, train, test)


@pytest.mark.slow
@needs_data
def test_a_small_llama_learns_a_shared_instruction_task_and_its_rouge_rises(tiny_run):
    data = polite_clients(causal_tokenizer("stories260k", "<s>"))
    untrained = causal_backbone("stories260k")
    inputs, targets = data.batch(data.test[0])
    before = data.task.score(ClientModule(untrained, find_sites(untrained)), inputs, targets).mean(0)[0]
    result = tiny_run(
        method=fedsim.FedIT(lora_rank=8, lora_alpha=16.0),
        backbone=causal_backbone("stories260k"),
        data=data,
        rounds=3,
        local=fedsim.LocalTraining(epochs=2, batch_size=8, learning_rate=2e-2),
    )
    # Measured: 0.07 before, 0.77 after one round, 1.00 after two; every answer right, stop included.
    assert before < 0.2
    assert result.summary["global.mean"] > 0.9
    assert result.summary["global.exact_match.mean"] > 0.8
    assert result.summary["global.rougeL.mean"] <= result.summary["global.mean"]


def table(result: fedsim.Result, name: str) -> list[dict[str, str]]:
    with (result.folder / name).open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run_on_toys(tiny_run):
    def run(name: str = "run", beams: int = 1, **changes):
        data = toy_instructions(ToyInstructions(train_per_client=6, test_per_client=3), np.random.default_rng(0))
        data = replace(data, task=replace(data.task, beams=beams))
        return tiny_run(name, backbone=tiny_llama(258), data=data, rounds=2, **changes)

    return run


def test_a_run_reports_each_metric_of_generation_as_it_reports_accuracy_elsewhere(run_on_toys):
    result = run_on_toys()
    (_, last), rows = table(result, "metrics.csv"), table(result, "clients.csv")
    assert list(rows[0])[5:-1] == ["rouge1", "rougeL", "exact_match", "loss", "perplexity"]
    for prefix in ("personal", "global"):
        for metric in ("", "rougeL.", "exact_match."):
            assert all(last[f"{prefix}.{metric}{name}"] for name in STATISTICS)
    of_last = [row for row in rows if row["round"] == "2" and row["evaluation"] == "global"]
    mean = np.mean([float(row["rougeL"]) for row in of_last])
    assert result.summary["global.rougeL.mean"] == pytest.approx(mean)
    assert result.summary["metric"] == "rouge1"


def test_what_was_cut_and_padded_is_in_the_log_and_on_the_screen(run_on_toys, capsys):
    result = run_on_toys()
    event = json.loads((result.folder / "events.jsonl").read_text().splitlines()[0])
    assert (event["round"], event["stage"]) == (1, "data")
    assert (event["prompts_cut"], event["answers_cut"], event["samples"]) == (0, 0, 72)
    assert 0 < event["padding_share"] < 0.5
    shown = capsys.readouterr().out.splitlines()[0]
    assert "data · samples 72" in shown
    assert "prompts_cut 0" in shown


def test_a_language_model_whose_run_is_repeated_gives_the_same_bits(run_on_toys):
    first, again = run_on_toys("first"), run_on_toys("again")
    assert first.digest == again.digest
    assert {row["rouge1"] for row in table(first, "clients.csv")} == {
        row["rouge1"] for row in table(again, "clients.csv")
    }


METHODS = {
    "hilora": fedsim.HiLoRA(lora_rank=2),
    "local": fedsim.Local(lora_rank=2),
    "ilora": fedsim.ILoRA(ranks=fedsim.LoraRanks(values=(1, 2))),
    "fedtreelora": fedsim.FedTreeLoRA(lora_rank=2, warmup_rounds=1, tree=TreeCuts(clusters=4)),
}


@pytest.mark.parametrize(("name", "beams"), [("hilora", 1), ("local", 1), ("ilora", 1), ("fedtreelora", 2)])
def test_other_methods_take_language_models_as_they_are_whichever_engine_runs(run_on_toys, name, beams):
    runs = [run_on_toys(engine, beams, method=METHODS[name], engine=engine) for engine in ("batched", "sequential")]
    assert runs[0].summary["global.clients"] == 8
    together, alone = (table(run, "clients.csv") for run in runs)
    for ours, theirs in zip(together, alone, strict=True):
        assert [ours[key] for key in ("client", "evaluation")] == [theirs[key] for key in ("client", "evaluation")]
        for metric in ("rouge1", "rougeL", "exact_match", "loss"):
            assert float(ours[metric]) == pytest.approx(float(theirs[metric]), rel=1e-4, abs=1e-6)
