"""How many rows go into one forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch

from nsa_models.families import Family, activation_bytes

T = TypeVar("T")

# Measured on a CPU with the bundled twins and a 32k-vocabulary Llama: 512 to 1536 tokens a forward are
# fastest, 256 and 4096 take up to a quarter longer.
_CPU_TOKENS = 1024
_CPU_ROWS = 32
_CPU_CACHE_BYTES = 2**30
_CUDA_ROWS = 128
# Of the memory that the weights leave; the rest is for logits and fragmentation.
_CUDA_CACHE_SHARE = 0.4
_CUDA_ACTIVATION_SHARE = 0.2
_CUDA_TOKENS = (2048, 131072)
# A row may be this much shorter than its batch's longest: below, padding costs more than another forward.
# Rows that only go on together waste no more than attention to holes.
_SHORTEST = 0.75
_SHORTEST_REPLY = 0.5
_SHORTEST_SLACK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one batch may hold."""

    rows: int
    tokens: int
    """Padded tokens of one forward."""
    cache_tokens: int
    """Tokens of KV cache over all rows."""
    shortest: float
    """A batch ends where rows get shorter than this part of its longest; 0 = never."""

    @classmethod
    def of(cls, family: Family, batch_size: int | Literal["auto"]) -> Limits:
        """Limits for `batch_size` rows, or from the machine's memory when "auto".

        "auto" looks at the device's total memory, not at what is free: batches, and so the last bits of a
        score, are then the same in every run on the same machine. Too large a batch is halved when it fails.
        """
        if batch_size != "auto":
            return cls(rows=batch_size, tokens=2**62, cache_tokens=2**62, shortest=0.0)
        model = family.model
        cache, rows, tokens = _CPU_CACHE_BYTES, _CPU_ROWS, _CPU_TOKENS
        if model.device.type == "cuda":
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
            left = max(0, torch.cuda.get_device_properties(model.device).total_memory - weights)
            cache, rows = int(left * _CUDA_CACHE_SHARE), _CUDA_ROWS
            tokens = int(left * _CUDA_ACTIVATION_SHARE) // activation_bytes(model)
            tokens = max(_CUDA_TOKENS[0], min(_CUDA_TOKENS[1], tokens))
        return cls(
            rows=rows,
            tokens=tokens,
            # Without a cache a step reads all tokens of all rows: they must fit into one forward.
            cache_tokens=max(1, cache // family.cache_bytes) if family.caches else tokens,
            shortest=_SHORTEST,
        )

    def for_replies(self) -> Limits:
        """Limits for rows that go on together once their prompts are read, however those were batched."""
        return replace(self, tokens=2**62, shortest=min(self.shortest, _SHORTEST_REPLY))


def batches(
    items: Sequence[T],
    *,
    width: Callable[[T], int],
    limits: Limits,
    extra: int = 0,
    equal: bool = False,
    widest: Callable[[int], int] = lambda length: length,
) -> Iterator[list[T]]:
    """Cut `items`, longest first, into batches.

    Args:
        items: Sorted by falling width.
        width: Tokens that an item feeds.
        limits: What a batch may hold.
        extra: Tokens of cache that every row has or gets besides.
        equal: Only items of one width together.
        widest: Tokens of the widest forward of a row of so many tokens (`Reader.widest`).
    """
    batch: list[T] = []
    longest = 0
    for item in items:
        size = width(item)
        if batch:
            rows = len(batch) + 1
            full = (
                rows > limits.rows
                or rows * widest(longest) > limits.tokens
                or rows * (longest + extra) > limits.cache_tokens
                or size < limits.shortest * longest - _SHORTEST_SLACK
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
