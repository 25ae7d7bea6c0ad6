"""Window attention, forward: every query against the last w tokens, itself among them."""

from collections.abc import Mapping

import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.triton.online import attend
from nsa_kernels.triton.packed import first_key, launch_packed, load_queries, store_rows
from nsa_kernels.triton.tiles import Grid

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
    return launch_packed(
        _window_forward,
        "window_forward",
        q,
        k,
        v,
        grid,
        config,
        WINDOW=grid.geometry.window,
    )


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
    q, q_rest = load_queries(
        Q, tile, batch, group, real, stride_qb, stride_qn, stride_qh, G, GP, BQ, DK, DR
    )  # fmt: skip
    k = first_key(K, batch, group, stride_kb, stride_kh, TMA)
    v = first_key(V, batch, group, stride_vb, stride_vh, TMA)

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
    store_rows(Out, Lse, acc, top, total, real, tile, batch, group, N, HKV, G, GP, BQ, DV)
