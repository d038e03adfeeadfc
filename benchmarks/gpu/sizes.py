"""How much gpu_check.py measures: everything in about seven minutes on one H100, or a trace of it in seconds."""

from dataclasses import dataclass
from typing import Any

from shapes import shape


@dataclass(frozen=True, kw_only=True)
class Vit:
    """A ViT of timm with random weights."""

    name: str = "vit_base_patch16_224"
    image: int = 224
    depth: int | None = None


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What every section needs to know of it; the defaults are the whole."""

    vit: Vit = Vit()
    bert: dict[str, int]
    llama: dict[str, int]
    large: dict[str, int]
    """A LLaMA of which only the block is measured."""
    clients: int = 10
    batches: tuple[int, ...] = (8, 16, 32, 128)
    steps: int = 6
    """Local steps that are timed at once."""
    repeats: int = 3
    rounds: int = 4
    """Rounds of every method that the engines must agree on."""
    text: int = 128
    """Tokens of the longest text."""
    prompt: int = 256
    """Tokens of a prompt with its answer."""
    answer: int = 64
    """Tokens that are written."""
    crowd: int = 1000
    """Clients from whom the largest block is taken."""
    held_gib: float = 20.0
    """Memory that another process holds."""
    round_samples: int = 500
    round_batch: int = 128
    test_samples: int = 1000
    """Of each client, in the round of Fed-HeLLo's size."""
    clustered: tuple[int, ...] = (1000, 10_000)
    sites: int = 24

    @property
    def bert_config(self) -> dict[str, Any]:
        """For transformers' BertConfig."""
        return {"max_position_embeddings": self.text, "num_labels": 10, **self.bert}


FULL = Sizes(
    bert=shape(768, 12, heads=12, inner=3072, vocab_size=30_522),
    llama=shape(2048, 16, heads=32, inner=8192, num_key_value_heads=8, vocab_size=32_000),
    large=shape(4096, 32, heads=32, inner=11_008, vocab_size=32_000),
)
"""ViT-B/16, BERT-base, a LLaMA of 1.1 billion parameters and one as large as LLaMA-2-7B."""

SMOKE = Sizes(
    vit=Vit(name="vit_tiny_patch16_224", image=32, depth=2),
    bert=shape(32, 2, heads=2, inner=64, vocab_size=100),
    llama=shape(32, 2, heads=4, inner=64, num_key_value_heads=2, vocab_size=100),
    large=shape(32, 2, heads=4, inner=64, vocab_size=100),
    clients=3,
    batches=(2,),
    steps=2,
    repeats=1,
    rounds=2,
    text=16,
    prompt=12,
    answer=4,
    crowd=12,
    held_gib=0.25,
    round_samples=4,
    round_batch=2,
    test_samples=4,
    clustered=(30,),
    sites=2,
)
"""The same with next to nothing to compute: whether every section still runs."""
