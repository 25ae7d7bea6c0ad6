"""Window attention, forward: every query against the last w tokens, itself among them."""

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


def window_forward(
    q: Tensor, k: Tensor, v: Tensor, grid: Grid, *, config: Mapping[str, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each query to the tokens (t - w, t].

    Args:
        q: Queries [B, N, H, D_k].
        k: Keys [B, S, H_kv, D_k].
        v: Values [B, S, H_kv, D_v].
        grid: Positions and sizes.
        config: Launch configuration; None = the shipped one.

    Returns:
        Output [B, N, H, D_v] in the dtype of q, 0 at padding; log-sum-exp float32 [B, N, H] in units of log2,
        +inf there.
    """
    return launch_packed(
        _window_forward_kernel,
        "window_forward",
        q,
        k,
        v,
        grid,
        config,
        WINDOW=grid.geometry.window,
    )


@triton.jit(do_not_specialize=("queries",))
def _window_forward_kernel(
    Q,
    K,
    V,
    Out,
    Lse,
    Starts,
    Ends,
    stride_qb,
    stride_qn,
    stride_qh,
    stride_kb,
    stride_ks,
    stride_kh,
    stride_vb,
    stride_vs,
    stride_vh,
    queries,
    kv_heads,
    scale_log2,
    G: tl.constexpr,
    GP: tl.constexpr,
    BQ: tl.constexpr,
    BN: tl.constexpr,
    DK: tl.constexpr,
    DR: tl.constexpr,
    DV: tl.constexpr,
    WINDOW: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program owns a packed tile of queries of one group; all of them see most of the keys it reads."""
    tl.static_assert(not TMA)  # a few keys at the edge are read by pointers
    FEW: tl.constexpr = BQ if BQ > 16 else 16
    tile = tile_at(tl.program_id(0), tl.program_id(1), Starts, Ends, queries, kv_heads, BQ)
    row = tl.arange(0, BQ * GP)
    position, real = rows_of(tile, row, queries, G, GP, BQ)
    q, q_rest = load_queries(Q, tile, row, real, stride_qb, stride_qn, stride_qh, G, GP, BQ, DK, DR)
    k = first_key(K, tile, stride_kb, stride_kh, False)
    v = first_key(V, tile, stride_vb, stride_vh, False)
    acc, top, total = nothing_seen(BQ * GP, DV)

    first = tile.first
    last = tile.last
    low = position - WINDOW + 1
    high = tl.where(real, position + 1, 0)
    # All queries of the tile see the keys from `inner` to `first`: no masks, but for the last tile of keys.
    inner = tl.maximum(first + BQ - WINDOW, 0)
    edge = inner + tl.maximum(first + 1 - inner, 0) // BN * BN
    inner = tl.where(first < last, inner, 0)
    edge = tl.where(first < last, edge, 0)
    stop = tl.where(first < last, last, 0)

    for at in tl.range(inner, edge, BN):
        acc, top, total = attend(
            acc, top, total, q, q_rest, k, v, stride_ks, stride_vs, tile.batch, tile.kv_head, at, last, low,
            high, scale_log2, BN, DK, DR, DV, False, False, False, PRECISION,
        )  # fmt: skip
    for at in tl.range(edge, stop, BN, num_stages=1):
        acc, top, total = attend(
            acc, top, total, q, q_rest, k, v, stride_ks, stride_vs, tile.batch, tile.kv_head, at, last, low,
            high, scale_log2, BN, DK, DR, DV, True, False, False, PRECISION,
        )  # fmt: skip
    # Before `inner` stand the BQ - 1 keys that only the first queries see.
    if BQ > 1 and inner > 0:
        acc, top, total = attend(
            acc, top, total, q, q_rest, k, v, stride_ks, stride_vs, tile.batch, tile.kv_head,
            tl.maximum(inner - FEW, 0), tl.minimum(inner, last), low, tl.minimum(high, inner), scale_log2,
            FEW, DK, DR, DV, True, True, False, PRECISION,
        )  # fmt: skip
    store_rows(Out, Lse, acc, top, total, real, tile, queries, kv_heads, G, GP, BQ, DV)
