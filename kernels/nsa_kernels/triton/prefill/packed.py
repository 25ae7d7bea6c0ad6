"""What the forwards over packed tiles share: the launch, a tile's queries, and the writing of its results.

Compressed, window and forced attention differ in the keys that a query sees; see `tiles` for the packing.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.ahead import launch
from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.prefill.online import finish
from nsa_kernels.triton.tiles import (
    Grid,
    bulk_copies,
    descriptor,
    launch_options,
    precision,
    queries_per_tile,
    row_pointers,
    split_width,
    wide,
)


def launch_packed(
    kernel: Any,  # a @triton.jit function
    stage: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Grid,
    config: Mapping[str, int] | None,
    **constants: int,
) -> tuple[Tensor, Tensor]:
    """Runs a kernel over packed tiles of queries.

    Args:
        kernel: Takes q, k, v, out, lse, starts, ends, their strides, N, H_kv, the scale, and constants.
        stage: Its name in the table of configurations.
        q: Queries [B, N, H, D_k].
        k: Keys [B, S or C, H_kv, D_k].
        v: Values [B, S or C, H_kv, D_v].
        grid: Positions and sizes.
        config: Launch configuration; None = the shipped one.
        constants: The kernel's own.

    Returns:
        Output [B, N, H, D_v] in the dtype of q; log-sum-exp float32 [B, N, H] in units of log2.
    """
    width, value_width = q.shape[-1], v.shape[-1]
    chosen = dict(config or shipped(stage, max(width, value_width), q.device))
    main, rest = split_width(width)
    bq, bn = queries_per_tile(chosen["BM"], grid), chosen["BN"]
    tma = bool(chosen.get("TMA")) and rest == 0 and bulk_copies(k, v)
    out = q.new_empty(*q.shape[:3], value_width)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    launch(kernel, (triton.cdiv(grid.queries, bq), grid.batch * grid.kv_heads))(
        q,
        descriptor(k, bn) if tma else k,
        descriptor(v, bn) if tma else v,
        out,
        lse,
        grid.starts,
        grid.ends,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        grid.queries,
        grid.kv_heads,
        grid.scale_log2,
        G=grid.group,
        GP=grid.padded_group,
        BQ=bq,
        BN=bn,
        DK=main,
        DR=rest,
        DV=value_width,
        TMA=tma,
        PRECISION=precision(q),
        **constants,
        **launch_options(chosen),
    )
    return out, lse


class Tile(NamedTuple):
    """A packed tile of queries of one KV head's group, in a kernel."""

    number: Any
    """Among the tiles of its row of the batch."""
    batch: Any
    kv_head: Any
    start: Any
    """Position of the row's first query."""
    end: Any
    """Tokens of the row."""
    first: Any
    """Position of the tile's first query."""
    last: Any
    """Behind that of its last; at or before the first where no query is real."""


@triton.jit
def tile_at(number, pair, Starts, Ends, queries, kv_heads, BQ: tl.constexpr):
    """The tile of a pair, a row of the batch with a KV head."""
    batch = pair // kv_heads
    kv_head = pair % kv_heads
    start = tl.load(Starts + batch)
    end = tl.load(Ends + batch)
    first = start + number * BQ
    last = tl.minimum(tl.minimum(first + BQ, start + queries), end)
    return Tile(number, batch, kv_head, start, end, first, last)


@triton.jit
def rows_of(tile, row, queries, G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr):
    """Position of the query at each row of the tile, and whether there is such a query and head."""
    query = tile.number * BQ + row // GP
    position = tile.start + query
    return position, (query < queries) & (row % GP < G) & (position < tile.end)


@triton.jit
def load_queries(
    Q, tile, row, real, stride_qb, stride_qn, stride_qh,
    G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr,
):  # fmt: skip
    """The tile's queries [BQ * GP, DK] and their columns from DK on (the queries again without any).

    Rows that are not `real` are 0.
    """
    q_at = Q + wide(tile.batch) * stride_qb + wide(tile.kv_head) * G * stride_qh
    q_rows = row_pointers(q_at, tile.number, row, stride_qn, stride_qh, BQ, GP)
    q = tl.load(q_rows[:, None] + tl.arange(0, DK)[None, :], mask=real[:, None], other=0.0)
    q_rest = q
    if DR:
        q_rest = tl.load(q_rows[:, None] + DK + tl.arange(0, DR)[None, :], mask=real[:, None], other=0.0)
    return q, q_rest


@triton.jit
def first_key(X, tile, stride_b, stride_h, TMA: tl.constexpr):
    """Where the keys (or values) of the tile's KV head begin; a descriptor stays what it is."""
    if not TMA:
        X += wide(tile.batch) * stride_b + wide(tile.kv_head) * stride_h
    return X


@triton.jit
def nothing_seen(ROWS: tl.constexpr, DV: tl.constexpr):
    """acc, top and total of a softmax before its first key."""
    acc = tl.zeros([ROWS, DV], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    return acc, top, total


@triton.jit
def store_rows(
    Out, Lse, acc, top, total, real, tile, queries, kv_heads,
    G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    """Writes the tile's output and log-sum-exp; rows that are not `real` get 0 and +inf."""
    acc, lse = finish(acc, top, total)
    acc = tl.where(real[:, None], acc, 0.0)
    lse = tl.where(real, lse, float("inf"))
    row = tl.arange(0, BQ * GP)
    inside = (tile.number * BQ + row // GP < queries) & (row % GP < G)
    heads = kv_heads * G
    rows = (wide(tile.batch) * queries * kv_heads + tile.kv_head) * G  # of [B, N, H], contiguous
    lse_rows = row_pointers(Lse + rows, tile.number, row, heads, 1, BQ, GP)
    tl.store(lse_rows, lse, mask=inside)
    out_rows = row_pointers(Out + rows * DV, tile.number, row, heads * DV, DV, BQ, GP)
    out = out_rows[:, None] + tl.arange(0, DV)[None, :]
    tl.store(out, acc.to(Out.dtype.element_ty), mask=inside[:, None])
