"""Window attention, forward: every query against the last w tokens, itself among them."""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.triton.configs import config as shipped
from nsa_kernels.triton.online import attend, finish
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

SEARCH = tuple(
    {"BM": bm, "BN": bn, "TMA": tma, "num_warps": warps, "num_stages": stages}
    for bm, bn, tma, warps, stages in (
        (64, 64, 0, 4, 3),
        (64, 64, 0, 4, 2),
        (64, 32, 0, 4, 4),
        (64, 32, 0, 4, 3),
        (64, 64, 1, 4, 3),
        (64, 128, 0, 4, 2),
        (128, 64, 0, 8, 3),
        (128, 64, 1, 8, 3),
    )
)
"""Candidates for `benchmarks/tune_kernels.py`."""


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
    width, value_width = q.shape[-1], v.shape[-1]
    chosen = dict(config or shipped("window_forward", max(width, value_width), q.device))
    main, rest = split_width(width)
    bq, bn = queries_per_tile(chosen["BM"], grid), chosen["BN"]
    tma = bool(chosen.get("TMA")) and rest == 0 and bulk_copies(k, v)
    out = q.new_empty(*q.shape[:3], value_width)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    _window_forward[(triton.cdiv(grid.queries, bq), grid.batch * grid.kv_heads)](
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
        WINDOW=grid.geometry.window,
        TMA=tma,
        PRECISION=precision(q),
        **launch_options(chosen),
    )
    return out, lse


@triton.jit
def _window_forward(
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
    WINDOW: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program owns a packed tile of queries of one group and reads BQ + w - 1 keys at most."""
    tile = tl.program_id(0)
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
    low = position - WINDOW + 1
    high = tl.where(real, position + 1, 0)
    begin = tl.maximum(first - WINDOW + 1, 0)
    stop = tl.where(first < last, last, begin)

    acc = tl.zeros([BQ * GP, DV], tl.float32)
    top = tl.full([BQ * GP], float("-inf"), tl.float32)
    total = tl.zeros([BQ * GP], tl.float32)
    for at in tl.range(begin, stop, BN):
        acc, top, total = attend(
            acc, top, total, q, q_rest, k, v, stride_ks, stride_vs, batch, group, at, last, low, high,
            scale, BN, DK, DR, DV, True, True, TMA, PRECISION,
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
