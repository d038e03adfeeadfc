"""Sequence classifiers of transformers (RoBERTa, BERT, DistilBERT, …) that take token ids, and their tokenizers."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedsim.models.backbones import explained, inside_variable, seeded, transformers_classifier
from fedsim.models.decoding import attention_mask
from fedsim.models.origin import known
from fedsim.models.sites import QUERY_VALUE


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """A sequence classifier of transformers."""

    name: str = "FacebookAI/roberta-base"
    """A folder, one in $FEDSIM_DATA, or a name on the hub."""
    tokenizer: str = ""
    """The same for its tokenizer; default: the model's own."""
    pretrained: bool = True
    """Start from pre-trained weights; otherwise from random ones of the same configuration."""
    sites: str = QUERY_VALUE
    """Names of the linear maps that carry adapters, a regular expression."""
    adapter: Path | None = None
    """PEFT adapter folder to start from; it is merged into the frozen backbone."""

    def embedded_backbone(self, data: Any) -> nn.Module:
        """Return the backbone of the embedded texts."""
        return embedded_text_backbone(data.found.n_classes, data.found.n_tokens, data.found.pad_token)

    def load_tokenizer(self) -> Any:
        """Return its tokenizer; see `text_tokenizer`."""
        return text_tokenizer(self)

    def backbone(self, data: Any, dry_run: bool = False) -> nn.Module:
        """Return the model that fits the texts; in a dry run with random weights."""
        model = replace(self, pretrained=self.pretrained and not dry_run)
        return text_backbone(model, data.found.n_classes, data.found.tokenizer)


def text_tokenizer(options: TextModel) -> Any:
    """Return the model's fast tokenizer; raises ValueError when it is not to be had or has no padding."""
    from transformers import AutoTokenizer

    name = options.tokenizer or options.name
    source = str(inside_variable(Path(name)) or name)
    with explained(name, None, name, "give that folder by --model.name or --model.tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True)
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise ValueError(f"The tokenizer '{name}' is not a fast one with a padding token (--model.tokenizer).")
    return tokenizer


def text_backbone(options: TextModel, n_classes: int, tokenizer: Any) -> nn.Module:
    """Return a model from token ids (B, T), padded on the right, to an object with logits (B, n_classes).

    Attention mask and segments follow from the ids. Raises ValueError as `transformers_classifier` does, and when the
    tokenizer is another model's.
    """
    model = text_classifier(options.name, n_classes, options.pretrained)
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the model '{options.name}' {model.config.vocab_size} "
            "(--model.tokenizer)."
        )
    has_segments = getattr(model.config, "type_vocab_size", 0) > 1
    return _taking_tokens(model, tokenizer.pad_token_id, tokenizer.sep_token_id if has_segments else None)


@known(lambda name, n_classes, pretrained: name if pretrained else None)
def text_classifier(name: str, n_classes: int, pretrained: bool = True) -> nn.Module:
    """Return transformers' own sequence classifier, with a fresh classifier of n_classes outputs."""
    from transformers import AutoModelForSequenceClassification

    model: nn.Module = transformers_classifier(AutoModelForSequenceClassification, name, n_classes, pretrained)
    return model


def embedded_text_backbone(n_classes: int, n_tokens: int, pad: int) -> nn.Module:
    """Return `embedded_text_classifier` from token ids (B, T); for the embedded texts."""
    return _taking_tokens(embedded_text_classifier(n_classes, n_tokens, pad), pad, None)


@known(lambda **_: None)
def embedded_text_classifier(n_classes: int, n_tokens: int, pad: int) -> nn.Module:
    """Return a BERT of two layers, 32 wide, with random weights, always the same ones."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=n_tokens,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=n_classes,
        pad_token_id=pad,
    )
    with seeded("embedded-text"):
        return BertForSequenceClassification(config).eval()


def _taking_tokens(model: nn.Module, pad: int, segment_end: int | None) -> nn.Module:
    model.register_forward_pre_hook(partial(_presented, pad, segment_end), with_kwargs=True)
    return model


def _presented(
    pad: int, segment_end: int | None, model: nn.Module, args: tuple[torch.Tensor], kwargs: dict[str, Any]
) -> tuple[tuple[()], dict[str, Any]]:
    """From token ids (B, T) to what transformers' models want to be told about them."""
    ids = args[0].long()
    inputs = {"input_ids": ids, "attention_mask": attention_mask(model, ids != pad)}
    if segment_end is not None:
        is_end = ids == segment_end
        inputs["token_type_ids"] = ((is_end.cumsum(1) > is_end.long()) & (ids != pad)).long()
    return (), inputs
