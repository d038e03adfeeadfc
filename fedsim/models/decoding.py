"""How a causal language model answers: greedy search and beam search with the key-value cache, for a whole batch.

Adapters differ by client within a batch, so samples are never dropped or reordered across clients: a batch keeps its
rows until the last one has finished. Prompts are padded on the right. Padding leaves a gap between a short prompt and
its first new token; the attention mask hides it and the positions count on without it, so every answer is the one that
its prompt alone would get.
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.models.sites import is_language_model

ASKED_EVERY = 8
"""Tokens after which a GPU is asked whether all answers have ended; what is written behind an end is an end."""


@torch.no_grad()
def generate(
    model: nn.Module, prompts: Tensor, lengths: Tensor, max_new_tokens: int, stop: int, beams: int = 1
) -> Tensor:
    """Return the tokens (B, max_new_tokens) that follow prompts (B, T) of the given lengths (B,), padded by `stop`.

    `model` is one of transformers' causal language models, without dropout. With one beam it is the most likely token
    each time; with more, the answer of the largest mean log-probability among those that beam search keeps.
    """
    if beams > 1:
        return beam_search(model, prompts, lengths, max_new_tokens, stop, beams)
    reader = Reader(model, prompts.shape[1] + max_new_tokens)
    tokens = reader.read_prompts(prompts, lengths).argmax(-1)
    written = torch.full((len(prompts), max_new_tokens), stop, dtype=torch.long, device=prompts.device)
    is_done = torch.zeros(len(prompts), dtype=torch.bool, device=prompts.device)
    for step in range(max_new_tokens):
        tokens = torch.where(is_done, stop, tokens)
        written[:, step] = tokens
        is_done |= tokens == stop
        if step + 1 == max_new_tokens or _all_done(is_done, step):
            break
        tokens = reader.read(tokens).argmax(-1)
    return written


@torch.no_grad()
def beam_search(
    model: nn.Module, prompts: Tensor, lengths: Tensor, max_new_tokens: int, stop: int, beams: int
) -> Tensor:
    """Return the best of `beams` answers to each prompt; see `generate`.

    In each step the most likely `beams` of all continuations are kept. A finished answer stays a candidate, with its
    own log-probability, until it is crowded out. At the end, sums of log-probabilities are divided by lengths, `stop`
    included. A prompt's beams lie side by side, so a client's samples still do.
    """
    B, device = len(prompts), prompts.device
    reader = Reader(model, prompts.shape[1] + max_new_tokens)
    first = reader.read_prompts(prompts, lengths).float().log_softmax(-1)
    V = first.shape[-1]
    reader.repeat(beams)
    sums = torch.full((B, beams), -torch.inf, device=device)
    sums[:, 0] = 0  # all beams are equal yet: only one may be continued
    following = first.repeat_interleave(beams, 0).view(B, beams, V)
    written = torch.full((B, beams, max_new_tokens), stop, dtype=torch.long, device=device)
    is_done = torch.zeros(B, beams, dtype=torch.bool, device=device)
    size = torch.zeros(B, beams, device=device)
    for step in range(max_new_tokens):
        following = following.masked_fill(is_done.unsqueeze(-1), -torch.inf)
        following[..., stop] = following[..., stop].masked_fill(is_done, 0)
        sums, best = (sums.unsqueeze(-1) + following).flatten(1).topk(beams, dim=1)
        parent, tokens = best // V, best % V
        written = written.gather(1, parent.unsqueeze(-1).expand_as(written))
        written[:, :, step] = tokens
        size, was_done = size.gather(1, parent) + 1, is_done.gather(1, parent)
        size = size - was_done.float()
        is_done = was_done | (tokens == stop)
        if step + 1 == max_new_tokens or _all_done(is_done, step):
            break
        reader.reorder((parent + beams * torch.arange(B, device=device).unsqueeze(1)).flatten())
        following = reader.read(tokens.flatten()).float().log_softmax(-1).view(B, beams, V)
    return written[torch.arange(B, device=device), (sums / size).argmax(1)]


def attention_mask(model: nn.Module, is_token: Tensor, n_queries: int | None = None) -> Tensor:
    """Return what transformers' models take for which places (B, T) hold a token, for `n_queries` causal queries.

    Given (B, T) they look whether it holds no padding, for which the host waits for a GPU: so they are given the whole
    mask there, (B, 1, queries, T), where a model has one kind of attention and that is torch's own. Without a number of
    queries it is not causal.
    """
    if not _is_plain_on_gpu(model, is_token):
        return is_token.long()
    return whole_mask(is_token, n_queries)


def whole_texts(model: nn.Module, tokens: Tensor) -> dict[str, Any]:
    """Return what a model is told besides tokens (B, T) that are read at once, padding on the right included.

    A causal language model that is told nothing looks whether texts were packed into a row, for which the host waits
    for a GPU. Given a cache it does not, and attention keeps its fast kernel, for which a mask would leave no room.
    """
    is_asked = is_language_model(model) and _is_plain_on_gpu(model, tokens)
    return {cache_name(model): forgetful_cache()} if is_asked else {}


def forgetful_cache() -> Any:
    """Return an empty key-value cache of transformers that stays so."""
    from transformers import DynamicCache

    forgetful: Any = DynamicCache()
    forgetful.update = lambda keys, values, *_, **__: (keys, values)
    return forgetful


def cache_name(model: nn.Module) -> str:
    """Return what a language model calls its cache.

    transformers 5.24 renamed the argument and the output; a model of an own class may still have the old name.
    """
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def _is_plain_on_gpu(model: nn.Module, tensor: Tensor) -> bool:
    """Whether on a GPU a model of transformers has one kind of attention, which is torch's own."""
    config: Any = getattr(model, "config", None)
    kinds = {"full_attention", *(getattr(config, "layer_types", None) or ())}
    is_windowed = any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    is_plain = len(kinds) == 1 and not is_windowed and getattr(config, "_attn_implementation", None) == "sdpa"
    return tensor.is_cuda and is_plain


