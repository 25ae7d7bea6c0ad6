"""First pass of the masked backward: gradients of the queries and gates, all branches in one launch.

A program owns a packed tile of queries and goes through the keys that it sees, as in the forward: dQ stays in
registers, and no float32 copy of it exists. It also leaves what the pass over the keys needs for each row.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.masked.conditions import all_chosen
from nsa_kernels.triton.masked.forward import Kept
from nsa_kernels.triton.masked.steps import WORD, first_word, lowest, pick, union_of, without_lowest
from nsa_kernels.triton.prefill.online import load_rows
from nsa_kernels.triton.prefill.packed import first_key, load_queries, rows_of, tile_at
from nsa_kernels.triton.tiles import (
    MIN_DOT,
    Grid,
    blocks_before,
    launch_options,
    precision,
    queries_per_tile,
    row_pointers,
    wide,
)
from nsa_kernels.types import Caches


class QueryGradients(NamedTuple):
    """Of the first pass."""

    dq: Tensor
    """[B, N, H, D_k], in the dtype of q."""
    dgates: Tensor
    """float32 [3, B, N, H]: <dout, out of the branch>, which the softmax subtracts as well; 0 at padding."""
    shifts: Tensor
    """float32 [3, B, N, H]: log-sum-exp of the branch less log2 of its gate; inf for nothing."""


def query_gradients(
    q: Tensor,
    caches: Caches,
    gates: Tensor,
    dout: Tensor,
    kept: Kept,
    grid: Grid,
    *,
    shared: bool,
    config: Mapping[str, int] | None = None,
) -> QueryGradients:
    """Gradients of queries and gates.

    Args:
        q: Queries [B, N, H, D_k].
        caches: Keys and values of the branches.
        gates: [B, N, H, 3], not negative.
        dout: Gradient of the gated sum [B, N, H, D_v].
        kept: What the forward kept.
        grid: The call.
        shared: Window and selected branch have the same keys and values, which are then met once.
        config: BM rows and BN keys to a tile, num_warps, num_stages; None = as shipped.
    """
    width, value_width = q.shape[-1], dout.shape[-1]
    geometry, everything = grid.geometry, all_chosen(grid)
    chosen = dict(config or shipped("masked_queries", max(width, value_width), q.device))
    bq = max(queries_per_tile(chosen["BM"], grid), MIN_DOT // grid.padded_group)
    made = QueryGradients(
        q.new_empty(q.shape),
        q.new_empty(3, *q.shape[:3], dtype=torch.float32),
        q.new_empty(3, *q.shape[:3], dtype=torch.float32),
    )
    _query_gradients_kernel[(triton.cdiv(grid.queries, bq), grid.batch * grid.kv_heads)](
        q,
        *caches,
        dout,
        gates,
        *kept,
        *made,
        grid.starts,
        grid.ends,
        *q.stride()[:3],
        *(stride for x in caches for stride in x.stride()[:3]),
        *dout.stride()[:3],
        *gates.stride(),
        grid.queries,
        grid.kv_heads,
        0 if everything else kept.members.shape[-1],
        made.dgates[0].numel(),
        grid.scale,
        grid.scale_log2,
        G=grid.group,
        GP=grid.padded_group,
        BQ=bq,
        BN=chosen["BN"] if everything else min(chosen["BN"], geometry.select_block),
        DK=width,
        DV=value_width,
        BLOCK=geometry.block,
        STRIDE=geometry.stride,
        SELECT=geometry.select_block,
        WINDOW=geometry.window,
        ALL=everything,
        SHARED=shared,
        PRECISION=precision(q),
        **launch_options(chosen),
    )
    return made


@triton.jit
def _prepare(
    Out, Lse, Gates, Dgates, Shifts, dout, real, inside, tile, row, queries, kv_heads,
    stride_gb, stride_gn, stride_gh, G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    """A branch's shift and delta of each row, written down as well; its log-sum-exp and gate."""
    heads = kv_heads * G
    first = (wide(tile.batch) * queries * kv_heads + tile.kv_head) * G
    rows = row_pointers(Out + first * DV, tile.number, row, heads * DV, DV, BQ, GP)
    out = tl.load(rows[:, None] + tl.arange(0, DV)[None, :], mask=real[:, None], other=0.0)
    delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
    lse = tl.load(
        row_pointers(Lse + first, tile.number, row, heads, 1, BQ, GP), mask=real, other=float("inf")
    )
    gates = Gates + wide(tile.batch) * stride_gb + wide(tile.kv_head) * G * stride_gh
    gate = tl.load(row_pointers(gates, tile.number, row, stride_gn, stride_gh, BQ, GP), mask=real, other=1.0)
    # A gate as a factor of every probability is a shift of the log-sum-exp.
    shift = lse - tl.log2(gate.to(tl.float32))
    tl.store(row_pointers(Dgates + first, tile.number, row, heads, 1, BQ, GP), delta, mask=inside)
    tl.store(row_pointers(Shifts + first, tile.number, row, heads, 1, BQ, GP), shift, mask=inside)
    return shift, delta, lse, gate.to(tl.float32)


