"""First launch of decode: the compressed and the window branch in partials, and the scores pooled to blocks.

A tile of compressed keys is BJ whole selection blocks of PIECES keys each (padded to PP rows), with a halo:
the SHARES - 1 keys before each of these blocks (padded to HP rows), SHARES = l/d, which overlap it too. So a
tile knows all of its blocks' importance, sums over the keys of 2^(score - top) times how often the key
counts, and leaves them with the top that they refer to. The softmax's denominator isn't known before all
tiles are done; the second launch puts it in. The scores themselves are never written.

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
    tile, limit, visible, K_cmp, V_cmp, stride_kcc, stride_vcc, DK: tl.constexpr, DR: tl.constexpr,
    DK_END: tl.constexpr, DV: tl.constexpr, DV_END: tl.constexpr, PIECES: tl.constexpr, PP: tl.constexpr,
    BJ: tl.constexpr, SHARES: tl.constexpr, HP: tl.constexpr,
):  # fmt: skip
    """A tile's keys and its halo's below `limit`, and its values below `visible`; the caches stand at the row
    and head."""
    start = tile * (BJ * PIECES)
    K_cmp += wide(start) * stride_kcc
    V_cmp += wide(start) * stride_vcc
    key, real = tile_rows(limit - start, PIECES, PP, 0, BJ)
    k, k_rest = load_keys(K_cmp, key * stride_kcc, real, DK, DR, DK_END)
    halo, halo_rest = k, k_rest
    if SHARES > 1:
        key_halo, real_halo = tile_rows(limit - start, PIECES, HP, SHARES - 1, BJ)
        real_halo = real_halo & (key_halo >= -start)
        halo, halo_rest = load_keys(K_cmp, key_halo * stride_kcc, real_halo, DK, DR, DK_END)
    _, real = tile_rows(visible - start, PIECES, PP, 0, BJ)
    return k, k_rest, halo, halo_rest, load_rows(V_cmp, key * stride_vcc, real, 0, DV, DV_END)


@triton.jit
def score_tile(
    tile, visible, wanted, q, q_rest, k, k_rest, halo, halo_rest, v, Reference, Pooled,
    top, total, acc, scale_log2, G: tl.constexpr, GP: tl.constexpr, DR: tl.constexpr, PIECES: tl.constexpr,
    PP: tl.constexpr, BJ: tl.constexpr, SHARES: tl.constexpr, HP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile joins top, total and acc.

    Keys from `visible` on count for nothing, whatever was loaded there. Nothing is written unless `wanted`;
    Reference and Pooled stand at the pair.
    """
    start = tile * (BJ * PIECES)
    _, seen = tile_rows(visible - start, PIECES, PP, 0, BJ)
    s = score_keys(q, q_rest, k, k_rest, seen, scale_log2, DR, PRECISION)
    new_top = tl.max(s, 1)
    if SHARES > 1:
        key_halo, seen_halo = tile_rows(visible - start, PIECES, HP, SHARES - 1, BJ)
        seen_halo = seen_halo & (key_halo >= -start)
        s_halo = score_keys(q, q_rest, halo, halo_rest, seen_halo, scale_log2, DR, PRECISION)
        new_top = tl.maximum(new_top, tl.max(s_halo, 1))
    new_top = tl.maximum(new_top, top)
    # -inf is that of a tile past the length, of which nothing is wanted.
    new_top = tl.where(new_top == float("-inf"), 0.0, new_top)
    p = tl.exp2(s - new_top[:, None])
    fade = tl.exp2(top - new_top)
    acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
    total = total * fade + tl.sum(p, 1)

    piece = tl.arange(0, PP)
    times = tl.minimum(PIECES - piece, SHARES).to(tl.float32)  # p is 0 from PIECES on
    sums = tl.sum(tl.reshape(p, [GP, BJ, PP]) * times[None, None, :], 2)
    if SHARES > 1:
        p = tl.reshape(tl.exp2(s_halo - new_top[:, None]), [GP, BJ, HP])
        times = tl.minimum(tl.arange(0, HP) + 1, PIECES).to(tl.float32)
        sums += tl.sum(p * times[None, None, :], 2)
    store_pooled(Reference, Pooled, tile, new_top, sums, wanted, G, GP, BJ)
    return new_top, total, acc


