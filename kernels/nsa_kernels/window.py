"""A window of the latest keys: as lists for `nsa_kernels.blocks`, and how much attention its keys got.

Attention by lists gives each query's log-sum-exp, of its window or of all that it reads. From it the weights
of single keys follow without the rest being looked at again: what methods need that rank keys by the
attention they received while they were near.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nsa_kernels.block_lists import BlockLists
from nsa_kernels.blocks import backend_module


def tile_for(queries: int) -> int:
    """Queries to a tile, of so many: 64 or 128, the sizes that kernels have configurations for."""
    return 128 if queries >= 128 else 64


def window_lists(first: int, queries: int, window: int, device: torch.device) -> tuple[BlockLists, Tensor]:
    """The window of each query of one row: its own key and the window - 1 before it.

    Args:
        first: Position of the first query.
        queries: N, one behind another.
        window: Keys.
        device: Where the lists are wanted.

    Returns:
        Lists of all heads, and `low` of `block_attention`, int32 [1, N].
    """
    tile = tile_for(queries)
    # Blocks of as many keys, as the kernels like them: one at most is read in vain.
    tiles, width = -(-queries // tile), -(-(window + tile - 1) // tile)
    position = torch.arange(first, first + queries, dtype=torch.int32, device=device)
    low = (position - (window - 1)).clamp(min=0)
    offset = torch.arange(0, width * tile, tile, dtype=torch.int32, device=device)
    lists = BlockLists(
        # A tile's first query sees furthest back. What the list holds behind a query, causality leaves out.
        firsts=(low[::tile, None] + offset)[None, None],
        counts=torch.full((1, 1, tiles), width, dtype=torch.int32, device=device),
        query_block=tile,
        key_block=tile,
    )
    return lists, low[None]


def window_sums(
    q: Tensor, k: Tensor, lse: Tensor, *, window: int, scale: float | None = None, backend: str = "auto"
) -> Tensor:
    """Attention that keys got from the queries of one row that have them in their window: a sum of weights.

    Query i stands at position S - N + i, key s at position s.

    Args:
        q: Queries [N, H, D].
        k: Keys [S, H_kv, D], the queries' own among them.
        lse: [H, N] log of the sum of the exponentiated scores of all that a query reads, finite; a key's
            weight is exp(score - lse).
        window: Keys of a window, a query's own among them.
        scale: Factor on q.k; None = D ** -0.5.
        backend: As for `nsa_kernels.blocks.block_attention`.

    Returns:
        [H, W] float32 or wider, of the last W = min(S, N + window - 1) keys: all in the window of one of
        these queries.

    Raises:
        ValueError: Shapes that don't fit, a window without keys, or gradients asked of the kernel.
        BackendUnavailableError: The backend can't run here.
    """
    if q.dim() != 3 or k.dim() != 3 or k.shape[2] != q.shape[2] or not 0 < q.shape[0] <= k.shape[0]:
        raise ValueError(
            f"q must be [N, H, D] and k [S, H_kv, D] with 0 < N <= S, got {list(q.shape)} and {list(k.shape)}"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"query heads must be a multiple of KV heads, got H = {q.shape[1]} and H_kv = {k.shape[1]}"
        )
    if tuple(lse.shape) != (q.shape[1], q.shape[0]):
        raise ValueError(f"lse must be [H, N] = {[q.shape[1], q.shape[0]]}, got {list(lse.shape)}")
    if window < 1:
        raise ValueError(f"window must be at least 1 key, got {window}")
    module = backend_module(backend, q, k, k)
    with torch.cuda.device_of(q):
        found: Tensor = module.window_sums(
            q, k, lse, window=window, scale=q.shape[-1] ** -0.5 if scale is None else scale
        )
    return found
