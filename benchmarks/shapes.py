"""The shape of a transformer, in the words of transformers' configurations."""

from typing import Any


def shape(width: int, layers: int, heads: int, inner: int, **others: Any) -> dict[str, Any]:
    """Return fields of a configuration: so many layers, `inner` wide between the two maps of each."""
    same = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**same, "intermediate_size": inner, **others}
