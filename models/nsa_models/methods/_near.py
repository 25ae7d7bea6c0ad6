"""A window of the latest keys, by lists: attention to it, and how much of it each key got."""

from __future__ import annotations

import torch
from torch import Tensor

from nsa_kernels.blocks import BlockLists
from nsa_models.methods._block import grouped

_KEYS = 64
"""Keys to a block of a window's list, whatever the window: a tile reads one block too many at most."""
_CELLS = 2**24
"""Weights that are made at a time, 64 MiB in float32."""


def tile_for(queries: int) -> int:
    """Queries to a tile: the sizes that the kernels have configurations for."""
    return 128 if queries >= 128 else 64


def near_lists(first: int, queries: int, local: int, device: torch.device) -> tuple[BlockLists, Tensor]:
    """The window of each query: its own key and the local - 1 before it.

    Args:
        first: Position of the first query.
        queries: n, one behind another.
        local: Keys of a window.
        device: Where the lists are wanted.

    Returns:
        Lists of one row and all heads, and the first key that each query sees, int32 [1, n].
    """
    tile = tile_for(queries)
    tiles, width = -(-queries // tile), -(-(local + tile - 1) // _KEYS)
    position = torch.arange(first, first + queries, dtype=torch.int32, device=device)
    low = (position - (local - 1)).clamp(min=0)
    offset = torch.arange(0, width * _KEYS, _KEYS, dtype=torch.int32, device=device)
    lists = BlockLists(
        # A tile's first query sees furthest back. What the list holds behind a query, causality leaves out.
        firsts=(low[::tile, None] + offset)[None, None],
        counts=torch.full((1, 1, tiles), width, dtype=torch.int32, device=device),
        query_block=tile,
        key_block=_KEYS,
    )
    return lists, low[None]


def near_sums(q: Tensor, k: Tensor, lse: Tensor, *, first: int, local: int, scaling: float) -> Tensor:
    """Weights of keys in the windows of some queries, summed over the queries.

    Args:
        q: [H, n, d_k], float32 or wider.
        k: [H_kv, S, d_k], of which the last is the last query's own.
        lse: [H, n] log of the sum of the exponentiated scores of all that a query reads, near and far.
        first: Position of the first query.
        local: Keys of a window.
        scaling: Factor of q.k.

    Returns:
        [H, w] of the last w keys: from the first key of the first query's window on.
    """
    heads, queries = q.shape[:2]
    front = max(0, first - local + 1)
    sums = q.new_zeros(heads, k.shape[1] - front)
    step = max(1, _CELLS // (heads * (local + queries)))
    for begin in range(first, first + queries, step):
        end = min(begin + step, first + queries)
        low = max(0, begin - local + 1)
        some = slice(begin - first, end - first)
        keys = k[None, :, low:end].to(q.dtype)
        logits = grouped(q[None, :, some] * scaling, keys.transpose(-1, -2))[0].sub_(lse[:, some, None])
        if end - begin > 1:  # the window of one query is all of these keys
            t = torch.arange(begin, end, device=q.device)[:, None]
            s = torch.arange(low, end, device=q.device)
            logits.masked_fill_((s > t) | (s <= t - local), float("-inf"))
        sums[:, low - front : end - front] += logits.exp_().sum(1)
    return sums
