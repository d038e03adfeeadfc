"""Generated answers are scored text by text, against scores worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

import fedsim
from fedsim.data.instructions.generation_task import Generation, text_overlap
from fedsim.data.instructions.prompts import ByteTokenizer, tokens_of

BYTES = ByteTokenizer()
TASK = Generation(BYTES.decode, BYTES.stop, max_new_tokens=12)


class Parrot:
    """A model with fixed logits that answers from a list and remembers what it was asked."""

    def __init__(self, answers, logits):
        self.answers, self.logits, self.asked = answers, logits, []

    def __call__(self, inputs):
        return self.logits

    def generate(self, prompts, lengths, max_new_tokens, stop, beams=1):
        self.asked += [BYTES.decode(p[:n].tolist()) for p, n in zip(prompts, lengths, strict=True)]
        written = torch.full((len(prompts), max_new_tokens), stop)
        for row, text in enumerate(self.answers):
            written[row, : len(text)] = torch.tensor(list(text.encode()))
        return written


def f_measure(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall)


def test_rouge_is_that_of_the_definition():
    # six words against five, which are all among them; in the same order are "cat on mat"
    rouge1, rouge_l, exact = text_overlap("the cat sat on a mat", "A cat on the MAT!")
    assert rouge1 == pytest.approx(f_measure(5 / 6, 5 / 5))
    assert rouge_l == pytest.approx(f_measure(3 / 6, 3 / 5))
    assert exact == 0
    assert text_overlap("yes", "yes") == (1, 1, 1)
    assert text_overlap("", "yes") == (0, 0, 0)


def test_a_word_that_is_repeated_counts_as_often_as_the_true_answer_has_it():
    assert text_overlap("no no no no", "no")[0] == pytest.approx(f_measure(1 / 4, 1))


def test_a_clients_metrics_are_means_over_samples_and_its_loss_one_over_all_tokens_of_answers():
    tokens = tokens_of(["one:", "long question:", "q"], ["red", "a green tree", "no"], BYTES, 40)
    logits = torch.randn(*tokens.inputs.shape, BYTES.n_tokens, generator=torch.Generator().manual_seed(0))
    model, targets = Parrot(["red", "green tree", "never"], logits), tokens.targets.long()
    totals = TASK.score(model, tokens.inputs, targets).sum(0)
    assert model.asked == ["one:", "long question:", "q"]
    summary = TASK.summary(totals.tolist(), 3)
    assert tuple(summary) == TASK.columns
    assert summary["exact_match"] == pytest.approx(1 / 3)
    assert summary["rouge1"] == pytest.approx((1 + f_measure(1, 2 / 3) + 0) / 3)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert summary["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert summary["perplexity"] == pytest.approx(math.exp(float(loss)), rel=1e-4)


def test_what_follows_a_stop_is_not_read():
    assert TASK.text([*b" red ", BYTES.stop, *b"nothing"]) == "red"


def test_targets_must_be_tokens_of_which_each_sample_has_some():
    rows = [torch.arange(2)]
    inputs, targets = torch.zeros(2, 3, dtype=torch.int32), torch.full((2, 3), -100)
    common = {"class_names": (), "pad_token": BYTES.stop, "task": TASK}
    with pytest.raises(ValueError, match=r"targets have the shape \(2,\); they must be tokens"):
        fedsim.FederatedData(inputs, targets[:, 0], rows, rows, **common)
    targets[1, 2] = 5
    with pytest.raises(ValueError, match="1 samples have no answer"):
        fedsim.FederatedData(inputs, targets, rows, rows, **common)


def test_a_batch_is_cut_to_its_longest_sample_targets_included():
    tokens = tokens_of(["q", "a long question", "r"], ["a"] * 3, BYTES, 40)
    data = fedsim.FederatedData(
        tokens.inputs, tokens.targets, [torch.arange(3)], [torch.arange(3)], (), pad_token=BYTES.stop, task=TASK
    )
    inputs, targets = data.batch(torch.tensor([0, 2]))
    assert inputs.shape == targets.shape == (2, 3)
    assert targets.dtype == torch.long
    assert targets[0].tolist() == [-100, ord("a"), BYTES.stop]
    assert data.batch(torch.tensor([1]))[1].shape[1] == tokens.targets.shape[1]
