"""Backbones of the engine benchmark, as functions that build them: modules from inputs to logits."""

from collections.abc import Callable

from shapes import shape
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

N_CLASSES = 10


class TextClassifier(nn.Module):
    """A transformers model as a module from ids (B, T), padded with 0, to logits (B, N)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """Attend to whatever is no padding."""
        return self.model(input_ids=ids.long(), attention_mask=(ids != 0).long()).logits


class ImageClassifier(nn.Module):
    """A transformers model as a module from images (B, 3, H, W) to logits (B, N)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits alone."""
        return self.model(images).logits


def vit(width: int, patch: int, hidden: int, layers: int, heads: int, mlp: int) -> Callable[[], nn.Module]:
    """Return a function that builds a ViT of this shape."""
    config = ViTConfig(image_size=width, patch_size=patch, num_labels=N_CLASSES, **shape(hidden, layers, heads, mlp))
    return lambda: ImageClassifier(ViTForImageClassification(config))


def bert(hidden: int, layers: int, heads: int, vocabulary: int) -> Callable[[], nn.Module]:
    """Return a function that builds a BERT of this shape."""
    config = BertConfig(vocab_size=vocabulary, num_labels=N_CLASSES, **shape(hidden, layers, heads, 4 * hidden))
    return lambda: TextClassifier(BertForSequenceClassification(config))


TINY = vit(16, 4, hidden=32, layers=3, heads=2, mlp=80)
VIT_TINY = vit(64, 16, hidden=192, layers=12, heads=3, mlp=768)
BERT = bert(128, 6, heads=2, vocabulary=1000)
