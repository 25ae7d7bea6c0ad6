"""First launch of decode: the compressed and the window branch in partials, and the scores pooled to blocks.

A tile of compressed keys is BJ whole selection blocks of PIECES keys each (padded to PP rows). Key i overlaps
the blocks from i // PIECES on; with S = SHARES = l/d, block j's importance sums p[PIECES*j + m - r] over 0 <=
m < PIECES and 0 <= r < S. Sorted by the block that a key lies in, that is: the keys of block j give to block
j + k as often as there are r with (m + r) // PIECES == k. So each tile leaves, for k = 0..SPILL, the weighted
sums of 2^(score - m) over the keys of each block, and the m that they refer to. The softmax's denominator
isn't known before all tiles are done; the second launch puts it in. The scores themselves are never written.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents

from nsa_kernels.triton.decode_tile import absorb, append, load_rows, scores, store_partial
from nsa_kernels.triton.tiles import blocks_before


@triton.jit
def overlaps(distance, piece, PIECES: tl.constexpr, SHARES: tl.constexpr):
    """How often the key at place `piece` of a block counts for the block `distance` after it."""
    least = tl.maximum(distance * PIECES - piece, 0)
    most = tl.minimum((distance + 1) * PIECES - piece, SHARES)
    return tl.maximum(most - least, 0).to(tl.float32)


@triton.jit
def load_query(
    q, stride, G: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, DK_END: tl.constexpr
):
    """The queries of a group, MAIN [GP, DK] and REST [GP, DR] (MAIN again where there is no rest)."""
    head = tl.arange(0, GP)
    query = load_rows(q, head * stride, head < G, 0, DK, DK_END)
    rest = query
    if DR > 0:
        rest = load_rows(q, head * stride, head < G, DK, DR, DK_END)
    return query, rest


@triton.jit
def score_program(
    split,
    pair,
    tokens,
    visible,
    query,
    query_rest,
    k_cmp,
    v_cmp,
    k_win,
    v_win,
    k_new,
    v_new,
    partial,
    stats,
    reference,
    pooled,
    kc_s,
    vc_s,
    kw_s,
    vw_s,
    scale_log2,
    splits,
    tiles,
    tile_run,
    window_run,
    G: tl.constexpr,
    GP: tl.constexpr,
    DK: tl.constexpr,
    DR: tl.constexpr,
    DK_END: tl.constexpr,
    DV: tl.constexpr,
    DV_END: tl.constexpr,
    PIECES: tl.constexpr,
    PP: tl.constexpr,
    BJ: tl.constexpr,
    SHARES: tl.constexpr,
    SPILL: tl.constexpr,
    WINDOW: tl.constexpr,
    WINDOW_SPLITS: tl.constexpr,
    BW: tl.constexpr,
    PRECISION: tl.constexpr,
    NEW: tl.constexpr,
):
    """One split of the window or of the first `visible` compressed keys; the caches stand at their row and
    head.

    With NEW, the last token's window key and value come from k_new and v_new, and are put into the cache
    first.
    """
    head = tl.arange(0, GP)
    share = pair.to(tl.int64) * (splits + WINDOW_SPLITS) + split
    partial += share * G * DV_END
    stats += share * 2 * G
    m = tl.full([GP], float("-inf"), dtype=tl.float32)
    total = tl.zeros([GP], dtype=tl.float32)
    acc = tl.zeros([GP, DV], dtype=tl.float32)

    if split < WINDOW_SPLITS:
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
            for first in range(0, end - begin, BW):
                token = first + tl.arange(0, BW)
                seen = token < end - begin
                s = scores(
                    query, query_rest, k_win, token * kw_s, seen, scale_log2, DK, DR, DK_END, PRECISION
                )
                values = load_rows(v_win, token * vw_s, seen, 0, DV, DV_END)
                _, m, total, acc = absorb(s, values, m, total, acc, PRECISION)
            store_partial(partial, stats, m, total, acc, G, GP, DV, DV_END)
    else:
        begin = (split - WINDOW_SPLITS) * tile_run
        end = tl.minimum(begin + tile_run, (visible + PIECES * BJ - 1) // (PIECES * BJ))
        if begin < end:
            k_cmp += (begin * PIECES * BJ).to(tl.int64) * kc_s
            v_cmp += (begin * PIECES * BJ).to(tl.int64) * vc_s
            rest = visible - begin * PIECES * BJ
            piece = tl.arange(0, PP)
            block = tl.arange(0, BJ)
            index = tl.arange(0, BJ * PP)
            place = index
            if PP > PIECES:
                place = index // PP * PIECES + index % PP
            reference += (pair.to(tl.int64) * tiles + begin) * G
            pooled += (pair.to(tl.int64) * tiles + begin) * (SPILL + 1) * G * BJ
            for tile in range(end - begin):
                key = tile * (PIECES * BJ) + place
                seen = key < rest
                if PP > PIECES:
                    seen = seen & (index % PP < PIECES)
                s = scores(query, query_rest, k_cmp, key * kc_s, seen, scale_log2, DK, DR, DK_END, PRECISION)
                values = load_rows(v_cmp, key * vc_s, seen, 0, DV, DV_END)
                p, m, total, acc = absorb(s, values, m, total, acc, PRECISION)
                tl.store(reference + tile * G + head, m, mask=head < G)
                by_block = tl.reshape(p, [GP, BJ, PP])
                for k in tl.static_range(SPILL + 1):
                    times = overlaps(k, piece, PIECES, SHARES)
                    sums = tl.sum(by_block * times[None, None, :], 2)
                    cell = ((tile * (SPILL + 1) + k) * G + head[:, None]) * BJ + block[None, :]
                    tl.store(pooled + cell, sums, mask=(head < G)[:, None] & (block < BJ)[None, :])
            store_partial(partial, stats, m, total, acc, G, GP, DV, DV_END)


@triton.jit
def score_kernel(
    q,
    k_cmp,
    v_cmp,
    k_win,
    v_win,
    lengths,
    partial,
    stats,
    reference,
    pooled,
    q_b,
    q_h,
    kc_b,
    kc_s,
    kc_h,
    vc_b,
    vc_s,
    vc_h,
    kw_b,
    kw_s,
    kw_h,
    vw_b,
    vw_s,
    vw_h,
    scale_log2,
    kv_heads,
    splits,
    tiles,
    tile_run,
    window_run,
    G: tl.constexpr,
    GP: tl.constexpr,
    DK: tl.constexpr,
    DR: tl.constexpr,
    DK_END: tl.constexpr,
    DV: tl.constexpr,
    DV_END: tl.constexpr,
    PIECES: tl.constexpr,
    PP: tl.constexpr,
    BJ: tl.constexpr,
    SHARES: tl.constexpr,
    SPILL: tl.constexpr,
    WINDOW: tl.constexpr,
    WINDOW_SPLITS: tl.constexpr,
    BW: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid (WINDOW_SPLITS + splits, pairs); a program past its row's length returns at once."""
    if OVERLAP:
        gdc_launch_dependents()
    split = tl.program_id(0)
    pair = tl.program_id(1)
    row = (pair // kv_heads).to(tl.int64)
    kv_head = pair % kv_heads
    tokens = tl.load(lengths + row).to(tl.int32)
    query, query_rest = load_query(q + row * q_b + kv_head * G * q_h, q_h, G, GP, DK, DR, DK_END)
    score_program(
        split,
        pair,
        tokens,
        blocks_before(tokens, BLOCK, STRIDE),
        query,
        query_rest,
        k_cmp + row * kc_b + kv_head * kc_h,
        v_cmp + row * vc_b + kv_head * vc_h,
        k_win + row * kw_b + kv_head * kw_h,
        v_win + row * vw_b + kv_head * vw_h,
        k_win,
        v_win,
        partial,
        stats,
        reference,
        pooled,
        kc_s,
        vc_s,
        kw_s,
        vw_s,
        scale_log2,
        splits,
        tiles,
        tile_run,
        window_run,
        G,
        GP,
        DK,
        DR,
        DK_END,
        DV,
        DV_END,
        PIECES,
        PP,
        BJ,
        SHARES,
        SPILL,
        WINDOW,
        WINDOW_SPLITS,
        BW,
        PRECISION,
        False,
    )
