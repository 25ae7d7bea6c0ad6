"""The blocks that every query selects (the first, its own and the one before), forward.

Neighbouring queries share them, so that a packed tile of queries reads them once: three of the n blocks then
cost what three blocks of the window cost, and `selected` gathers only the rest.
"""

from collections.abc import Mapping

import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.triton.prefill.online import attend
from nsa_kernels.triton.prefill.packed import (
    first_key,
    launch_packed,
    load_queries,
    nothing_seen,
    rows_of,
    store_rows,
    tile_at,
)
from nsa_kernels.triton.tiles import Grid


def forced_forward(
    q: Tensor, k: Tensor, v: Tensor, grid: Grid, *, config: Mapping[str, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each query to the tokens of its forced blocks.

    Args:
        q: Queries [B, N, H, D_k].
        k: Keys of the selected branch [B, S, H_kv, D_k].
        v: Values of the selected branch [B, S, H_kv, D_v].
        grid: Positions and sizes.
        config: Launch configuration; None = the shipped one.

    Returns:
        Output [B, N, H, D_v] in the dtype of q, 0 at padding; log-sum-exp float32 [B, N, H] in units of log2,
        +inf there.
    """
    return launch_packed(
        _forced_forward_kernel,
        "forced_forward",
        q,
        k,
        v,
        grid,
        config,
        SELECT=grid.geometry.select_block,
    )


@triton.jit(do_not_specialize=("queries",))
def _forced_forward_kernel(
    Q, K, V, Out, Lse, Starts, Ends,
    stride_qb, stride_qn, stride_qh, stride_kb, stride_ks, stride_kh, stride_vb, stride_vs, stride_vh,
    queries, kv_heads, scale_log2,
    G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, BN: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr,
    DV: tl.constexpr, SELECT: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program owns a packed tile of queries of one group."""
    tile = tile_at(tl.program_id(0), tl.program_id(1), Starts, Ends, queries, kv_heads, BQ)
    row = tl.arange(0, BQ * GP)
    position, real = rows_of(tile, row, queries, G, GP, BQ)
    q, q_rest = load_queries(Q, tile, row, real, stride_qb, stride_qn, stride_qh, G, GP, BQ, DK, DR)
    k = first_key(K, tile, stride_kb, stride_kh, TMA)
    v = first_key(V, tile, stride_vb, stride_vh, TMA)
    acc, top, total = nothing_seen(BQ * GP, DV)

    first = tile.first
    last = tile.last
    own = position // SELECT
    near = tl.maximum(own - 1, 0) * SELECT
    begin = tl.maximum(first // SELECT - 1, 0) * SELECT
    # The first block is a piece of its own for those who stand two blocks away from it, or more.
    apart = tl.where((last - 1) // SELECT >= 2, tl.cdiv(SELECT, BN), 0)
    steps = tl.where(first < last, apart + tl.cdiv(last - begin, BN), 0)

    # Where all queries of the tile stand in one block, most tiles of keys need no mask.
    own_first = first // SELECT
    whole = 0
    if SELECT % BN == 0:
        alike = (own_first == (last - 1) // SELECT) & (own_first >= 2)
        whole = tl.where(alike & (first < last), apart + (first + 1 - begin) // BN, 0)
    for step in tl.range(0, whole):
        at = tl.where(step < apart, step * BN, begin + (step - apart) * BN)
        acc, top, total = attend(
            acc, top, total, q, q_rest, k, v, stride_ks, stride_vs, tile.batch, tile.kv_head, at, last, near,
            near, scale_log2, BN, DK, DR, DV, False, False, TMA, PRECISION,
        )  # fmt: skip
    for step in tl.range(whole, steps):
        at = tl.where(step < apart, step * BN, begin + (step - apart) * BN)
        low = tl.where(step < apart, 0, near)
        high = tl.where(step < apart, tl.where(own >= 2, SELECT, 0), tl.where(real, position + 1, 0))
        acc, top, total = attend(
            acc, top, total, q, q_rest, k, v, stride_ks, stride_vs, tile.batch, tile.kv_head, at, last, low,
            high, scale_log2, BN, DK, DR, DV, True, True, TMA, PRECISION,
        )  # fmt: skip
    store_rows(Out, Lse, acc, top, total, real, tile, queries, kv_heads, G, GP, BQ, DV)
