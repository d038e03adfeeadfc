"""Prompts and answers become tokens of which only the answer's are learnt."""

import pytest
import torch

from fedsim.data.instructions.prompts import TEMPLATES, ByteTokenizer, tokens_of

BYTES = ByteTokenizer()
START, STOP = BYTES.start, BYTES.stop


def row(tokens, place) -> tuple[list[int], list[int]]:
    return tokens.inputs[place].tolist(), tokens.targets[place].tolist()


def test_each_token_of_the_answer_is_the_target_of_the_token_before_it_and_the_stop_comes_last():
    tokens = tokens_of(["ab", "c"], ["xy", "z"], BYTES, 16)
    a, b, c, x, y, z = b"abcxyz"
    assert row(tokens, 0) == ([START, a, b, x, y], [-100, -100, x, y, STOP])
    assert row(tokens, 1) == ([START, c, z, STOP, STOP], [-100, z, STOP, -100, -100])
    assert (tokens.inputs.dtype, tokens.targets.dtype) == (torch.int32, torch.int32)


def test_without_cuts_nothing_but_padding_is_reported():
    notes = tokens_of(["ab", "c"], ["xy", "z"], BYTES, 16).notes
    assert notes == {
        "samples": 2, "longest": 5, "prompts_cut": 0, "answers_cut": 0, "tokens": 8, "padding_share": 0.2,
    }  # fmt: skip


def test_a_long_prompt_loses_its_beginning_and_keeps_room_for_the_answer():
    tokens = tokens_of(["a long prompt"], ["yes"], BYTES, 8)
    # eight places and one token that is only a target: start, prompt, "yes", stop
    assert row(tokens, 0)[0] == [START, *b"ompt", *b"yes"]
    assert row(tokens, 0)[1] == [-100] * 4 + [*b"yes", STOP]
    assert (tokens.notes["prompts_cut"], tokens.notes["answers_cut"]) == (1, 0)


def test_a_long_answer_loses_its_end_and_its_stop_but_only_what_prompt_and_half_of_the_room_do_not_leave():
    tokens = tokens_of(["q", "a long prompt"], ["0123456789"] * 2, BYTES, 8)
    assert row(tokens, 0) == ([START, *b"q012345"], [-100, *b"0123456"])
    assert row(tokens, 1) == ([START, *b"ompt012"], [-100] * 4 + [*b"0123"])
    assert (tokens.notes["prompts_cut"], tokens.notes["answers_cut"]) == (1, 2)


@pytest.mark.parametrize("size", range(4, 12))
def test_no_sample_is_longer_than_it_may_be_and_each_has_something_to_ask_and_to_answer(size):
    texts = ["", "a", "bcd", "efghijkl" * 3]
    tokens = tokens_of([p for p in texts for _ in texts], texts * 4, BYTES, size)
    assert tokens.inputs.shape[1] <= size
    is_answer = tokens.targets != -100
    assert is_answer.any(1).all()
    first = is_answer.int().argmax(1)
    assert (tokens.inputs[:, 0] == START).all()
    for place in range(16):
        asked = tokens.inputs[place, : first[place] + 1].tolist()
        given = [token for token in tokens.targets[place].tolist() if token != -100]
        assert bytes(asked[1:]).decode() == texts[place // 4][len(texts[place // 4]) - len(asked[1:]) :]
        assert [*texts[place % 4].encode(), STOP][: len(given)] == given


def test_text_survives_bytes_and_special_tokens_are_no_text():
    (tokens,) = BYTES.encode(["naïve ☂"])
    assert BYTES.decode([START, *tokens, STOP]) == "naïve ☂"


def test_templates_put_the_answer_last_and_the_input_only_where_there_is_one():
    for template in TEMPLATES.values():
        assert "Do it." in template.prompt("Do it.", "")
        assert template.prompt("Do it.", "x {y}").index("Do it.") < template.prompt("Do it.", "x {y}").index("x {y}")
    assert TEMPLATES["plain"].prompt("Do it.", "that") == "Do it.\nthat\n"
    assert TEMPLATES["alpaca-short"].prompt("Do it.", "") == "### Instruction:\nDo it.\n\n### Response:\n"
    assert TEMPLATES["alpaca"].prompt("Do it.", "").startswith("Below is an instruction that describes a task. Write")


def test_a_length_without_room_is_refused():
    with pytest.raises(ValueError, match=r"max_length is 3; it must be 4 or more \(--data.max-length\)"):
        tokens_of(["a"], ["b"], BYTES, 3)