def whole_mask(is_token: Tensor, n_queries: int | None) -> Tensor:
    """Return whether a query sees a place, (B, 1, queries, T): each all tokens, or the last `n_queries` none behind."""
    T = is_token.shape[1]
    mask = is_token[:, None, None, :].expand(-1, 1, n_queries or T, T)
    if n_queries is None or n_queries == 1:
        return mask
    return mask & torch.ones_like(mask[0, 0]).tril(T - n_queries)


def _all_done(is_done: Tensor, step: int) -> bool:
    """Whether all answers have ended; on a GPU, where the host waits to know, it is asked every few tokens only."""
    return (not is_done.is_cuda or step % ASKED_EVERY == ASKED_EVERY - 1) and bool(is_done.all())


class Reader:
    """A language model that reads token after token and remembers what it has read; `room` is all it may remember."""

    def __init__(self, model: nn.Module, room: int):
        self.model, self.room, self.cache = model, room, None
        self.cache_name = cache_name(model)

    def read_prompts(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits (B, V) of what follows each prompt."""
        B, T = prompts.shape
        places = torch.arange(self.room, device=prompts.device)
        self.is_token = places < lengths.unsqueeze(1)
        self.positions, self.read_so_far = lengths.clone(), T
        # Nothing is masked here but the future: behind the last token there is only padding, whose answers go unused.
        logits = self._run(prompts, places[:T].expand(B, T), self.is_token[:, :T])
        return logits[torch.arange(B, device=prompts.device), lengths - 1]

    def read(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, V) of what follows these tokens (B,), each the next of its row."""
        self.is_token[:, self.read_so_far] = True
        self.read_so_far += 1
        logits = self._run(tokens.unsqueeze(1), self.positions.unsqueeze(1), self.is_token[:, : self.read_so_far])
        self.positions += 1
        return logits[:, -1]

    def repeat(self, times: int) -> None:
        """Let every row be followed by copies of itself."""
        self.is_token, self.positions = (t.repeat_interleave(times, 0) for t in (self.is_token, self.positions))
        self.cache.batch_repeat_interleave(times)

    def reorder(self, rows: Tensor) -> None:
        """Let row i continue what row `rows[i]` has read."""
        self.is_token, self.positions = self.is_token[rows], self.positions[rows]
        self.cache.reorder_cache(rows)

    def _run(self, tokens: Tensor, positions: Tensor, is_token: Tensor) -> Tensor:
        answer: Any = self.model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=attention_mask(self.model, is_token, tokens.shape[1]),
            use_cache=True,
            **{self.cache_name: self.cache},
        )
        self.cache = answer[self.cache_name]
        return answer.logits
