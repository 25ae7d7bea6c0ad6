"""First launch of decode: the compressed and the window branch in partials, and the scores pooled to blocks.

A tile of compressed keys is BJ whole selection blocks of PIECES keys each (padded to PP rows), with a halo:
the SHARES - 1 keys before each of these blocks (padded to HP rows), SHARES = l/d, which overlap it too. So a
tile knows all of its blocks' importance, sums over the keys of 2^(score - m) times how often the key counts,
and leaves them with the m that they refer to. The softmax's denominator isn't known before all tiles are
done; the second launch puts it in. The scores themselves are never written.

Key PIECES * j + x counts for block j as often as there are m < PIECES and r < SHARES with x = m - r.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents

from nsa_kernels.triton.decode_tile import (
    absorb,
    append,
    load_keys,
    load_query,
    load_rows,
    score_keys,
    scores,
    store_partial,
    used_tiles,
)
from nsa_kernels.triton.tiles import blocks_before, wide


@triton.jit
def score_tile(
    tile, limit, visible, wanted, query, query_rest, k_cmp, v_cmp, kc_s, vc_s, reference, pooled,
    m, total, acc, scale_log2, G: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr,
    DK_END: tl.constexpr, DV: tl.constexpr, DV_END: tl.constexpr, PIECES: tl.constexpr, PP: tl.constexpr,
    BJ: tl.constexpr, SHARES: tl.constexpr, HP: tl.constexpr, FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile joins m, total and acc, which with FIRST hold nothing yet.

    Keys from `limit` on are not read; those from `visible` on may be, but count for nothing. Nothing is
    written unless `wanted`. The caches stand at the row and head, reference and pooled at the pair.
    """
    start = tile * (BJ * PIECES)
    k_cmp += wide(start) * kc_s
    v_cmp += wide(start) * vc_s
    key = tl.arange(0, BJ * PP)
    real = key < limit - start
    if PP > PIECES:
        real = key % PP < PIECES
        key = key // PP * PIECES + key % PP
        real = real & (key < limit - start)
    keys, rest = load_keys(k_cmp, key * kc_s, real, DK, DR, DK_END)
    if SHARES > 1:
        halo = tl.arange(0, BJ * HP)
        real_halo = halo % HP < SHARES - 1
        halo = halo // HP * PIECES + halo % HP - (SHARES - 1)
        real_halo = real_halo & (halo >= -start) & (halo < limit - start)
        keys_halo, rest_halo = load_keys(k_cmp, halo * kc_s, real_halo, DK, DR, DK_END)
    values = load_rows(v_cmp, key * vc_s, real, 0, DV, DV_END)

    seen = real & (key < visible - start)
    s = score_keys(query, query_rest, keys, rest, seen, scale_log2, DR, PRECISION)
    top = tl.max(s, 1)
    if SHARES > 1:
        seen_halo = real_halo & (halo < visible - start)
        s_halo = score_keys(query, query_rest, keys_halo, rest_halo, seen_halo, scale_log2, DR, PRECISION)
        top = tl.maximum(top, tl.max(s_halo, 1))
    if FIRST:
        top = tl.where(top == float("-inf"), 0.0, top)  # nothing seen: then nothing is wanted
        values = tl.where(seen[:, None], values, 0.0)
        p = tl.exp2(s - top[:, None])
        total = tl.sum(p, 1)
        acc = tl.dot(p.to(values.dtype), values, input_precision=PRECISION)
    else:
        top = tl.maximum(top, m)
        p = tl.exp2(s - top[:, None])
        decay = tl.exp2(m - top)
        total = total * decay + tl.sum(p, 1)
        acc = tl.dot(p.to(values.dtype), values, acc * decay[:, None], input_precision=PRECISION)

    head = tl.arange(0, GP)
    block = tl.arange(0, BJ)
    piece = tl.arange(0, PP)
    times = tl.minimum(PIECES - piece, SHARES).to(tl.float32)  # p is 0 from PIECES on
    sums = tl.sum(tl.reshape(p, [GP, BJ, PP]) * times[None, None, :], 2)
    if SHARES > 1:
        p = tl.reshape(tl.exp2(s_halo - top[:, None]), [GP, BJ, HP])
        times = tl.minimum(tl.arange(0, HP) + 1, PIECES).to(tl.float32)
        sums += tl.sum(p * times[None, None, :], 2)
    tl.store(reference + tile * G + head, top, mask=(head < G) & wanted)
    cell = (tile * G + head[:, None]) * BJ + block[None, :]
    tl.store(pooled + cell, sums, mask=((head < G) & wanted)[:, None] & (block < BJ)[None, :])
    return top, total, acc


