"""Second pass of the masked backward: gradients of the keys and values of the selected branch and the window.

A program owns a tile of keys and goes through all queries behind them; scores stand keys by rows, as in
`backward/key_tiles.py`. Where both branches have the same keys, one pass serves both: their probabilities
differ, their products do not.
"""

from collections.abc import Mapping

import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.masked.conditions import all_chosen
from nsa_kernels.triton.masked.queries import QueryGradients
from nsa_kernels.triton.masked.steps import WORD
from nsa_kernels.triton.tiles import (
    MIN_DOT,
    Grid,
    launch_options,
    precision,
    queries_per_tile,
    row_pointers,
    wide,
)


def key_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    members: Tensor,
    rows: QueryGradients,
    grid: Grid,
    *,
    selected: bool,
    windowed: bool,
    config: Mapping[str, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of keys and values that one branch has, or both.

    Args:
        q: Queries [B, N, H, D_k].
        k: Keys [B, S, H_kv, D_k].
        v: Values [B, S, H_kv, D_v].
        dout: Gradient of the gated sum [B, N, H, D_v].
        members: Who chose what, as the forward kept it.
        rows: Of the first pass.
        grid: The call.
        selected: They are the selected branch's.
        windowed: They are the window's.
        config: BM rows and BN keys to a tile, num_warps, num_stages; None = as shipped.

    Returns:
        dk and dv, in the dtypes of k and v, contiguous; 0 where no query sees a key.
    """
    width, value_width = q.shape[-1], v.shape[-1]
    geometry, everything = grid.geometry, all_chosen(grid) or not selected
    chosen = dict(config or shipped("masked_keys", max(width, value_width), q.device))
    bn = chosen["BN"] if everything else min(chosen["BN"], geometry.select_block)
    dk, dv = k.new_empty(k.shape), v.new_empty(v.shape)
    _key_gradients_kernel[(triton.cdiv(k.shape[1], bn), grid.batch * grid.kv_heads)](
        q,
        k,
        v,
        dout,
        members,
        rows.dgates,
        rows.shifts,
        dk,
        dv,
        grid.starts,
        grid.ends,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *dout.stride()[:3],
        grid.queries,
        k.shape[1],
        grid.kv_heads,
        0 if everything else members.shape[-1],
        rows.dgates[0].numel(),
        grid.scale,
        grid.scale_log2,
        G=grid.group,
        GP=grid.padded_group,
        BQ=max(queries_per_tile(chosen["BM"], grid), MIN_DOT // grid.padded_group),
        BN=bn,
        DK=width,
        DV=value_width,
        SELECT=geometry.select_block,
        WINDOW=geometry.window,
        ALL=everything,
        SELECTED=selected,
        WINDOWED=windowed,
        PRECISION=precision(q),
        **launch_options(chosen),
    )
    return dk, dv


@triton.jit
def _meet_queries(
    number, dk, dv, k, v, position, Q, Dout, Words, Delta, Shift, Delta_win, Shift_win, place, start,
    real_queries, heads, word_stride, stride_qn, stride_qh, stride_don, stride_doh, scale_log2,
    G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr,
    WINDOW: tl.constexpr, ALL: tl.constexpr, SELECTED: tl.constexpr, WINDOWED: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds to dk and dv what query tile `number` gives."""
    row = tl.arange(0, BQ * GP)
    query = number * BQ + row // GP
    real = (query < real_queries) & (row % GP < G)
    q_rows = row_pointers(Q, number, row, stride_qn, stride_qh, BQ, GP)[:, None]
    q = tl.load(q_rows + tl.arange(0, DK)[None, :], mask=real[:, None], other=0.0)
    dout_rows = row_pointers(Dout, number, row, stride_don, stride_doh, BQ, GP)[:, None]
    dout = tl.load(dout_rows + tl.arange(0, DV)[None, :], mask=real[:, None], other=0.0)
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2
    dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
    if MASKED:
        seen = position[:, None] <= (start + query)[None, :]
    p = tl.zeros(scores.shape, tl.float32)
    ds = p
    if SELECTED:
        shift = tl.load(row_pointers(Shift, number, row, heads, 1, BQ, GP), mask=real, other=float("inf"))
        delta = tl.load(row_pointers(Delta, number, row, heads, 1, BQ, GP), mask=real, other=0.0)
        if not ALL:
            bits = tl.load(Words + wide(query) * word_stride, mask=real, other=0)
            shift = tl.where((bits >> place) & 1 != 0, shift, float("inf"))
        p = tl.exp2(scores - shift[None, :])
        if MASKED:
            p = tl.where(seen, p, 0.0)
        ds = p * (dp - delta[None, :])
    if WINDOWED:
        shift = tl.load(row_pointers(Shift_win, number, row, heads, 1, BQ, GP), mask=real, other=float("inf"))
        delta = tl.load(row_pointers(Delta_win, number, row, heads, 1, BQ, GP), mask=real, other=0.0)
        near = seen & ((start + query)[None, :] < (position + WINDOW)[:, None])
        windowed = tl.where(near, tl.exp2(scores - shift[None, :]), 0.0)
        p += windowed
        ds += windowed * (dp - delta[None, :])
    dv = tl.dot(p.to(dout.dtype), dout, dv, input_precision=PRECISION)
    dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=("queries", "keys", "words", "branch_stride"))
