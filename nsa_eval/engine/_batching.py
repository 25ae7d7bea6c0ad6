"""How many rows go into one forward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from transformers import PreTrainedModel

from nsa_models.families import Family, activation_bytes

T = TypeVar("T")

# Measured on a CPU with the bundled twins and a 32k-vocabulary Llama: 512 to 1536 tokens a forward are
# fastest, 256 and 4096 take up to a quarter longer.
_CPU_TOKENS = 1024
_CPU_ROWS = 32
_CPU_CACHE_BYTES = 2**30
_CUDA_ROWS = 128
# Packed rows cost a forward nothing but their tokens.
_PACKED_ROWS = 1024
# Of the memory that is free once the weights are loaded; the rest is for activations and fragmentation.
_CUDA_CACHE_SHARE = 0.7
# Free memory is taken in steps of a fifth, so that a few megabytes more or less don't change batches.
_CUDA_STEP = 1.2
# Bytes of activations that one forward may take; 8,192 tokens keep a GPU busy with a model of any size.
_CUDA_ACTIVATIONS = 0.9 * 2**30
_CUDA_TOKENS = (2048, 65536)
_CPU_CHUNK = 8192
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
    def of(cls, family: Family, batch_size: int | Literal["auto"], *, kept: float = 1.0) -> Limits:
        """Limits for `batch_size` rows, or from the machine's memory when "auto".

        `kept` is what a token takes with all that a method keeps of it, as a multiple of its keys and values.
        On a GPU "auto" goes by the memory that is free when it is asked, in coarse steps: too large a batch
        is halved when it fails. Activations are bounded at some 0.9 GiB whatever the memory.
        """
        if batch_size != "auto":
            return cls(rows=batch_size, tokens=2**62, cache_tokens=2**62, shortest=0.0)
        model = family.model
        cache, rows, tokens = _CPU_CACHE_BYTES, _CPU_ROWS, _CPU_TOKENS
        if model.device.type == "cuda":
            free = free_bytes(model.device) * _CUDA_CACHE_SHARE
            cache = int(_CUDA_STEP ** math.floor(math.log(max(free, 2.0), _CUDA_STEP)))
            rows = _PACKED_ROWS if family.packs else _CUDA_ROWS
            tokens = _forward_tokens(model)
        return cls(
            rows=rows,
            tokens=tokens,
            # Without a cache a step reads all tokens of all rows: they must fit into one forward.
            cache_tokens=max(1, int(cache / (family.cache_bytes * kept))) if family.caches else tokens,
            shortest=_SHORTEST,
        )

    def for_replies(self) -> Limits:
        """Limits for rows that go on together once their prompts are read, however those were batched."""
        return replace(self, tokens=2**62, shortest=min(self.shortest, _SHORTEST_REPLY))


def chunk_of(model: PreTrainedModel) -> int:
    """Tokens of a row that one forward reads at most: a power of 2, so that pieces have few sizes."""
    if model.device.type != "cuda":
        return _CPU_CHUNK
    return 1 << (_forward_tokens(model).bit_length() - 1)


def _forward_tokens(model: PreTrainedModel) -> int:
    """Tokens of one forward on a GPU whose activations stay within bounds."""
    tokens = int(_CUDA_ACTIVATIONS) // activation_bytes(model)
    return max(_CUDA_TOKENS[0], min(_CUDA_TOKENS[1], tokens))


def free_bytes(device: torch.device) -> int:
    """Bytes of a GPU that nobody uses, what torch has put by for itself among them."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def batches(
    items: Sequence[T],
    *,
    width: Callable[[T], int],
    limits: Limits,
    extra: int = 0,
    equal: bool = False,
    packed: bool = False,
    widest: Callable[[int], int] = lambda length: length,
) -> Iterator[list[T]]:
    """Cut `items`, longest first, into batches.

    Args:
        items: Sorted by falling width.
        width: Tokens that an item feeds.
        limits: What a batch may hold.
        extra: Tokens of cache that every row has or gets besides.
        equal: Only items of one width together.
        packed: Items take their own tokens, and no padding.
        widest: Tokens of the widest forward of a row of so many tokens (`Reader.widest`).
    """
    batch: list[T] = []
    longest = fed = kept = 0
    for item in items:
        size = width(item)
        if batch:
            rows = len(batch) + 1
            tokens = fed + widest(size) if packed else rows * widest(longest)
            cache = kept + size + extra if packed else rows * (longest + extra)
            full = (
                rows > limits.rows
                or tokens > limits.tokens
                or cache > limits.cache_tokens
                or (not packed and size < limits.shortest * longest - _SHORTEST_SLACK)
                or (equal and size != longest)
            )
            if full:
                yield batch
                batch = []
        if not batch:
            longest, fed, kept = size, 0, 0
        batch.append(item)
        fed, kept = fed + widest(size), kept + size + extra
    if batch:
        yield batch
