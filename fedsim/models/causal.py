"""Causal language models and their tokenizers, from a folder or the hub, whole or in 8 or 4 bits."""

import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fedsim.models.backbones import check_none_is_absent, explained, inside_variable, quiet, seeded
from fedsim.models.origin import known
from fedsim.models.sites import QUERY_VALUE

REMEDY = "give that folder as --model.name {folder}"


@dataclass(frozen=True, kw_only=True)
class CausalModel:
    """A causal language model of transformers."""

    name: str = "meta-llama/Llama-2-7b-hf"
    """Its folder, as such or inside $FEDSIM_DATA, or its name on the hub."""
    bits: Literal[8, 4] | None = None
    """Keep the frozen weights in so few bits (bitsandbytes, on a GPU); default: whole."""
    stop: str = ""
    """The token that ends an answer; default the tokenizer's own. A model can only write what it once has read."""
    sites: str = QUERY_VALUE
    """Names of the linear maps that carry adapters, a regular expression."""
    adapter: Path | None = None
    """PEFT adapter folder to start from; it is merged into the frozen backbone."""

    def embedded_backbone(self, data: Any) -> nn.Module:
        """Return the backbone of the embedded instructions."""
        return random_llama(data.tokenizer.n_tokens, data.tokenizer.stop)

    def load_tokenizer(self) -> "HubTokenizer":
        """Return its tokenizer; see `causal_tokenizer`."""
        return causal_tokenizer(self.name, self.stop)

    def backbone(self, data: Any, dry_run: bool = False) -> nn.Module:
        """Return the model, into which prompts and answers must fit; in a dry run with random weights."""
        model = causal_backbone(self.name, self.bits, pretrained=not dry_run)
        check_length(model, data.options.max_length, data.options.max_new_tokens)
        return model


@known(lambda name, bits, pretrained: str(name) if pretrained or bits else None)
def causal_backbone(name: str | Path, bits: Literal[8, 4] | None = None, pretrained: bool = True) -> nn.Module:
    """Return the model that turns tokens (B, T), padded on the right, into logits (B, T, V).

    Weights keep the type of their file, which is mapped into memory: all workers of a machine share one copy of it.
    Where it is not `pretrained` only its config is read, and weights are random and whole; not so with `bits`. GPT-2's
    `Conv1D` maps are replaced by equal linear maps, which can carry adapters. Raises ValueError when the model is not
    to be had or lacks tensors, or when `bits` are asked for without a GPU or without bitsandbytes.
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # 4 s, and most recipes do without

    options = {} if bits is None else quantisation(bits)
    source, absent = _source(name), []
    with seeded("backbone"), explained(str(name), None, str(name), REMEDY), quiet():
        if pretrained or bits:
            model, loading = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32 if bits else stored_type(source), output_loading_info=True, **options
            )
            absent = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
        else:
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), dtype=torch.float32)
    check_none_is_absent(source, absent)
    model.config.use_cache = False  # whoever generates asks for it
    return without_convolutions(model).eval()


def stored_type(source: str) -> torch.dtype:
    """Return the type of all weights of a model in safetensors; fp32 of several types, and of other files."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    def find(name: str) -> str | None:
        found: str | None = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        return found

    index, names = find("model.safetensors.index.json"), {"model.safetensors"}
    if index:
        names = set(json.loads(Path(index).read_text())["weight_map"].values())
    types = set()
    for file in filter(None, map(find, names)):
        with safe_open(file, "pt") as weights:
            types |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    halves = {"F16": torch.float16, "BF16": torch.bfloat16}
    return halves.get(types.pop(), torch.float32) if len(types) == 1 else torch.float32


@known(lambda **_: None)
def random_llama(
    n_tokens: int, stop: int, width: int = 64, depth: int = 4, heads: int = 4, positions: int = 512
) -> nn.Module:
    """Return a small LLaMA with random weights, the same in every run."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=n_tokens,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        max_position_embeddings=positions,
        bos_token_id=None,
        eos_token_id=stop,
        use_cache=False,
    )
    with seeded("backbone"):
        return LlamaForCausalLM(config).eval()


def quantisation(bits: Literal[8, 4]) -> dict[str, Any]:
    """Return what `from_pretrained` needs for so few bits; raises ValueError without a GPU or bitsandbytes."""
    lacking = [] if torch.cuda.is_available() else ["a GPU"]
    lacking += (
        [] if importlib.util.find_spec("bitsandbytes") else ["the package bitsandbytes (pip install bitsandbytes)"]
    )
    if lacking:
        raise ValueError(f"{bits}-bit weights need {' and '.join(lacking)} (--model.bits).")
    from transformers import BitsAndBytesConfig

    # It would say at every call that fp32 inputs become fp16 inside: activations stay fp32, for the adapters' sake.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if bits == 8
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    )
    return {"quantization_config": config, "device_map": {"": int(os.environ.get("LOCAL_RANK", 0))}}


def without_convolutions(model: nn.Module) -> nn.Module:
    """Replace, in place, transformers' `Conv1D` (a linear map with a transposed weight) by `nn.Linear`; return it."""
    from transformers.pytorch_utils import Conv1D

    for path, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            parent, _, name = path.rpartition(".")
            linear = nn.Linear(*module.weight.shape, device="meta")
            linear.weight = nn.Parameter(module.weight.data.T.contiguous())
            linear.bias = nn.Parameter(module.bias.data)
            linear.was_convolution = True  # for who writes its weight down again
            setattr(model.get_submodule(parent), name, linear)
    return model


@dataclass(frozen=True)
class HubTokenizer:
    """A tokenizer of transformers as fedsim uses it."""

    tokenizer: Any
    start: int | None
    stop: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's tokens, without start and stop."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)


def causal_tokenizer(name: str | Path, stop: str = "") -> HubTokenizer:
    """Return the tokenizer of a language model, with another token than its own to end an answer where one is named.

    Raises ValueError when it is not to be had, or does not know such a token.
    """
    from transformers import AutoTokenizer

    with explained(str(name), None, str(name), REMEDY):
        tokenizer = AutoTokenizer.from_pretrained(_source(name))
    number = tokenizer.get_vocab().get(stop or tokenizer.eos_token)
    if number is None:
        raise ValueError(f"The tokenizer of '{name}' has no token '{stop}' for the end of an answer (--model.stop).")
    return HubTokenizer(tokenizer, tokenizer.bos_token_id, number)


def check_length(model: nn.Module, max_length: int, max_new_tokens: int) -> None:
    """Raise ValueError when a prompt and an answer may take more places than the model has."""
    room = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if room is not None and max_length + max_new_tokens > room:
        raise ValueError(
            f"max_length {max_length} and max_new_tokens {max_new_tokens} may take {max_length + max_new_tokens} "
            f"places, and the model has {room} (--data.max-length, --data.max-new-tokens)."
        )


def _source(name: str | Path) -> str:
    return str(inside_variable(Path(name)) or name)
