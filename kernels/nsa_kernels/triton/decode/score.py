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

from nsa_kernels.triton.decode.partials import (
    absorb,
    load_keys,
    load_query,
    load_rows,
    row_of,
    score_keys,
    scores,
    store_partial,
    store_pooled,
    used_tiles,
)
from nsa_kernels.triton.decode.stream import stream_tiles
from nsa_kernels.triton.tiles import blocks_before, wide


@triton.jit
def tile_rows(limit, PIECES: tl.constexpr, ROWS: tl.constexpr, BACK: tl.constexpr, BJ: tl.constexpr):
    """The keys at a tile's rows, ROWS to a block and BACK of them before it, and whether a row has one below
    `limit`; both [BJ * ROWS], counted from the tile's first key."""
    index = tl.arange(0, BJ * ROWS)
    count: tl.constexpr = BACK if BACK > 0 else PIECES
    if BACK == 0 and ROWS == PIECES:
        key = index
        real = key < limit
    else:
        key = index // ROWS * PIECES + index % ROWS - BACK
        real = (index % ROWS < count) & (key < limit)
    return key, real


@triton.jit
def load_tile(
    tile, limit, visible, k_cmp, v_cmp, kc_s, vc_s, DK: tl.constexpr, DR: tl.constexpr, DK_END: tl.constexpr,
    DV: tl.constexpr, DV_END: tl.constexpr, PIECES: tl.constexpr, PP: tl.constexpr, BJ: tl.constexpr,
    SHARES: tl.constexpr, HP: tl.constexpr,
):  # fmt: skip
    """A tile's keys and its halo's below `limit`, and its values below `visible`; the caches stand at the row
    and head."""
    start = tile * (BJ * PIECES)
    k_cmp += wide(start) * kc_s
    v_cmp += wide(start) * vc_s
    key, real = tile_rows(limit - start, PIECES, PP, 0, BJ)
    keys, rest = load_keys(k_cmp, key * kc_s, real, DK, DR, DK_END)
    halo, halo_rest = keys, rest
    if SHARES > 1:
        key_halo, real_halo = tile_rows(limit - start, PIECES, HP, SHARES - 1, BJ)
        halo, halo_rest = load_keys(k_cmp, key_halo * kc_s, real_halo & (key_halo >= -start), DK, DR, DK_END)
    _, real = tile_rows(visible - start, PIECES, PP, 0, BJ)
    return keys, rest, halo, halo_rest, load_rows(v_cmp, key * vc_s, real, 0, DV, DV_END)


