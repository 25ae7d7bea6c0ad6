"""The masked forward: selected and window branch, gates and sum in one launch, of few launches in all.

Where everything is selected there are no scores to rank, and compressed attention is in the launch too. A
query tile stays in registers for all branches; their sum is made there, and the branches' own outputs go to
memory for the backward alone.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.ahead import launch
from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.masked.conditions import all_chosen
from nsa_kernels.triton.masked.steps import (
    WORD,
    bits_of,
    chose,
    chosen_by_rows,
    first_word,
    lowest,
    pick,
    union_of,
    without_lowest,
)
from nsa_kernels.triton.prefill.online import attend, finish, load_rows
from nsa_kernels.triton.prefill.packed import first_key, load_queries, nothing_seen, rows_of, tile_at
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


class Kept(NamedTuple):
    """What the backward needs of the forward; empty tensors where it was not asked to keep it."""

    o_cmp: Tensor
    """[B, N, H, D_v]."""
    o_slc: Tensor
    o_win: Tensor
    lse_cmp: Tensor
    """float32 [B, N, H], units of log2, +inf for nothing seen."""
    lse_slc: Tensor
    lse_win: Tensor
    members: Tensor
    """int32 [B, N, H_kv, words]: bit i of word w says that the query chose block 32 w + i, up to its own;
    empty where all queries choose everything."""


def masked_forward(
    q: Tensor,
    caches: Caches,
    gates: Tensor,
    compressed: tuple[Tensor, Tensor] | None,
    blocks: Tensor | None,
    grid: Grid,
    *,
    shared: bool,
    save: bool,
    config: Mapping[str, int] | None = None,
) -> tuple[Tensor, Kept]:
    """The gated sum of the branches, for calls that `conditions.serves_forward` admits.

    Args:
        q: Queries [B, N, H, D_k].
        caches: Keys and values of the branches.
        gates: [B, N, H, 3].
        compressed: Output of the compressed branch, contiguous, and its log-sum-exp; None where all blocks
            are chosen: then it is computed here.
        blocks: Chosen blocks int32 [B, N, H_kv, n]; None where `compressed` is.
        grid: Positions and sizes.
        shared: Window and selected branch have the same keys and values.
        save: Keep what the backward needs.
        config: BM rows and BN keys to a tile, num_warps, num_stages; SKIP: pass over blocks that no query of
            a tile chose. None = as shipped.

    Returns:
        [B, N, H, D_v], 0 at padding; what was kept.
    """
    width, value_width = q.shape[-1], caches.v_slc.shape[-1]
    geometry, everything = grid.geometry, all_chosen(grid)
    stage = "masked_everything" if everything else "masked_forward"
    chosen = dict(config or shipped(stage, max(width, value_width), q.device))
    bq = max(queries_per_tile(chosen["BM"], grid), MIN_DOT // grid.padded_group)
    bn = chosen["BN"] if everything else min(chosen["BN"], geometry.select_block)
    out = q.new_empty(*q.shape[:3], value_width)
    if compressed is None:
        kept_cmp = _room(out, save)
        o_cmp, lse_cmp = kept_cmp if save else (out, grid.starts)
    else:
        o_cmp, lse_cmp = kept_cmp = compressed
    kept_slc, kept_win = _room(out, save), _room(out, save)
    words = triton.cdiv(geometry.num_select_blocks(grid.longest), WORD.value)
    listed = save and not everything
    members = grid.starts.new_empty((*q.shape[:2], grid.kv_heads, words) if listed else (0,))
    launch(_masked_forward_kernel, (triton.cdiv(grid.queries, bq), grid.batch * grid.kv_heads))(
        q,
        *caches,
        gates,
        grid.starts if blocks is None else blocks,
        o_cmp,
        lse_cmp,
        *kept_slc,
        *kept_win,
        members,
        out,
        grid.starts,
        grid.ends,
        *q.stride()[:3],
        *(stride for x in caches for stride in x.stride()[:3]),
        *gates.stride(),
        grid.queries,
        grid.kv_heads,
        words,
        grid.scale_log2,
        G=grid.group,
        GP=grid.padded_group,
        BQ=bq,
        BN=bn,
        DK=width,
        DV=value_width,
        BLOCK=geometry.block,
        STRIDE=geometry.stride,
        SELECT=geometry.select_block,
        COUNT=geometry.select_count,
        COUNT_P=triton.next_power_of_2(geometry.select_count),
        WINDOW=geometry.window,
        ALL=everything,
        SKIP=bool(chosen.get("SKIP")),
        SHARED=shared and everything,
        SAVE=save,
        PRECISION=precision(q),
        **launch_options(chosen),
    )
    return out, Kept(kept_cmp[0], kept_slc[0], kept_win[0], kept_cmp[1], kept_slc[1], kept_win[1], members)


def _room(out: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    """For a branch's output and log-sum-exp."""
    shape = out.shape if save else torch.Size((0,))
    return out.new_empty(shape), out.new_empty(shape[:3], dtype=torch.float32)


