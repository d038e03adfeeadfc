"""Answers of a batch are those that each prompt gets alone, from transformers or from trying all there are."""

from itertools import product
from unittest.mock import Mock

import pytest
import torch
from language_models import STOP, prompts_of, tiny_gpt2, tiny_llama
from torch import nn
from transformers import masking_utils
from transformers.utils import ModelOutput

from fedsim.models import decoding
from fedsim.models.client_module import ClientModule
from fedsim.models.decoding import Reader, beam_search, generate

MODELS = {"LLaMA": tiny_llama, "GPT-2": tiny_gpt2}
LENGTHS = [5, 1, 9, 3, 9, 2]


def cut(tokens) -> list[int]:
    """What stands before the first stop."""
    tokens = [int(token) for token in tokens]
    return tokens[: tokens.index(STOP)] if STOP in tokens else tokens


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("seed", range(4))
def test_greedy_answers_of_a_padded_batch_are_those_of_transformers_to_each_prompt_alone(kind, seed):
    model = MODELS[kind](seed=seed)
    prompts, lengths = prompts_of(LENGTHS, seed)
    found = generate(model, prompts, lengths, 8, STOP)
    assert found.shape == (len(LENGTHS), 8)
    for prompt, length, answer in zip(prompts, LENGTHS, found, strict=True):
        alone = prompt[:length].unsqueeze(0)
        mask = torch.ones_like(alone)
        expected = model.generate(alone, attention_mask=mask, max_new_tokens=8, do_sample=False)[0, length:]
        assert cut(answer) == cut(expected)


def test_some_answers_stop_early_and_others_do_not_and_nothing_follows_a_stop():
    answers = []
    for seed in range(4):
        answers += list(generate(tiny_llama(seed=seed), *prompts_of(LENGTHS, seed), 8, STOP))
    sizes = [len(cut(answer)) for answer in answers]
    assert min(sizes) < 8 == max(sizes)
    assert all((answer[size:] == STOP).all() for answer, size in zip(answers, sizes, strict=True))


@pytest.mark.parametrize("kind", MODELS)
def test_one_beam_is_greedy(kind):
    model, (prompts, lengths) = MODELS[kind](), prompts_of(LENGTHS)
    assert torch.equal(
        beam_search(model, prompts, lengths, 6, STOP, beams=1), generate(model, prompts, lengths, 6, STOP)
    )


@pytest.mark.parametrize("kind", MODELS)
def test_beams_of_a_padded_batch_are_those_of_each_prompt_alone(kind):
    model, (prompts, lengths) = MODELS[kind](), prompts_of(LENGTHS)
    together = generate(model, prompts, lengths, 6, STOP, beams=3)
    for row, length in enumerate(LENGTHS):
        alone = generate(model, prompts[row : row + 1, :length], lengths[row : row + 1], 6, STOP, beams=3)
        assert torch.equal(together[row], alone[0])


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_answers_are_the_same_with_what_spares_a_gpu_from_being_waited_for(monkeypatch, kind, beams):
    """The whole mask, and answers that are looked at every third token only."""
    model, (prompts, lengths) = MODELS[kind](), prompts_of(LENGTHS)
    expected = generate(model, prompts, lengths, 8, STOP, beams)
    monkeypatch.setattr(decoding, "attention_mask", lambda model, is_token, n: decoding.whole_mask(is_token, n))
    monkeypatch.setattr(decoding, "_all_done", lambda is_done, step: step % 3 == 2 and bool(is_done.all()))
    assert torch.equal(generate(model, prompts, lengths, 8, STOP, beams), expected)


