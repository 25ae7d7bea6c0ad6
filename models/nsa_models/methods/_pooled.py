"""Scores of key blocks from means over overlapping stretches of keys, as InfLLM-V2 and NOSA make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_models.methods._block import QueryBlock


class Pooled(Protocol):
    """A method whose blocks are scored by means over stretches; sizes are tokens."""

    @property
    def kernel(self) -> int:
        """Tokens of a stretch."""
        ...

    @property
    def stride(self) -> int:
        """From one stretch to the next."""
        ...

    @property
    def block(self) -> int:
        """Of a block."""
        ...

    @property
    def first_blocks(self) -> int:
        """Leading blocks that are always read."""
        ...

    @property
    def window(self) -> int:
        """Latest tokens whose blocks are always read."""
        ...

    def refuse(self, field: str, what: str) -> None:
        """See `Method.refuse`."""
        ...


def check_sizes(method: Pooled, *, budget: str, not_negative: Sequence[str]) -> None:
    """Check a method's sizes and the budget of blocks that its queries choose.

    Args:
        method: The method.
        budget: Its field with that budget, in KV tokens.
        not_negative: Fields that may be 0 and not less.

    Raises:
        MethodError: Sizes that don't divide each other, or a budget below what is always read.
    """
    for field in ("stride", "block"):
        if getattr(method, field) < 1:
            method.refuse(field, "must be at least 1 token")
    for field in not_negative:
        if getattr(method, field) < 0:
            method.refuse(field, "must be at least 0")
    if method.kernel != 2 * method.stride:
        method.refuse("kernel", f"must be twice the stride, {2 * method.stride} tokens")
    for field, of in (("block", method.stride), ("window", method.block)):
        if getattr(method, field) % of:
            method.refuse(field, f"must be a multiple of {of} tokens")
    always = (method.first_blocks + method.window // method.block + 1) * method.block
    given = getattr(method, budget)
    if given < always or given % method.block:
        method.refuse(
            budget,
            f"must be a multiple of {method.block} from {always} KV tokens on: the first blocks, the "
            "window's and the query's own are always read",
        )


def stretch_means(x: Tensor, size: int, stride: int) -> Tensor:
    """Means [..., M, d] of x [..., S, d] over tokens [j stride, j stride + size), whole stretches alone."""
    if x.shape[-2] < size:
        return x[..., :0, :]
    means: Tensor = x.unfold(-2, size, stride).mean(-1)
    return means


def whole_stretches(positions: Tensor, count: int, size: int, stride: int) -> Tensor:
    """Booleans [B, 1, n, count]: stretches that end at or before each query [B, n]."""
    ends = torch.arange(count, device=positions.device) * stride + size - 1
    return ends <= positions[:, None, :, None]


def group_shares(block: QueryBlock, means: Tensor, seen: Tensor) -> Tensor:
    """Softmax of each head over the means that its query sees, summed over each group.

    Args:
        block: The queries.
        means: [B, H_kv, M, d] of keys.
        seen: [B, 1, n, M].

    Returns:
        [B, H_kv, n, M]; 0 for what isn't seen.
    """
    logits = (block.dot(block.q, means) * block.scaling).masked_fill(~seen, float("-inf"))
    shares = logits.softmax(-1).masked_fill(~seen, 0.0)  # NaN where nothing is seen
    groups = means.shape[1]
    summed: Tensor = shares.unflatten(1, (groups, -1)).sum(2)
    return summed


def largest_by_block(scores: Tensor, per_block: int, blocks: int, fill: float) -> Tensor:
    """Block b's largest score among stretches [b r - 1, b r + r), r = per_block: those that touch it.

    Args:
        scores: [..., M].
        per_block: r, strides of a block.
        blocks: How many blocks.
        fill: The score of a stretch that isn't there.

    Returns:
        [..., blocks].
    """
    width = blocks * per_block + 1
    padded = F.pad(scores[..., : width - 1], (1, max(0, width - 1 - scores.shape[-1])), value=fill)
    largest: Tensor = padded.unfold(-1, per_block + 1, per_block).amax(-1)
    return largest


def always_read(own: Tensor, blocks: int, *, first: int, local: int) -> Tensor:
    """Booleans [B, 1, n, blocks]: the first blocks, and a query's own [B, 1, n, 1] with `local` before it."""
    index = torch.arange(blocks, device=own.device)
    return (index <= own) & ((index < first) | (index >= own - local))


def as_tokens(chosen: Tensor, block: QueryBlock, size: int) -> Tensor:
    """Chosen blocks [B, H_kv, n, blocks] as keys of each query head [B, H, n, S]."""
    keys = chosen.repeat_interleave(size, dim=-1)[..., : block.k.shape[2]]
    return keys.repeat_interleave(block.q.shape[1] // chosen.shape[1], dim=1)