@triton.jit
def window_program(
    split, tokens, Q, stride_qh, K_win, V_win, stride_kws, stride_vws, Partial, Stats, scale_log2, window_run,
    G: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, DK_END: tl.constexpr,
    DV: tl.constexpr, DV_END: tl.constexpr, WINDOW: tl.constexpr, BW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One split of the window; Q stands at the group, the caches at their row and head."""
    q, q_rest = load_query(Q, stride_qh, G, GP, DK, DR, DK_END)
    begin = tl.maximum(tokens - WINDOW, 0) + split * window_run * BW
    end = tl.minimum(begin + window_run * BW, tokens)
    if begin < end:
        K_win += begin.to(tl.int64) * stride_kws
        V_win += begin.to(tl.int64) * stride_vws
        token = tl.arange(0, BW)
        top = tl.full([GP], float("-inf"), dtype=tl.float32)
        total = tl.zeros([GP], dtype=tl.float32)
        acc = tl.zeros([GP, DV], dtype=tl.float32)
        for first in range(0, end - begin, BW):
            seen = first + token < end - begin
            s = scores(
                q, q_rest, K_win, (first + token) * stride_kws, seen, scale_log2, DK, DR, DK_END, PRECISION
            )  # fmt: skip
            v = load_rows(V_win, (first + token) * stride_vws, seen, 0, DV, DV_END)
            top, total, acc = absorb(s, v, top, total, acc, PRECISION)
        store_partial(Partial, Stats, top, total, acc, G, GP, DV, DV_END)


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


@triton.jit(
    do_not_specialize=("shares", "tiles", "window_run", "capacity"),
    do_not_specialize_on_alignment=("tile_run",),
)
def score_kernel(
    Q, K_cmp, V_cmp, K_win, V_win, K_bulk, V_bulk, Lengths, Partial, Stats, Reference, Pooled, stride_qb,
    stride_qh, stride_kcb, stride_kcc, stride_kch, stride_vcb, stride_vcc, stride_vch, stride_kwb, stride_kws,
    stride_kwh, stride_vwb, stride_vws, stride_vwh, scale_log2, kv_heads, shares, tiles, tile_run, window_run,
    capacity,
    G: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, DK_END: tl.constexpr,
    DV: tl.constexpr, DV_END: tl.constexpr, PIECES: tl.constexpr, PP: tl.constexpr, BJ: tl.constexpr,
    SHARES: tl.constexpr, HP: tl.constexpr, WINDOW: tl.constexpr, BW: tl.constexpr, ONE_TILE: tl.constexpr,
    WINDOW_SPLITS: tl.constexpr, STREAM: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr,
    PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One split of the window or of the compressed keys; a program past its row's length leaves nothing.

    Grid (WINDOW_SPLITS + splits, pairs), with STREAM (pairs, ...).

    With STREAM, a split's tiles are taken as stream.py does; from the descriptors K_bulk and V_bulk, at the
    row and KV head, unless they are None.

    With ONE_TILE, a split is one tile, and its keys are under way before the row's length has come: they lie
    within the cache's capacity, and what stands past the length is left out by its score. Like all tiles, it
    is loaded by a loop, whose loads the compiler issues together before it waits for any; the query, which
    passes through shared memory too, is among them.
    """
    if OVERLAP:
        gdc_launch_dependents()
    split, pair = place_in_grid(STREAM)
    batch, kv_head, tokens = row_of(pair, Lengths, kv_heads)
    visible = blocks_before(tokens, BLOCK, STRIDE)
    Q += batch * stride_qb + kv_head * G * stride_qh
    K_cmp += batch * stride_kcb + kv_head * stride_kch
    V_cmp += batch * stride_vcb + kv_head * stride_vch
    K_win += batch * stride_kwb + kv_head * stride_kwh
    V_win += batch * stride_vwb + kv_head * stride_vwh
    share = pair.to(tl.int64) * shares + split
    Partial += share * G * DV_END
    Stats += share * 2 * G
    if split < WINDOW_SPLITS:
        window_program(
            split, tokens, Q, stride_qh, K_win, V_win, stride_kws, stride_vws, Partial, Stats, scale_log2,
            window_run, G, GP, DK, DR, DK_END, DV, DV_END, WINDOW, BW, PRECISION,
        )  # fmt: skip
    else:
        begin = (split - WINDOW_SPLITS) * tile_run
        end = tl.minimum(begin + tile_run, used_tiles(visible, PIECES, SHARES, BJ))
        Reference += pair.to(tl.int64) * tiles * G
        Pooled += pair.to(tl.int64) * tiles * G * BJ
        top = tl.full([GP], float("-inf"), dtype=tl.float32)
        total = tl.zeros([GP], dtype=tl.float32)
        acc = tl.zeros([GP, DV], dtype=tl.float32)
        if ONE_TILE:
            # One iteration, which the compiler must not know, or it dissolves the loop.
            for tile in range(begin, begin + tl.minimum(tiles, 1)):
                k, k_rest, halo, halo_rest, v = load_tile(
                    tile, capacity, visible, K_cmp, V_cmp, stride_kcc, stride_vcc, DK, DR, DK_END, DV, DV_END,
                    PIECES, PP, BJ, SHARES, HP,
                )  # fmt: skip
                q, q_rest = load_query(Q, stride_qh, G, GP, DK, DR, DK_END)
                top, total, acc = score_tile(
                    tile, visible, begin < end, q, q_rest, k, k_rest, halo, halo_rest, v,
                    Reference, Pooled, top, total, acc, scale_log2, G, GP, DR, PIECES, PP, BJ, SHARES, HP,
                    PRECISION,
                )  # fmt: skip
        elif STREAM:
            q, q_rest = load_query(Q, stride_qh, G, GP, DK, DR, DK_END)
            top, total, acc = stream_tiles(
                begin, end, visible, q, q_rest, K_cmp, V_cmp, stride_kcc, stride_vcc, K_bulk, V_bulk,
                pair // kv_heads, pair % kv_heads, Reference, Pooled, scale_log2,
                G, GP, DK, DR, DK_END, DV, DV_END, PIECES, BJ, SHARES, PRECISION,
            )  # fmt: skip
        else:
            q, q_rest = load_query(Q, stride_qh, G, GP, DK, DR, DK_END)
            for tile in range(begin, end):
                k, k_rest, halo, halo_rest, v = load_tile(
                    tile, visible, visible, K_cmp, V_cmp, stride_kcc, stride_vcc, DK, DR, DK_END, DV, DV_END,
                    PIECES, PP, BJ, SHARES, HP,
                )  # fmt: skip
                top, total, acc = score_tile(
                    tile, visible, True, q, q_rest, k, k_rest, halo, halo_rest, v, Reference,
                    Pooled, top, total, acc, scale_log2, G, GP, DR, PIECES, PP, BJ, SHARES, HP, PRECISION,
                )  # fmt: skip
        if begin < end:
            store_partial(Partial, Stats, top, total, acc, G, GP, DV, DV_END)