def _key_gradients_kernel(
    Q, K, V, Dout, Members, Deltas, Shifts, Dk, Dv, Starts, Ends,
    stride_qb, stride_qn, stride_qh, stride_kb, stride_ks, stride_kh, stride_vb, stride_vs, stride_vh,
    stride_dob, stride_don, stride_doh, queries, keys, kv_heads, words, branch_stride, scale, scale_log2,
    G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, BN: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr,
    SELECT: tl.constexpr, WINDOW: tl.constexpr, ALL: tl.constexpr, SELECTED: tl.constexpr,
    WINDOWED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program owns BN keys of one KV head; the first keys, which most queries see, go first."""
    first_key = tl.program_id(0) * BN
    batch = wide(tl.program_id(1) // kv_heads)
    kv_head = wide(tl.program_id(1) % kv_heads)
    start = tl.load(Starts + tl.program_id(1) // kv_heads)
    # No query sees a key behind the last: what stands there may be anything.
    end = tl.minimum(tl.load(Ends + tl.program_id(1) // kv_heads), start + queries)
    real_queries = tl.minimum(queries, end - start)
    position = first_key + tl.arange(0, BN)
    present = (position < end)[:, None]
    local = tl.arange(0, BN)[:, None]
    column = tl.arange(0, DK)[None, :]
    column_v = tl.arange(0, DV)[None, :]
    K += batch * stride_kb + wide(first_key) * stride_ks + kv_head * stride_kh
    V += batch * stride_vb + wide(first_key) * stride_vs + kv_head * stride_vh
    k = tl.load(K + local * stride_ks + column, mask=present, other=0.0)
    v = tl.load(V + local * stride_vs + column_v, mask=present, other=0.0)
    dk = tl.zeros([BN, DK], tl.float32)
    dv = tl.zeros([BN, DV], tl.float32)

    Q += batch * stride_qb + kv_head * G * stride_qh
    Dout += batch * stride_dob + kv_head * G * stride_doh
    rows = (batch * queries * kv_heads + kv_head) * G
    heads = kv_heads * G
    Delta = Deltas + branch_stride + rows
    Shift = Shifts + branch_stride + rows
    Delta_win = Deltas + 2 * branch_stride + rows
    Shift_win = Shifts + 2 * branch_stride + rows
    block = first_key // SELECT
    Words = Members + (batch * queries * kv_heads + kv_head) * words + block // WORD
    place = block % WORD
    word_stride = kv_heads * words

    # Queries, by their number in the row, that see a key of the tile: from `low` on, and up to `near` with a
    # mask, for the window or the diagonal.
    low = tl.minimum(tl.maximum(first_key - start, 0), tl.maximum(real_queries, 0)) // BQ
    near = first_key + BN - 1 - start
    if WINDOWED:
        near += WINDOW
    near = tl.cdiv(tl.minimum(tl.maximum(near, 0), tl.maximum(real_queries, 0)), BQ)
    for number in tl.range(low, near):
        dk, dv = _meet_queries(
            number, dk, dv, k, v, position, Q, Dout, Words, Delta, Shift, Delta_win, Shift_win, place, start,
            real_queries, heads, word_stride, stride_qn, stride_qh, stride_don, stride_doh, scale_log2,
            G, GP, BQ, DK, DV, WINDOW, ALL, SELECTED, WINDOWED, True, PRECISION,
        )  # fmt: skip
    if SELECTED:
        for number in tl.range(tl.maximum(low, near), tl.cdiv(real_queries, BQ)):
            dk, dv = _meet_queries(
                number, dk, dv, k, v, position, Q, Dout, Words, Delta, Shift, Delta_win, Shift_win, place,
                start, real_queries, heads, word_stride, stride_qn, stride_qh, stride_don, stride_doh,
                scale_log2, G, GP, BQ, DK, DV, WINDOW, ALL, True, False, False, PRECISION,
            )  # fmt: skip
    row = ((batch * keys + first_key) * kv_heads + kv_head) + local * kv_heads
    inside = (position < keys)[:, None]
    tl.store(Dk + row * DK + column, (dk * scale).to(Dk.dtype.element_ty), mask=inside)
    tl.store(Dv + row * DV + column_v, dv.to(Dv.dtype.element_ty), mask=inside)
