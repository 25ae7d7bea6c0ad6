"""How many rows go into one forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from transformers import PreTrainedModel

T = TypeVar("T")

# Measured on two cores with 6M- to 100M-parameter models: a forward of this many tokens is within 5 % of the
# best throughput, and a larger one only needs more memory.
_CPU_TOKENS = 2048
_CPU_ROWS = 32
_CPU_CACHE_BYTES = 2**30
_CUDA_TOKENS = 65536
_CUDA_ROWS = 128
# Of the memory that the weights leave; the rest is for activations, logits and fragmentation.
_CUDA_CACHE_SHARE = 0.4
# A row may be this much shorter than the longest of its batch: below, padding costs more than a further
# forward.
_SHORTEST = 0.75
_SHORTEST_SLACK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one batch may hold."""

    rows: int
    tokens: int
    """Padded tokens of one forward."""
    cache_tokens: int
    """Tokens of KV cache over all rows."""
    bucket: bool
    """Whether a batch ends where rows get much shorter."""

    @classmethod
    def of(cls, model: PreTrainedModel, batch_size: int | Literal["auto"], *, prefill_chunk: int) -> Limits:
        """Limits for `batch_size` rows, or from the machine's memory when "auto".

        "auto" looks at the device's total memory, not at what is free: batches, and so the last bits of a
        score, are then the same in every run on the same machine. Too large a batch is halved when it fails.
        """
        per_token = cache_bytes(model)
        if model.device.type == "cuda":
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
            left = torch.cuda.get_device_properties(model.device).total_memory - weights
            cache = int(max(left, 0) * _CUDA_CACHE_SHARE)
            tokens, most = max(_CUDA_TOKENS, prefill_chunk), _CUDA_ROWS
        else:
            cache, tokens, most = _CPU_CACHE_BYTES, _CPU_TOKENS, _CPU_ROWS
        if batch_size != "auto":
            return cls(rows=batch_size, tokens=2**62, cache_tokens=2**62, bucket=False)
        return cls(rows=most, tokens=tokens, cache_tokens=max(1, cache // per_token), bucket=True)


def cache_bytes(model: PreTrainedModel) -> int:
    """KV cache of one token, in bytes, from the config (an upper bound for sliding windows)."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None) or 1
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or max(1, config.hidden_size // heads)
    # NSA keeps keys and values once per branch.
    branches = 3 if getattr(config, "attention", None) == "nsa" else 1
    return int(2 * branches * config.num_hidden_layers * groups * width * model.dtype.itemsize)


def batches(
    items: Sequence[T],
    *,
    width: Callable[[T], int],
    limits: Limits,
    extra: int = 0,
    equal: bool = False,
    prefill_chunk: int = 2**62,
) -> Iterator[list[T]]:
    """Cut `items`, longest first, into batches.

    Args:
        items: Sorted by falling width.
        width: Tokens that an item feeds.
        limits: What a batch may hold.
        extra: Tokens of cache that every row has or gets besides.
        equal: Only items of one width together.
        prefill_chunk: No forward is wider than this, however long the rows.
    """
    batch: list[T] = []
    longest = 0
    for item in items:
        size = width(item)
        if batch:
            rows = len(batch) + 1
            full = (
                rows > limits.rows
                or rows * min(longest, prefill_chunk) > limits.tokens
                or rows * (longest + extra) > limits.cache_tokens
                or (limits.bucket and size < _SHORTEST * longest - _SHORTEST_SLACK)
                or (equal and size != longest)
            )
            if full:
                yield batch
                batch = []
        if not batch:
            longest = size
        batch.append(item)
    if batch:
        yield batch