@triton.jit
def window_program(
    split, tokens, query, query_rest, k_win, v_win, k_new, v_new, kw_s, vw_s, partial, stats, scale_log2,
    window_run, G: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr,
    DK_END: tl.constexpr, DV: tl.constexpr, DV_END: tl.constexpr, WINDOW: tl.constexpr, BW: tl.constexpr,
    ONE: tl.constexpr, PRECISION: tl.constexpr, NEW: tl.constexpr,
):  # fmt: skip
    """One split of the window, with ONE a single tile of BW tokens; for NEW see `score_program`."""
    begin = tl.maximum(tokens - WINDOW, 0) + split * window_run * BW
    end = tl.minimum(begin + window_run * BW, tokens)
    if begin < end:
        k_win += begin.to(tl.int64) * kw_s
        v_win += begin.to(tl.int64) * vw_s
        if NEW:
            last = (tokens - 1 - begin).to(tl.int64)
            append(k_win + last * kw_s, k_new, end == tokens, DK_END)
            append(v_win + last * vw_s, v_new, end == tokens, DV_END)
            tl.debug_barrier()  # this program alone reads them in this launch
        token = tl.arange(0, BW)
        m = tl.full([GP], float("-inf"), dtype=tl.float32)
        total = tl.zeros([GP], dtype=tl.float32)
        acc = tl.zeros([GP, DV], dtype=tl.float32)
        if ONE:
            seen = token < end - begin
            keys, rest = load_keys(k_win, token * kw_s, seen, DK, DR, DK_END)
            values = load_rows(v_win, token * vw_s, seen, 0, DV, DV_END)
            s = score_keys(query, query_rest, keys, rest, seen, scale_log2, DR, PRECISION)
            _, m, total, acc = absorb(s, values, m, total, acc, PRECISION)
        else:
            for first in range(0, end - begin, BW):
                seen = first + token < end - begin
                s = scores(
                    query, query_rest, k_win, (first + token) * kw_s, seen, scale_log2, DK, DR, DK_END,
                    PRECISION,
                )  # fmt: skip
                values = load_rows(v_win, (first + token) * vw_s, seen, 0, DV, DV_END)
                _, m, total, acc = absorb(s, values, m, total, acc, PRECISION)
        store_partial(partial, stats, m, total, acc, G, GP, DV, DV_END)


