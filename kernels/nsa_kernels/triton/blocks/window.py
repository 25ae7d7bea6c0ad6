"""Attention that keys got from the queries that have them in their window, by the queries' log-sum-exps.

A program owns a tile of keys of one head and walks over the queries behind them: nothing is added up between
programs, so the sums are the same each time.
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.ahead import launch
from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.tiles import LOG2E, launch_options, precision, rows_contiguous, wide


def window_sums(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    *,
    window: int,
    scale: float,
    config: Mapping[str, int] | None = None,
) -> Tensor:
    """As `nsa_kernels.window.window_sums`; `config` is a launch configuration, None = the shipped one."""
    q, k, lse = rows_contiguous(q), rows_contiguous(k), lse.float()
    (queries, heads, width), (keys, kv_heads) = q.shape, k.shape[:2]
    front = max(0, keys - queries - window + 1)
    chosen = dict(config or shipped("window_sums", width, q.device))
    sums = torch.empty(heads, keys - front, dtype=torch.float32, device=q.device)
    launch(window_sums_kernel, (triton.cdiv(keys - front, chosen["BN"]), heads))(
        q,
        k,
        lse,
        sums,
        *q.stride()[:2],
        *k.stride()[:2],
        *lse.stride(),
        queries,
        keys,
        front,
        window,
        scale * LOG2E,
        GROUP=heads // kv_heads,
        BM=chosen["BM"],
        BN=chosen["BN"],
        DK=width,
        PRECISION=precision(q),
        **launch_options(chosen),
    )
    return sums


@triton.jit(do_not_specialize=("queries", "keys", "front", "window"))
def window_sums_kernel(
    Q, K, Lse, Sums, stride_qn, stride_qh, stride_ks, stride_kh, stride_lh, stride_ln,
    queries, keys, front, window, scale_log2,
    GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, DK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(W / BN), H)."""
    begin, head = front + tl.program_id(0) * BN, tl.program_id(1)
    first = keys - queries
    key = begin + tl.arange(0, BN)
    column = tl.arange(0, DK)
    k_at = K + wide(head // GROUP) * stride_kh + key.to(tl.int64)[:, None] * stride_ks + column[None, :]
    k = tl.load(k_at, mask=(key < keys)[:, None], other=0.0)
    q_at = Q + wide(head) * stride_qh + column[None, :]
    lse_at = Lse + wide(head) * stride_lh
    sums = tl.zeros([BN], tl.float32)
    # From the query at the tile's first key to the last that has its last one in its window.
    start = tl.maximum(begin - first, 0)
    stop = tl.minimum(begin + BN - 1 + window - first, queries)
    for at in tl.range(start, stop, BM):
        query = at + tl.arange(0, BM)
        there = query < stop
        q = tl.load(q_at + query.to(tl.int64)[:, None] * stride_qn, mask=there[:, None], other=0.0)
        lse = tl.load(lse_at + query * stride_ln, mask=there, other=float("inf"))
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2
        distance = (first + query)[None, :] - key[:, None]
        seen = (distance >= 0) & (distance < window)
        weights = tl.exp2(scores - (lse * 1.4426950408889634)[None, :])
        sums += tl.sum(tl.where(seen, weights, 0.0), 1)
    tl.store(Sums + wide(head) * (keys - front) + (key - front), sums, mask=key < keys)