@triton.jit
def score_tile(
    tile, visible, wanted, query, query_rest, keys, rest, halo, halo_rest, values, reference, pooled,
    m, total, acc, scale_log2, G: tl.constexpr, GP: tl.constexpr, DR: tl.constexpr, PIECES: tl.constexpr,
    PP: tl.constexpr, BJ: tl.constexpr, SHARES: tl.constexpr, HP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile joins m, total and acc.

    Keys from `visible` on count for nothing, whatever was loaded there. Nothing is written unless `wanted`;
    reference and pooled stand at the pair.
    """
    start = tile * (BJ * PIECES)
    _, seen = tile_rows(visible - start, PIECES, PP, 0, BJ)
    s = score_keys(query, query_rest, keys, rest, seen, scale_log2, DR, PRECISION)
    top = tl.max(s, 1)
    if SHARES > 1:
        key_halo, seen_halo = tile_rows(visible - start, PIECES, HP, SHARES - 1, BJ)
        seen_halo = seen_halo & (key_halo >= -start)
        s_halo = score_keys(query, query_rest, halo, halo_rest, seen_halo, scale_log2, DR, PRECISION)
        top = tl.maximum(top, tl.max(s_halo, 1))
    top = tl.maximum(top, m)
    top = tl.where(top == float("-inf"), 0.0, top)  # a tile past the length, of which nothing is wanted
    p = tl.exp2(s - top[:, None])
    decay = tl.exp2(m - top)
    acc = tl.dot(p.to(values.dtype), values, acc * decay[:, None], input_precision=PRECISION)
    total = total * decay + tl.sum(p, 1)

    piece = tl.arange(0, PP)
    times = tl.minimum(PIECES - piece, SHARES).to(tl.float32)  # p is 0 from PIECES on
    sums = tl.sum(tl.reshape(p, [GP, BJ, PP]) * times[None, None, :], 2)
    if SHARES > 1:
        p = tl.reshape(tl.exp2(s_halo - top[:, None]), [GP, BJ, HP])
        times = tl.minimum(tl.arange(0, HP) + 1, PIECES).to(tl.float32)
        sums += tl.sum(p * times[None, None, :], 2)
    store_pooled(reference, pooled, tile, top, sums, wanted, G, GP, BJ)
    return top, total, acc


@triton.jit
def window_program(
    split, tokens, q, q_h, k_win, v_win, kw_s, vw_s, partial, stats, scale_log2, window_run,
    G: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, DK_END: tl.constexpr,
    DV: tl.constexpr, DV_END: tl.constexpr, WINDOW: tl.constexpr, BW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One split of the window; q stands at the group, the caches at their row and head."""
    query, query_rest = load_query(q, q_h, G, GP, DK, DR, DK_END)
    begin = tl.maximum(tokens - WINDOW, 0) + split * window_run * BW
    end = tl.minimum(begin + window_run * BW, tokens)
    if begin < end:
        k_win += begin.to(tl.int64) * kw_s
        v_win += begin.to(tl.int64) * vw_s
        token = tl.arange(0, BW)
        m = tl.full([GP], float("-inf"), dtype=tl.float32)
        total = tl.zeros([GP], dtype=tl.float32)
        acc = tl.zeros([GP, DV], dtype=tl.float32)
        for first in range(0, end - begin, BW):
            seen = first + token < end - begin
            s = scores(
                query, query_rest, k_win, (first + token) * kw_s, seen, scale_log2, DK, DR, DK_END, PRECISION
            )  # fmt: skip
            values = load_rows(v_win, (first + token) * vw_s, seen, 0, DV, DV_END)
            m, total, acc = absorb(s, values, m, total, acc, PRECISION)
        store_partial(partial, stats, m, total, acc, G, GP, DV, DV_END)


@triton.jit
def place_in_grid(STREAM: tl.constexpr):
    """Which split of a pair, and which pair. With STREAM the heads of a row stand side by side, as their keys
    do."""
    if STREAM:
        split = tl.program_id(1)
        pair = tl.program_id(0)
    else:
        split = tl.program_id(0)
        pair = tl.program_id(1)
    return split, pair


@triton.jit
def score_kernel(
    q, k_cmp, v_cmp, k_win, v_win, k_bulk, v_bulk, lengths, partial, stats, reference, pooled,
    q_b, q_h, kc_b, kc_s, kc_h, vc_b, vc_s, vc_h, kw_b, kw_s, kw_h, vw_b, vw_s, vw_h,
    scale_log2, kv_heads, shares, tiles, tile_run, window_run, capacity,
    G: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, DK_END: tl.constexpr,
    DV: tl.constexpr, DV_END: tl.constexpr, PIECES: tl.constexpr, PP: tl.constexpr, BJ: tl.constexpr,
    SHARES: tl.constexpr, HP: tl.constexpr, WINDOW: tl.constexpr, WINDOW_SPLITS: tl.constexpr,
    BW: tl.constexpr, ONE_TILE: tl.constexpr, STREAM: tl.constexpr, BLOCK: tl.constexpr,
    STRIDE: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One split of the window or of the compressed keys; a program past its row's length leaves nothing.

    Grid (WINDOW_SPLITS + splits, pairs), with STREAM (pairs, ...).

    With STREAM, a split's tiles are taken as stream.py does; from the descriptors k_bulk and v_bulk, at the
    row and KV head, unless they are None.

    With ONE_TILE, a split is one tile, and its keys are under way before the row's length has come: they lie
    within the cache's capacity, and what stands past the length is left out by its score. Like all tiles, it
    is loaded by a loop, whose loads the compiler issues together before it waits for any; the query, which
    passes through shared memory too, is among them.
    """
    if OVERLAP:
        gdc_launch_dependents()
    split, pair = place_in_grid(STREAM)
    batch, kv_head, tokens = row_of(pair, lengths, kv_heads)
    visible = blocks_before(tokens, BLOCK, STRIDE)
    q += batch * q_b + kv_head * G * q_h
    k_cmp += batch * kc_b + kv_head * kc_h
    v_cmp += batch * vc_b + kv_head * vc_h
    k_win += batch * kw_b + kv_head * kw_h
    v_win += batch * vw_b + kv_head * vw_h
    share = pair.to(tl.int64) * shares + split
    partial += share * G * DV_END
    stats += share * 2 * G
    if split < WINDOW_SPLITS:
        window_program(
            split, tokens, q, q_h, k_win, v_win, kw_s, vw_s, partial, stats, scale_log2, window_run,
            G, GP, DK, DR, DK_END, DV, DV_END, WINDOW, BW, PRECISION,
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
            # One iteration, which the compiler must not know, or it dissolves the loop.
            for tile in range(begin, begin + tl.minimum(tiles, 1)):
                keys, rest, halo, halo_rest, values = load_tile(
                    tile, capacity, visible, k_cmp, v_cmp, kc_s, vc_s, DK, DR, DK_END, DV, DV_END, PIECES,
                    PP, BJ, SHARES, HP,
                )  # fmt: skip
                query, query_rest = load_query(q, q_h, G, GP, DK, DR, DK_END)
                m, total, acc = score_tile(
                    tile, visible, begin < end, query, query_rest, keys, rest, halo, halo_rest, values,
                    reference, pooled, m, total, acc, scale_log2, G, GP, DR, PIECES, PP, BJ, SHARES, HP,
                    PRECISION,
                )  # fmt: skip
        elif STREAM:
            query, query_rest = load_query(q, q_h, G, GP, DK, DR, DK_END)
            m, total, acc = stream_tiles(
                begin, end, visible, query, query_rest, k_cmp, v_cmp, kc_s, vc_s, k_bulk, v_bulk,
                pair // kv_heads, pair % kv_heads, reference, pooled, scale_log2,
                G, GP, DK, DR, DK_END, DV, DV_END, PIECES, BJ, SHARES, PRECISION,
            )  # fmt: skip
        else:
            query, query_rest = load_query(q, q_h, G, GP, DK, DR, DK_END)
            for tile in range(begin, end):
                keys, rest, halo, halo_rest, values = load_tile(
                    tile, visible, visible, k_cmp, v_cmp, kc_s, vc_s, DK, DR, DK_END, DV, DV_END, PIECES,
                    PP, BJ, SHARES, HP,
                )  # fmt: skip
                m, total, acc = score_tile(
                    tile, visible, True, query, query_rest, keys, rest, halo, halo_rest, values, reference,
                    pooled, m, total, acc, scale_log2, G, GP, DR, PIECES, PP, BJ, SHARES, HP, PRECISION,
                )  # fmt: skip
        if begin < end:
            store_partial(partial, stats, m, total, acc, G, GP, DV, DV_END)