@triton.jit
def score_program(
    split, pair, tokens, visible, query, query_rest, k_cmp, v_cmp, k_win, v_win, k_new, v_new,
    partial, stats, reference, pooled, kc_s, vc_s, kw_s, vw_s, scale_log2,
    shares, tiles, tile_run, window_run, capacity, G: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr,
    DR: tl.constexpr, DK_END: tl.constexpr, DV: tl.constexpr, DV_END: tl.constexpr, PIECES: tl.constexpr,
    PP: tl.constexpr, BJ: tl.constexpr, SHARES: tl.constexpr, HP: tl.constexpr, WINDOW: tl.constexpr,
    WINDOW_SPLITS: tl.constexpr, BW: tl.constexpr, ONE_WINDOW: tl.constexpr, ONE_TILE: tl.constexpr,
    PRECISION: tl.constexpr, NEW: tl.constexpr,
):  # fmt: skip
    """One split of the window or of the first `visible` compressed keys; the caches stand at their row and
    head.

    With ONE_TILE, a split is one tile, and its keys and values are under way before the row's length has
    come: they lie within the cache's capacity, and what stands past the length is left out by its score.

    With NEW, the last token's window key and value come from k_new and v_new, and are put into the cache
    first.
    """
    share = pair.to(tl.int64) * shares + split
    partial += share * G * DV_END
    stats += share * 2 * G
    if split < WINDOW_SPLITS:
        window_program(
            split, tokens, query, query_rest, k_win, v_win, k_new, v_new, kw_s, vw_s, partial, stats,
            scale_log2, window_run, G, GP, DK, DR, DK_END, DV, DV_END, WINDOW, BW, ONE_WINDOW, PRECISION,
            NEW,
        )  # fmt: skip
    else:
        begin = (split - WINDOW_SPLITS) * tile_run
        end = tl.minimum(begin + tile_run, used_tiles(visible, PIECES, SHARES, BJ))
        reference += pair.to(tl.int64) * tiles * G
        pooled += pair.to(tl.int64) * tiles * G * BJ
        m = tl.full([GP], float("-inf"), dtype=tl.float32)
        total = tl.zeros([GP], dtype=tl.float32)
        acc = tl.zeros([GP, DV], dtype=tl.float32)
        if ONE_TILE:
            m, total, acc = score_tile(
                begin, capacity, visible, begin < end, query, query_rest, k_cmp, v_cmp, kc_s, vc_s,
                reference, pooled, m, total, acc, scale_log2, G, GP, DK, DR, DK_END, DV, DV_END, PIECES, PP,
                BJ, SHARES, HP, True, PRECISION,
            )  # fmt: skip
        else:
            for tile in range(begin, end):
                m, total, acc = score_tile(
                    tile, visible, visible, True, query, query_rest, k_cmp, v_cmp, kc_s, vc_s,
                    reference, pooled, m, total, acc, scale_log2, G, GP, DK, DR, DK_END, DV, DV_END, PIECES,
                    PP, BJ, SHARES, HP, False, PRECISION,
                )  # fmt: skip
        if begin < end:
            store_partial(partial, stats, m, total, acc, G, GP, DV, DV_END)


@triton.jit
def score_kernel(
    q, k_cmp, v_cmp, k_win, v_win, lengths, partial, stats, reference, pooled,
    q_b, q_h, kc_b, kc_s, kc_h, vc_b, vc_s, vc_h, kw_b, kw_s, kw_h, vw_b, vw_s, vw_h,
    scale_log2, kv_heads, shares, tiles, tile_run, window_run, capacity,
    G: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, DK_END: tl.constexpr,
    DV: tl.constexpr, DV_END: tl.constexpr, PIECES: tl.constexpr, PP: tl.constexpr, BJ: tl.constexpr,
    SHARES: tl.constexpr, HP: tl.constexpr, WINDOW: tl.constexpr, WINDOW_SPLITS: tl.constexpr,
    BW: tl.constexpr, ONE_WINDOW: tl.constexpr, ONE_TILE: tl.constexpr, BLOCK: tl.constexpr,
    STRIDE: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (WINDOW_SPLITS + splits, pairs); a program past its row's length leaves nothing."""
    if OVERLAP:
        gdc_launch_dependents()
    split = tl.program_id(0)
    pair = tl.program_id(1)
    row = (pair // kv_heads).to(tl.int64)
    kv_head = pair % kv_heads
    tokens = tl.load(lengths + row).to(tl.int32)
    query, query_rest = load_query(q + row * q_b + kv_head * G * q_h, q_h, G, GP, DK, DR, DK_END)
    score_program(
        split, pair, tokens, blocks_before(tokens, BLOCK, STRIDE), query, query_rest,
        k_cmp + row * kc_b + kv_head * kc_h, v_cmp + row * vc_b + kv_head * vc_h,
        k_win + row * kw_b + kv_head * kw_h, v_win + row * vw_b + kv_head * vw_h, k_win, v_win,
        partial, stats, reference, pooled, kc_s, vc_s, kw_s, vw_s, scale_log2,
        shares, tiles, tile_run, window_run, capacity, G, GP, DK, DR, DK_END, DV, DV_END, PIECES, PP, BJ,
        SHARES, HP, WINDOW, WINDOW_SPLITS, BW, ONE_WINDOW, ONE_TILE, PRECISION, False,
    )  # fmt: skip
