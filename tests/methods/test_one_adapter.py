"""Methods with one adapter for all: limits in which they are another method, and dense formulas for their servers."""

import pytest
from test_personalised import adapters

import fedsim

EQUAL = fedsim.LoraRanks(values=(2,))
"""What a method of unequal LoRA ranks takes where they are all 2."""


def costs_of(result, column: str) -> list[int]:
    """The bytes of every round, summed over clients."""
    rows = [row.split(",") for row in (result.folder / "costs.csv").read_text().splitlines()]
    head, rounds = rows[0], sorted({int(row[0]) for row in rows[1:]})
    return [sum(int(row[head.index(column)]) for row in rows[1:] if int(row[0]) == k) for k in rounds]


# RoLoRA


def test_rolora_that_never_turns_is_ffa_lora(tiny_run):
    options = {"lora_alpha": None, "head_policy": "global"}
    found = tiny_run("rolora", method=fedsim.RoLoRA(lora_rank=2, turns=("B",), **options))
    expected = tiny_run("ffa", method=fedsim.FFALoRA(ranks=EQUAL, **options))
    assert found.digest == expected.digest
    assert found.summary["bytes.down"] == expected.summary["bytes.down"]


@pytest.mark.parametrize("engine", ["batched", "sequential"])
def test_rolora_moves_one_factor_a_round_and_sends_half_of_what_fedit_sends(tiny_run, engine):
    options = {"lora_rank": 2, "head_policy": "frozen"}
    held = []
    for rounds in (1, 2, 3):
        result = tiny_run(f"{rounds}", method=fedsim.RoLoRA(**options), rounds=rounds, engine=engine)
        held.append(adapters(result))
    assert {key.split("/")[1][0] for key in held[0]} == {"B"}, "A is at its start"
    for before, after, moved in ((held[0], held[1], "A"), (held[1], held[2], "B")):
        for key in after:
            assert (key in before and bool((before[key] == after[key]).all())) == (f"/{moved}|" not in key), key
    fedit = tiny_run("fedit", method=fedsim.FedIT(**options), engine=engine)
    for column in ("bytes_up", "bytes_down"):
        assert [2 * size for size in costs_of(result, column)] == costs_of(fedit, column)
