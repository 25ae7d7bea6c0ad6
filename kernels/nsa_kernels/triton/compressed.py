"""Compressed attention, forward: every query against the compression blocks that are complete."""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.geometry import num_blocks
from nsa_kernels.triton.configs import config as shipped
from nsa_kernels.triton.online import attend, finish
from nsa_kernels.triton.tiles import (
    Grid,
    blocks_before,
    bulk_copies,
    descriptor,
    launch_options,
    precision,
    queries_per_tile,
    row_pointers,
    split_width,
    wide,
)

SEARCH = tuple(
    {"BM": bm, "BN": bn, "TMA": tma, "num_warps": warps, "num_stages": stages} | limit
    for bm, bn, tma, warps, stages, limit in (
        (64, 64, 1, 4, 3, {}),
        (64, 128, 1, 4, 1, {}),
        (64, 64, 1, 4, 1, {}),
        (64, 64, 1, 4, 1, {"maxnreg": 168}),
        (64, 32, 1, 4, 3, {"maxnreg": 168}),
        (64, 64, 1, 4, 2, {"maxnreg": 168}),
        (128, 64, 1, 8, 2, {"maxnreg": 128}),
        (128, 128, 1, 8, 3, {}),
        (64, 64, 0, 4, 3, {}),
    )
)
"""Candidates for `benchmarks/tune_kernels.py`."""


def compressed_forward(
    q: Tensor, k: Tensor, v: Tensor, grid: Grid, *, config: Mapping[str, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each query to the complete compression blocks.

    Args:
        q: Queries [B, N, H, D_k].
        k: Compressed keys [B, C, H_kv, D_k].
        v: Compressed values [B, C, H_kv, D_v].
        grid: Positions and sizes.
        config: Launch configuration; None = the shipped one.

    Returns:
        Output [B, N, H, D_v] in the dtype of q, 0 where no block is visible; log-sum-exp float32 [B, N, H] in
        units of log2, +inf there.
    """
    width, value_width = q.shape[-1], v.shape[-1]
    chosen = dict(config or shipped("compressed_forward", max(width, value_width), q.device))
    main, rest = split_width(width)
    bq, bn = queries_per_tile(chosen["BM"], grid), chosen["BN"]
    complete = num_blocks(grid.longest, grid.geometry)
    tma = bool(chosen.get("TMA")) and rest == 0 and complete > 0 and bulk_copies(k, v)
    out = q.new_empty(*q.shape[:3], value_width)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    _compressed_forward[(triton.cdiv(grid.queries, bq), grid.batch * grid.kv_heads)](
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
        BLOCK=grid.geometry.block,
        STRIDE=grid.geometry.stride,
        TMA=tma,
        PRECISION=precision(q),
        **launch_options(chosen),
    )
    return out, lse


@triton.jit
def _compressed_forward(
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
    N,
    HKV,
    scale,
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
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    batch = tl.program_id(1) // HKV
    group = tl.program_id(1) % HKV
    start = tl.load(Starts + batch)
    end = tl.load(Ends + batch)
    row = tl.arange(0, BQ * GP)
    query = tile * BQ + row // GP
    position = start + query
    real = (query < N) & (row % GP < G) & (position < end)
    batch64 = wide(batch)

    q_at = Q + batch64 * stride_qb + wide(group) * G * stride_qh
    q_rows = row_pointers(q_at, tile, row, stride_qn, stride_qh, BQ, GP)
    q = tl.load(q_rows[:, None] + tl.arange(0, DK)[None, :], mask=real[:, None], other=0.0)
    q_rest = q
    if DR:
        q_rest = tl.load(q_rows[:, None] + DK + tl.arange(0, DR)[None, :], mask=real[:, None], other=0.0)
    if TMA:
        k = K
        v = V
    else:
        k = K + batch64 * stride_kb + wide(group) * stride_kh
        v = V + batch64 * stride_vb + wide(group) * stride_vh

    first = start + tile * BQ
    last = tl.minimum(tl.minimum(first + BQ, start + N), end)  # exclusive
    seen = tl.where(real, blocks_before(position + 1, BLOCK, STRIDE), 0)
    most = tl.where(first < last, blocks_before(last, BLOCK, STRIDE), 0)
    all_see = tl.minimum(blocks_before(first + 1, BLOCK, STRIDE), most) // BN * BN

    acc = tl.zeros([BQ * GP, DV], tl.float32)
    top = tl.full([BQ * GP], float("-inf"), tl.float32)
    total = tl.zeros([BQ * GP], tl.float32)
    for at in tl.range(0, all_see, BN):
        acc, top, total = attend(
            acc, top, total, q, q_rest, k, v, stride_kc, stride_vc, batch, group, at, most, seen, seen,
            scale, BN, DK, DR, DV, False, False, TMA, PRECISION,
        )  # fmt: skip
    for at in tl.range(all_see, most, BN):
        acc, top, total = attend(
            acc, top, total, q, q_rest, k, v, stride_kc, stride_vc, batch, group, at, most, seen, seen,
            scale, BN, DK, DR, DV, True, False, TMA, PRECISION,
        )  # fmt: skip
    acc, lse = finish(acc, top, total)
    acc = tl.where(real[:, None], acc, 0.0)
    lse = tl.where(real, lse, float("inf"))

    inside = (query < N) & (row % GP < G)
    heads = HKV * G
    rows = (batch64 * N * HKV + group) * G  # of [B, N, H], contiguous
    lse_rows = row_pointers(Lse + rows, tile, row, heads, 1, BQ, GP)
    tl.store(lse_rows, lse, mask=inside)
    out_rows = row_pointers(Out + rows * DV, tile, row, heads * DV, DV, BQ, GP)
    out = out_rows[:, None] + tl.arange(0, DV)[None, :]
    tl.store(out, acc.to(Out.dtype.element_ty), mask=inside[:, None])