@triton.jit
def _meet(
    dq, q, dout, k, v, stride_k, stride_v, at, limit, high, low, shift, weight, delta, shift_win, delta_win,
    scale_log2, BN: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, MASKED: tl.constexpr,
    LOW: tl.constexpr, BOTH: tl.constexpr, WEIGHTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds to dq what a tile of keys gives.

    Args as in `prefill.online.attend`, and: LOW, the branch itself begins at `low`. BOTH: the window, which
    begins there, adds its own. WEIGHTED: probabilities of another sum, with a weight for each row.
    """
    key = tl.arange(0, BN)
    keep = at + key < limit
    keys = load_rows(k + wide(at) * stride_k, key, stride_k, MASKED, keep, DK)
    values = load_rows(v + wide(at) * stride_v, key, stride_v, MASKED, keep, DV)
    scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION) * scale_log2
    dp = tl.dot(dout, tl.trans(values), input_precision=PRECISION)
    p = tl.exp2(scores - shift[:, None])
    if MASKED:
        seen = (at + key)[None, :] < high[:, None]
        late = (at + key)[None, :] >= low[:, None]
        p = tl.where(seen & late if LOW else seen, p, 0.0)
    if WEIGHTED:
        dp = weight[:, None] * dp
    ds = p * (dp - delta[:, None])
    if BOTH:
        p = tl.exp2(scores - shift_win[:, None])
        ds += tl.where(seen & late, p, 0.0) * (dp - delta_win[:, None])
    return tl.dot(ds.to(keys.dtype), keys, dq, input_precision=PRECISION)


@triton.jit(do_not_specialize=("queries", "words", "stride_gb", "branch_stride"))
def _query_gradients_kernel(
    Q, K_cmp, V_cmp, K_slc, V_slc, K_win, V_win, Dout, Gates, O_cmp, O_slc, O_win, Lse_cmp, Lse_slc, Lse_win,
    Members, Dq, Dgates, Shifts, Starts, Ends,
    stride_qb, stride_qn, stride_qh, stride_kcb, stride_kcc, stride_kch, stride_vcb, stride_vcc, stride_vch,
    stride_ksb, stride_kss, stride_ksh, stride_vsb, stride_vss, stride_vsh, stride_kwb, stride_kws,
    stride_kwh, stride_vwb, stride_vws, stride_vwh, stride_dob, stride_don, stride_doh, stride_gb, stride_gn,
    stride_gh, stride_gc, queries, kv_heads, words, branch_stride, scale, scale_log2,
    G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, BN: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr,
    BLOCK: tl.constexpr, STRIDE: tl.constexpr, SELECT: tl.constexpr, WINDOW: tl.constexpr, ALL: tl.constexpr,
    SHARED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program owns a packed tile of queries of one group; long tiles go first."""
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    tile = tile_at(number, tl.program_id(1), Starts, Ends, queries, kv_heads, BQ)
    row = tl.arange(0, BQ * GP)
    position, real = rows_of(tile, row, queries, G, GP, BQ)
    inside = (number * BQ + row // GP < queries) & (row % GP < G)
    q, _ = load_queries(Q, tile, row, real, stride_qb, stride_qn, stride_qh, G, GP, BQ, DK, 0)
    dout, _ = load_queries(Dout, tile, row, real, stride_dob, stride_don, stride_doh, G, GP, BQ, DV, 0)
    first = tile.first
    last = tl.where(first < tile.last, tile.last, 0)
    behind = tl.where(real, position + 1, 0)
    low = position - WINDOW + 1
    dq = tl.zeros([BQ * GP, DK], tl.float32)

    shift, delta, _, _ = _prepare(
        O_cmp, Lse_cmp, Gates, Dgates, Shifts, dout, real, inside, tile, row, queries, kv_heads,
        stride_gb, stride_gn, stride_gh, G, GP, BQ, DV,
    )  # fmt: skip
    k = first_key(K_cmp, tile, stride_kcb, stride_kch, False)
    v = first_key(V_cmp, tile, stride_vcb, stride_vch, False)
    seen = tl.where(real, blocks_before(position + 1, BLOCK, STRIDE), 0)
    most = blocks_before(last, BLOCK, STRIDE)
    for at in tl.range(0, most, BN):
        dq = _meet(
            dq, q, dout, k, v, stride_kcc, stride_vcc, at, most, seen, low, shift, delta, delta, shift,
            delta, scale_log2, BN, DK, DV, True, False, False, False, PRECISION,
        )  # fmt: skip

    shift, delta, lse, gate = _prepare(
        O_slc, Lse_slc, Gates + stride_gc, Dgates + branch_stride, Shifts + branch_stride, dout, real, inside,
        tile, row, queries, kv_heads, stride_gb, stride_gn, stride_gh, G, GP, BQ, DV,
    )  # fmt: skip
    shift_win, delta_win, lse_win, gate_win = _prepare(
        O_win, Lse_win, Gates + 2 * stride_gc, Dgates + 2 * branch_stride, Shifts + 2 * branch_stride, dout,
        real, inside, tile, row, queries, kv_heads, stride_gb, stride_gn, stride_gh, G, GP, BQ, DV,
    )  # fmt: skip
    k = first_key(K_slc, tile, stride_ksb, stride_ksh, False)
    v = first_key(V_slc, tile, stride_vsb, stride_vsh, False)
    # Whole tiles of keys before `near` are before every query, and in no window where that shares the keys.
    UNIT: tl.constexpr = BN if ALL else SELECT
    whole = tl.where(last > 0, (first + 1) // BN * BN, 0)
    near = first // UNIT * UNIT
    if SHARED:
        near = tl.maximum(first - WINDOW + 1, 0) // UNIT * UNIT
    near = tl.where(last > 0, near, 0)
    if ALL:
        for at in tl.range(0, near, BN):
            dq = _meet(
                dq, q, dout, k, v, stride_kss, stride_vss, at, last, behind, low, shift, delta, delta, shift,
                delta, scale_log2, BN, DK, DV, False, False, False, False, PRECISION,
            )  # fmt: skip
    else:
        words_at = (wide(tile.batch) * queries + number * BQ + row // GP) * kv_heads + tile.kv_head
        words_at = Members + words_at * words
        bits0 = tl.load(words_at, mask=real, other=0)
        bits1 = tl.load(words_at + 1, mask=real & (words > 1), other=0)
        bits2 = tl.load(words_at + 2, mask=real & (words > 2), other=0)
        bits3 = tl.load(words_at + 3, mask=real & (words > 3), other=0)
        left0, count0 = union_of(bits0, near // SELECT)
        left1, count1 = union_of(bits1, near // SELECT - WORD)
        left2, count2 = union_of(bits2, near // SELECT - 2 * WORD)
        left3, count3 = union_of(bits3, near // SELECT - 3 * WORD)
        STEPS: tl.constexpr = SELECT // BN
        for step in tl.range(0, (count0 + count1 + count2 + count3) * STEPS):
            word = first_word(left0, left1, left2, left3)
            place = lowest(pick(word, left0, left1, left2, left3))
            member = (pick(word, bits0, bits1, bits2, bits3) >> place) & 1 != 0
            dq = _meet(
                dq, q, dout, k, v, stride_kss, stride_vss,
                (word * WORD + place) * SELECT + step % STEPS * BN, last, behind, low,
                tl.where(member, shift, float("inf")), delta, delta, shift, delta, scale_log2, BN, DK, DV,
                False, False, False, False, PRECISION,
            )  # fmt: skip
            done = step % STEPS == STEPS - 1
            left0 = without_lowest(left0, word, 0, done)
            left1 = without_lowest(left1, word, 1, done)
            left2 = without_lowest(left2, word, 2, done)
            left3 = without_lowest(left3, word, 3, done)
    if SHARED:
        # From `inner` on all rows have a tile's keys in their windows: one probability serves both branches.
        inner = tl.cdiv(tl.maximum(first + BQ - WINDOW, 0), BN) * BN
        inner = tl.where(last > 0, tl.maximum(inner, near), 0)
        # What a key's share in the window is in the selected branch. The bound is for infinities alone.
        apart = tl.where(real, lse_win, 0.0) - tl.where(real, lse, 0.0)
        share = tl.where(real, gate * tl.exp2(tl.minimum(apart, 120.0)), 0.0)
        weight = gate_win + share
        both = gate_win * delta_win + share * delta
        for at in tl.range(near, tl.minimum(inner, last), BN):
            here = shift
            if not ALL:
                block = at // SELECT
                bits = pick(block // WORD, bits0, bits1, bits2, bits3)
                here = tl.where((bits >> block % WORD) & 1 != 0, shift, float("inf"))
            dq = _meet(
                dq, q, dout, k, v, stride_kss, stride_vss, at, last, behind, low, here, delta, delta,
                shift_win, delta_win, scale_log2, BN, DK, DV, True, False, True, False, PRECISION,
            )  # fmt: skip
        for at in tl.range(inner, whole, BN):
            if not ALL:
                block = at // SELECT
                bits = pick(block // WORD, bits0, bits1, bits2, bits3)
                here = tl.where((bits >> block % WORD) & 1 != 0, share, 0.0)
                weight = gate_win + here
                both = gate_win * delta_win + here * delta
            dq = _meet(
                dq, q, dout, k, v, stride_kss, stride_vss, at, last, behind, low, lse_win, weight, both,
                shift, delta, scale_log2, BN, DK, DV, False, False, False, True, PRECISION,
            )  # fmt: skip
        for at in tl.range(tl.maximum(inner, whole), last, BN):
            if not ALL:
                block = at // SELECT
                bits = pick(block // WORD, bits0, bits1, bits2, bits3)
                here = tl.where((bits >> block % WORD) & 1 != 0, share, 0.0)
                weight = gate_win + here
                both = gate_win * delta_win + here * delta
            dq = _meet(
                dq, q, dout, k, v, stride_kss, stride_vss, at, last, behind, low, lse_win, weight, both,
                shift, delta, scale_log2, BN, DK, DV, True, False, False, True, PRECISION,
            )  # fmt: skip
    else:
        for at in tl.range(near, last, BN):
            here = shift
            if not ALL:
                block = at // SELECT
                bits = pick(block // WORD, bits0, bits1, bits2, bits3)
                here = tl.where((bits >> block % WORD) & 1 != 0, shift, float("inf"))
            dq = _meet(
                dq, q, dout, k, v, stride_kss, stride_vss, at, last, behind, low, here, delta, delta, shift,
                delta, scale_log2, BN, DK, DV, True, False, False, False, PRECISION,
            )  # fmt: skip
        k = first_key(K_win, tile, stride_kwb, stride_kwh, False)
        v = first_key(V_win, tile, stride_vwb, stride_vwh, False)
        for at in tl.range(tl.where(last > 0, tl.maximum(first - WINDOW + 1, 0) // BN * BN, 0), last, BN):
            dq = _meet(
                dq, q, dout, k, v, stride_kws, stride_vws, at, last, behind, low, shift_win, delta_win,
                delta_win, shift, delta, scale_log2, BN, DK, DV, True, True, False, False, PRECISION,
            )  # fmt: skip

    rows = (wide(tile.batch) * queries * kv_heads + tile.kv_head) * G * DK
    rows = row_pointers(Dq + rows, number, row, kv_heads * G * DK, DK, BQ, GP)
    at = rows[:, None] + tl.arange(0, DK)[None, :]
    tl.store(at, (dq * scale).to(Dq.dtype.element_ty), mask=inside[:, None])