@triton.jit
def _gated(
    result, Gates, Out, Lse, acc, top, total, real, inside, tile, row, queries, kv_heads,
    stride_gb, stride_gn, stride_gh, SAVE: tl.constexpr,
    G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    """Adds a branch to the sum, by its gate; writes its output and log-sum-exp if they are kept."""
    acc, lse = finish(acc, top, total)
    acc = tl.where(real[:, None], acc, 0.0)
    gates = Gates + wide(tile.batch) * stride_gb + wide(tile.kv_head) * G * stride_gh
    gate = tl.load(row_pointers(gates, tile.number, row, stride_gn, stride_gh, BQ, GP), mask=real, other=0.0)
    if SAVE:
        lse = tl.where(real, lse, float("inf"))
        first = (wide(tile.batch) * queries * kv_heads + tile.kv_head) * G
        tl.store(row_pointers(Lse + first, tile.number, row, kv_heads * G, 1, BQ, GP), lse, mask=inside)
        rows = row_pointers(Out + first * DV, tile.number, row, kv_heads * G * DV, DV, BQ, GP)
        at = rows[:, None] + tl.arange(0, DV)[None, :]
        tl.store(at, acc.to(Out.dtype.element_ty), mask=inside[:, None])
    return result + gate.to(tl.float32)[:, None] * acc


@triton.jit
def _attend_members(
    acc, top, total, q, k, v, stride_k, stride_v, first, member, scale_log2,
    BN: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds a tile of keys to the rows that are members, whose tops are numbers already.

    A row that is none gets a shift of infinity: its weights are 0, at no cost for each score.
    """
    key = tl.arange(0, BN)
    keys = load_rows(k + wide(first) * stride_k, key, stride_k, False, member, DK)
    scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
    best = tl.where(member, tl.max(scores, 1) * scale_log2, float("-inf"))
    new_top = tl.maximum(top, best)
    p = tl.exp2(scores * scale_log2 - tl.where(member, new_top, float("inf"))[:, None])
    fade = tl.exp2(top - new_top)
    total = total * fade + tl.sum(p, 1)
    acc = acc * fade[:, None]
    values = load_rows(v + wide(first) * stride_v, key, stride_v, False, member, DV)
    acc = tl.dot(p.to(values.dtype), values, acc, input_precision=PRECISION)
    return acc, new_top, total


@triton.jit(do_not_specialize=("queries", "words", "stride_gb"))
def _masked_forward_kernel(
    Q, K_cmp, V_cmp, K_slc, V_slc, K_win, V_win, Gates, Blocks, O_cmp, Lse_cmp, O_slc, Lse_slc, O_win,
    Lse_win, Members, Out, Starts, Ends,
    stride_qb, stride_qn, stride_qh, stride_kcb, stride_kcc, stride_kch, stride_vcb, stride_vcc, stride_vch,
    stride_ksb, stride_kss, stride_ksh, stride_vsb, stride_vss, stride_vsh, stride_kwb, stride_kws,
    stride_kwh, stride_vwb, stride_vws, stride_vwh, stride_gb, stride_gn, stride_gh, stride_gc,
    queries, kv_heads, words, scale_log2,
    G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, BN: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr,
    BLOCK: tl.constexpr, STRIDE: tl.constexpr, SELECT: tl.constexpr, COUNT: tl.constexpr,
    COUNT_P: tl.constexpr, WINDOW: tl.constexpr, ALL: tl.constexpr, SKIP: tl.constexpr,
    SHARED: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program owns a packed tile of queries of one group; long tiles go first."""
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    tile = tile_at(number, tl.program_id(1), Starts, Ends, queries, kv_heads, BQ)
    row = tl.arange(0, BQ * GP)
    position, real = rows_of(tile, row, queries, G, GP, BQ)
    inside = (number * BQ + row // GP < queries) & (row % GP < G)
    q, q_rest = load_queries(Q, tile, row, real, stride_qb, stride_qn, stride_qh, G, GP, BQ, DK, 0)
    batch = tile.batch
    kv_head = tile.kv_head
    first = tile.first
    last = tl.where(first < tile.last, tile.last, 0)
    behind = tl.where(real, position + 1, 0)
    result = tl.zeros([BQ * GP, DV], tl.float32)

    # Compressed attention.
    if ALL:
        k = first_key(K_cmp, tile, stride_kcb, stride_kch, False)
        v = first_key(V_cmp, tile, stride_vcb, stride_vch, False)
        acc, top, total = nothing_seen(BQ * GP, DV)
        seen = tl.where(real, blocks_before(position + 1, BLOCK, STRIDE), 0)
        for at in tl.range(0, blocks_before(last, BLOCK, STRIDE), BN):
            acc, top, total = attend(
                acc, top, total, q, q_rest, k, v, stride_kcc, stride_vcc, batch, kv_head, at,
                blocks_before(last, BLOCK, STRIDE), seen, seen, scale_log2, BN, DK, 0, DV, True, False, False,
                PRECISION,
            )  # fmt: skip
        result = _gated(
            result, Gates, O_cmp, Lse_cmp, acc, top, total, real, inside, tile, row, queries, kv_heads,
            stride_gb, stride_gn, stride_gh, SAVE, G, GP, BQ, DV,
        )  # fmt: skip

    # The selected branch. Blocks from `edge` on need the causal mask.
    k = first_key(K_slc, tile, stride_ksb, stride_ksh, False)
    v = first_key(V_slc, tile, stride_vsb, stride_vsh, False)
    acc, top, total = nothing_seen(BQ * GP, DV)
    low = position - WINDOW + 1
    whole = tl.where(last > 0, (first + 1) // BN * BN, 0)
    if SHARED:
        # Every key in the window is selected: the window's softmax is a part of the selected branch's. From
        # `near` on some row sees a key of the tile in its window, from `inner` on all rows see all of them.
        near = tl.where(last > 0, tl.maximum(first - WINDOW + 1, 0) // BN * BN, 0)
        inner = tl.cdiv(tl.maximum(first + BQ - WINDOW, 0), BN) * BN
        inner = tl.minimum(tl.maximum(inner, near), whole)
        for at in tl.range(near, inner, BN):
            acc, top, total = attend(
                acc, top, total, q, q_rest, k, v, stride_kss, stride_vss, batch, kv_head, at, last, low,
                behind, scale_log2, BN, DK, 0, DV, True, True, False, PRECISION,
            )  # fmt: skip
        for at in tl.range(inner, whole, BN):
            acc, top, total = attend(
                acc, top, total, q, q_rest, k, v, stride_kss, stride_vss, batch, kv_head, at, last, low,
                behind, scale_log2, BN, DK, 0, DV, False, False, False, PRECISION,
            )  # fmt: skip
        for at in tl.range(tl.maximum(inner, whole), last, BN):
            acc, top, total = attend(
                acc, top, total, q, q_rest, k, v, stride_kss, stride_vss, batch, kv_head, at, last, low,
                behind, scale_log2, BN, DK, 0, DV, True, True, False, PRECISION,
            )  # fmt: skip
        result = _gated(
            result, Gates + 2 * stride_gc, O_win, Lse_win, acc, top, total, real, inside, tile, row, queries,
            kv_heads, stride_gb, stride_gn, stride_gh, SAVE, G, GP, BQ, DV,
        )  # fmt: skip
        # The selected branch goes on with the keys before.
        for at in tl.range(0, near, BN):
            acc, top, total = attend(
                acc, top, total, q, q_rest, k, v, stride_kss, stride_vss, batch, kv_head, at, last, low,
                behind, scale_log2, BN, DK, 0, DV, False, False, False, PRECISION,
            )  # fmt: skip
        for at in tl.range(near, tl.minimum(tl.maximum(first + BQ - WINDOW, 0), last), BN):
            high = tl.where(real, low, 0)
            acc, top, total = attend(
                acc, top, total, q, q_rest, k, v, stride_kss, stride_vss, batch, kv_head, at, last, high,
                high, scale_log2, BN, DK, 0, DV, True, False, False, PRECISION,
            )  # fmt: skip
    elif ALL:
        for at in tl.range(0, whole, BN):
            acc, top, total = attend(
                acc, top, total, q, q_rest, k, v, stride_kss, stride_vss, batch, kv_head, at, last, behind,
                behind, scale_log2, BN, DK, 0, DV, False, False, False, PRECISION,
            )  # fmt: skip
        for at in tl.range(whole, last, BN):
            acc, top, total = attend(
                acc, top, total, q, q_rest, k, v, stride_kss, stride_vss, batch, kv_head, at, last, behind,
                behind, scale_log2, BN, DK, 0, DV, True, False, False, PRECISION,
            )  # fmt: skip
    else:
        chosen = chosen_by_rows(Blocks, tile, row, real, queries, kv_heads, GP, BQ, COUNT, COUNT_P)
        bits0 = bits_of(chosen, 0)
        bits1 = bits_of(chosen, 1)
        bits2 = bits_of(chosen, 2)
        bits3 = bits_of(chosen, 3)
        if SAVE:
            at_word = (wide(batch) * queries + number * BQ + row // GP) * kv_heads + kv_head
            one = inside & (row % GP == 0)
            for i in tl.static_range(4):
                bits = pick(i, bits0, bits1, bits2, bits3)
                tl.store(Members + at_word * words + i, bits, mask=one & (i < words))
        edge = tl.where(last > 0, first // SELECT, 0)
        # These come first: every query chose its own block, so that all tops are numbers behind them.
        for at in tl.range(edge * SELECT, last, BN):
            high = tl.where(chose(chosen, at // SELECT), behind, 0)
            acc, top, total = attend(
                acc, top, total, q, q_rest, k, v, stride_kss, stride_vss, batch, kv_head, at, last, high,
                high, scale_log2, BN, DK, 0, DV, True, False, False, PRECISION,
            )  # fmt: skip
        top = tl.where(real, top, 0.0)
        STEPS: tl.constexpr = SELECT // BN
        if SKIP:
            left0, count0 = union_of(bits0, edge)
            left1, count1 = union_of(bits1, edge - WORD)
            left2, count2 = union_of(bits2, edge - 2 * WORD)
            left3, count3 = union_of(bits3, edge - 3 * WORD)
            for step in tl.range(0, (count0 + count1 + count2 + count3) * STEPS):
                word = first_word(left0, left1, left2, left3)
                place = lowest(pick(word, left0, left1, left2, left3))
                member = (pick(word, bits0, bits1, bits2, bits3) >> place) & 1 != 0
                acc, top, total = _attend_members(
                    acc, top, total, q, k, v, stride_kss, stride_vss,
                    (word * WORD + place) * SELECT + step % STEPS * BN, member, scale_log2,
                    BN, DK, DV, PRECISION,
                )  # fmt: skip
                done = step % STEPS == STEPS - 1
                left0 = without_lowest(left0, word, 0, done)
                left1 = without_lowest(left1, word, 1, done)
                left2 = without_lowest(left2, word, 2, done)
                left3 = without_lowest(left3, word, 3, done)
        else:
            for step in tl.range(0, edge * STEPS):
                block = step // STEPS
                member = (pick(block // WORD, bits0, bits1, bits2, bits3) >> block % WORD) & 1 != 0
                acc, top, total = _attend_members(
                    acc, top, total, q, k, v, stride_kss, stride_vss, step * BN, member, scale_log2,
                    BN, DK, DV, PRECISION,
                )  # fmt: skip
    result = _gated(
        result, Gates + stride_gc, O_slc, Lse_slc, acc, top, total, real, inside, tile, row, queries,
        kv_heads, stride_gb, stride_gn, stride_gh, SAVE, G, GP, BQ, DV,
    )  # fmt: skip

    if not SHARED:
        # The window: as in `prefill/window.py`.
        k = first_key(K_win, tile, stride_kwb, stride_kwh, False)
        v = first_key(V_win, tile, stride_vwb, stride_vwh, False)
        acc, top, total = nothing_seen(BQ * GP, DV)
        inner = tl.where(last > 0, tl.maximum(first + BQ - WINDOW, 0), 0)
        whole = tl.where(last > 0, inner + tl.maximum(first + 1 - inner, 0) // BN * BN, 0)
        for at in tl.range(inner, whole, BN):
            acc, top, total = attend(
                acc, top, total, q, q_rest, k, v, stride_kws, stride_vws, batch, kv_head, at, last, low,
                behind, scale_log2, BN, DK, 0, DV, False, False, False, PRECISION,
            )  # fmt: skip
        for at in tl.range(whole, last, BN):
            acc, top, total = attend(
                acc, top, total, q, q_rest, k, v, stride_kws, stride_vws, batch, kv_head, at, last, low,
                behind, scale_log2, BN, DK, 0, DV, True, False, False, PRECISION,
            )  # fmt: skip
        FEW: tl.constexpr = BQ if BQ > 16 else 16
        if BQ > 1 and inner > 0:
            acc, top, total = attend(
                acc, top, total, q, q_rest, k, v, stride_kws, stride_vws, batch, kv_head,
                tl.maximum(inner - FEW, 0), tl.minimum(inner, last), low, tl.minimum(behind, inner),
                scale_log2, FEW, DK, 0, DV, True, True, False, PRECISION,
            )  # fmt: skip
        result = _gated(
            result, Gates + 2 * stride_gc, O_win, Lse_win, acc, top, total, real, inside, tile, row, queries,
            kv_heads, stride_gb, stride_gn, stride_gh, SAVE, G, GP, BQ, DV,
        )  # fmt: skip

    if not ALL:
        # Here, not at the start: it would hold registers through the loops.
        heads = kv_heads * G
        rows = (wide(batch) * queries * kv_heads + kv_head) * G * DV
        rows = row_pointers(O_cmp + rows, number, row, heads * DV, DV, BQ, GP)
        o_cmp = tl.load(rows[:, None] + tl.arange(0, DV)[None, :], mask=real[:, None], other=0.0)
        gates = Gates + wide(batch) * stride_gb + wide(kv_head) * G * stride_gh
        gates = row_pointers(gates, number, row, stride_gn, stride_gh, BQ, GP)
        result += tl.load(gates, mask=real, other=0.0).to(tl.float32)[:, None] * o_cmp.to(tl.float32)

    rows = (wide(batch) * queries * kv_heads + kv_head) * G * DV
    rows = row_pointers(Out + rows, number, row, kv_heads * G * DV, DV, BQ, GP)
    at = rows[:, None] + tl.arange(0, DV)[None, :]
    tl.store(at, result.to(Out.dtype.element_ty), mask=inside[:, None])
