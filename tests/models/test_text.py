"""Sequence classifiers take plain tokens and answer as transformers does when it is told mask and segments."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import BertTokenizerFast

import fedsim
from fedsim.data.builtin.topics import PAD, TOPICS, VOCABULARY, topic_texts
from fedsim.data.protocols import Skew, skewed_clients
from fedsim.models.sites import find_sites
from fedsim.models.text import TextModel, embedded_text_backbone, text_backbone, text_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=len(WORDS))
CONFIGS = {
    "BERT": transformers.BertConfig(**SMALL),
    "RoBERTa": transformers.RobertaConfig(**SMALL, pad_token_id=0, type_vocab_size=1),
    "DistilBERT": transformers.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=len(WORDS)),
}


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request, tmp_path_factory) -> Path:
    """A pre-trained encoder without a classifier, and its tokenizer."""
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    transformers.AutoModel.from_config(CONFIGS[request.param]).save_pretrained(path)
    vocabulary = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    BertTokenizerFast(str(vocabulary)).save_pretrained(path)
    return path


def built(folder: Path, n_classes: int = 3, **options):
    model = TextModel(name=str(folder), **options)
    tokenizer = text_tokenizer(model)
    return text_backbone(model, n_classes, tokenizer), tokenizer


def test_tokens_alone_give_the_logits_that_mask_and_segments_give(folder: Path):
    model, tokenizer = built(folder)
    pairs = tokenizer(["a b c", "d"], ["e f", "g"], padding=True, return_tensors="pt")
    asked = dict(pairs) if "bert.embeddings.token_type_embeddings.weight" in model.state_dict() else None
    hooks = dict(model._forward_pre_hooks)
    model._forward_pre_hooks.clear()
    wanted = {k: v for k, v in pairs.items() if k != "token_type_ids" or asked}
    expected = model(**wanted).logits
    model._forward_pre_hooks.update(hooks)
    torch.testing.assert_close(model(pairs.input_ids.int()).logits, expected)


def test_padding_changes_nothing(folder: Path):
    model, tokenizer = built(folder)
    ids = tokenizer("a b c", return_tensors="pt").input_ids.int()
    padded = torch.cat((ids, torch.zeros(1, 5, dtype=torch.int32)), dim=1)
    torch.testing.assert_close(model(padded).logits, model(ids).logits, rtol=1e-5, atol=1e-6)


def test_query_and_value_of_every_layer_and_all_of_the_head_are_sites(folder: Path):
    sites = find_sites(built(folder)[0])
    adapters, head = [s for s in sites if not s.is_head], [s for s in sites if s.is_head]
    assert [site.depth for site in adapters] == [0, 0, 1, 1]
    assert head[-1].out_features == 3
    model = built(folder)[0]
    fresh = {name for name in model.state_dict() if name.split(".")[0] in ("classifier", "pre_classifier")}
    assert {site.name for site in head} == {name.rpartition(".")[0] for name in fresh}


def test_the_classifier_is_fresh_and_always_the_same(folder: Path):
    first, again = (built(folder)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_random_weights_of_the_same_configuration_need_no_file_of_weights(folder: Path, tmp_path: Path):
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    model, tokenizer = built(tmp_path, pretrained=False)
    assert model(tokenizer("a", return_tensors="pt").input_ids).logits.shape == (1, 3)
    with pytest.raises(ValueError, match="not to be had"):
        built(tmp_path)


def test_another_models_tokenizer_is_refused(folder: Path, tmp_path: Path):
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, *map(str, range(9))]))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"The tokenizer has 22 tokens, the model .* 13 \(--model.tokenizer\)"):
        built(folder, tokenizer=str(tmp_path))


def test_a_missing_tokenizer_is_one_message():
    with pytest.raises(ValueError, match=r"'nobody/no-such-tokenizer' .*hf download nobody/no-such-tokenizer"):
        text_tokenizer(TextModel(tokenizer="nobody/no-such-tokenizer"))


def test_the_embedded_texts_are_what_their_lengths_and_topics_say():
    train, test = topic_texts()
    assert torch.equal(train.inputs, topic_texts()[0].inputs)
    assert (train.inputs.shape, test.inputs.shape) == ((800, 22), (200, 22))
    assert int(train.inputs.max()) < VOCABULARY
    assert ((train.inputs == 2).sum(1) == 1).all(), "one end each"
    own = (train.inputs - 123) // 16
    right = [(own[row][own[row] >= 0] == train.targets[row]).all() for row in range(800)]
    assert all(right)
    logits = embedded_text_backbone(len(TOPICS), VOCABULARY, PAD)(train.inputs[:4]).logits
    assert logits.shape == (4, 4)


def test_both_engines_train_texts_of_unequal_lengths_alike(tiny_run):
    options = Skew(n_clients=4, alpha=1.0, unseen_fraction=0.0)
    data = skewed_clients(options, topic_texts(), np.random.default_rng(0))
    local = fedsim.LocalTraining(batch_size=8, learning_rate=1e-2, share=0.2)
    common = {"data": data, "method": fedsim.ILoRA(), "rounds": 2, "local": local}
    found = {}
    for engine in ("batched", "sequential"):
        backbone = embedded_text_backbone(len(TOPICS), VOCABULARY, PAD)
        found[engine] = tiny_run(engine, backbone=backbone, engine=engine, **common).summary
    for name in ("global.mean", "personal.mean", "bytes.up"):
        assert found["batched"][name] == pytest.approx(found["sequential"][name], abs=1e-6)
