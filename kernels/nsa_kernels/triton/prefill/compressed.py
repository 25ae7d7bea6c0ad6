"""Compressed attention, forward: every query against the compression blocks that are complete."""

from collections.abc import Mapping

import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.hopper import conditions
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
from nsa_kernels.triton.tiles import Grid, blocks_before


def compressed_forward(
    q: Tensor, k: Tensor, v: Tensor, grid: Grid, *, config: Mapping[str, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each query to the complete compression blocks.

    Args:
        q: Queries [B, N, H, D_k].
        k: Compressed keys [B, C, H_kv, D_k].
        v: Compressed values [B, C, H_kv, D_v].
        grid: Positions and sizes.
        config: Launch configuration; None = the shipped one. With KEY_SLOTS it is one of the kernel
            for Hopper, and nothing where that does not serve.

    Returns:
        Output [B, N, H, D_v] in the dtype of q, 0 where no block is visible; log-sum-exp float32 [B, N, H] in
        units of log2, +inf there.
    """
    for_hopper = config is not None and "KEY_SLOTS" in config
    if (for_hopper or config is None) and conditions.serves(q, (k, v), grid):
        from nsa_kernels.triton.hopper.launch import compressed_hopper  # needs Gluon

        chosen = config or shipped("compressed_hopper", conditions.WIDTH, q.device)
        return compressed_hopper(q, k, v, grid, chosen)
    return launch_packed(
        _compressed_forward_kernel,
        "compressed_forward",
        q,
        k,
        v,
        grid,
        None if for_hopper else config,
        BLOCK=grid.geometry.block,
        STRIDE=grid.geometry.stride,
    )


@triton.jit(do_not_specialize=("queries",))
def _compressed_forward_kernel(
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
    stride_kc,
    stride_kh,
    stride_vb,
    stride_vc,
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
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program owns a packed tile of queries of one group; long tiles go first."""
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    tile = tile_at(number, tl.program_id(1), Starts, Ends, queries, kv_heads, BQ)
    row = tl.arange(0, BQ * GP)
    position, real = rows_of(tile, row, queries, G, GP, BQ)
    q, q_rest = load_queries(Q, tile, row, real, stride_qb, stride_qn, stride_qh, G, GP, BQ, DK, DR)
    k = first_key(K, tile, stride_kb, stride_kh, TMA)
    v = first_key(V, tile, stride_vb, stride_vh, TMA)
    acc, top, total = nothing_seen(BQ * GP, DV)

    first = tile.first
    last = tile.last
    seen = tl.where(real, blocks_before(position + 1, BLOCK, STRIDE), 0)
    most = tl.where(first < last, blocks_before(last, BLOCK, STRIDE), 0)
    all_see = tl.minimum(blocks_before(first + 1, BLOCK, STRIDE), most) // BN * BN

    for at in tl.range(0, all_see, BN):
        acc, top, total = attend(
            acc, top, total, q, q_rest, k, v, stride_kc, stride_vc, tile.batch, tile.kv_head, at, most, seen,
            seen, scale_log2, BN, DK, DR, DV, False, False, TMA, PRECISION,
        )  # fmt: skip
    for at in tl.range(all_see, most, BN):
        acc, top, total = attend(
            acc, top, total, q, q_rest, k, v, stride_kc, stride_vc, tile.batch, tile.kv_head, at, most, seen,
            seen, scale_log2, BN, DK, DR, DV, True, False, TMA, PRECISION,
        )  # fmt: skip
    store_rows(Out, Lse, acc, top, total, real, tile, queries, kv_heads, G, GP, BQ, DV)