@pytest.mark.parametrize("kind", MODELS)
def test_on_a_gpu_texts_that_are_read_at_once_are_not_looked_through_and_give_the_same_logits(kind, monkeypatch):
    """transformers' models look for texts packed into one row, for which the host would wait."""
    module, (prompts, _) = ClientModule(MODELS[kind](), []), prompts_of(LENGTHS)
    module.backbone.config.use_cache = False  # as those of fedsim's loader
    expected = module(prompts)
    looked = Mock(wraps=masking_utils.find_packed_sequence_indices)
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", looked)
    module(prompts)
    assert looked.called
    looked.reset_mock()
    monkeypatch.setattr(decoding, "_is_plain_on_gpu", lambda *_: True)
    assert torch.equal(module(prompts), expected)
    assert torch.equal(module(prompts), expected), "nothing is remembered"
    assert not looked.called


def test_what_is_no_language_model_is_told_nothing_besides(monkeypatch):
    monkeypatch.setattr(decoding, "_is_plain_on_gpu", lambda *_: True)
    assert decoding.whole_texts(nn.Linear(2, 2), torch.zeros(1, 2)) == {}
    model = tiny_llama()
    assert list(decoding.whole_texts(model, torch.zeros(1, 2))) == [decoding.cache_name(model)]


def best_of_all(model, prompt, size, vocabulary) -> list[int]:
    """The answer with the largest mean log-probability, stop included, by trying every one without a cache."""
    scores = {}
    for tokens in product(range(vocabulary), repeat=size):
        tokens = tokens[: tokens.index(STOP) + 1] if STOP in tokens else tokens
        if tokens not in scores:
            whole = torch.cat([prompt, torch.tensor(tokens)])
            odds = model(whole[None]).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
            scores[tokens] = float(odds[range(len(tokens)), list(tokens)].mean())
    return list(max(scores, key=scores.get))


@pytest.mark.parametrize("seed", range(3))
def test_with_beams_enough_the_answer_is_the_best_of_all(seed):
    model, (prompts, lengths) = tiny_llama(5, seed), prompts_of([4, 2], seed, 5)
    found = generate(model, prompts, lengths, 3, STOP, beams=125)
    for prompt, length, answer in zip(prompts, lengths, found, strict=True):
        assert cut(answer) == cut(best_of_all(model, prompt[:length], 3, 5))


def test_beams_find_a_likelier_answer_than_greed_does():
    def mean_odds(model, prompt, answer):
        answer = answer[: len(cut(answer)) + 1]
        odds = model(torch.cat([prompt, answer])[None]).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        return float(odds.gather(1, answer.unsqueeze(1)).mean())

    gains = []
    for seed in range(4):
        model, (prompts, lengths) = tiny_llama(seed=seed), prompts_of(LENGTHS, seed)
        greedy, beams = (generate(model, prompts, lengths, 4, STOP, n) for n in (1, 4))
        for row, length in enumerate(LENGTHS):
            odds = [mean_odds(model, prompts[row, :length], answers[row]) for answers in (greedy, beams)]
            gains.append(odds[1] - odds[0])
    assert sum(gains) / len(gains) > 0.02  # measured: 0.04 a token


class RenamedCache(torch.nn.Module):
    """A model whose `forward` has the other name of the cache: "cache" since transformers 5.24, once the other."""

    def __init__(self, model, name: str):
        super().__init__()
        self.model, self.own = model, Reader(model, 1).cache_name
        names = {
            "cache": lambda cache=None, **inputs: self.answer("cache", cache, inputs),
            "past_key_values": lambda past_key_values=None, **inputs: self.answer(
                "past_key_values", past_key_values, inputs
            ),
        }
        self.forward = names[name]

    def answer(self, name, cache, inputs):
        given = self.model(**{self.own: cache}, **inputs)
        return ModelOutput({"logits": given.logits, name: given[self.own]})


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_model_gets_its_cache_under_the_name_that_its_forward_takes(name):
    model, (prompts, lengths) = tiny_llama(), prompts_of(LENGTHS)
    renamed = RenamedCache(model, name)
    assert Reader(renamed, 1).cache_name == name
    assert torch.equal(generate(renamed, prompts, lengths, 6, STOP), generate(model, prompts, lengths, 6, STOP))
