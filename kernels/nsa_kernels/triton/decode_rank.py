"""Second launch of decode: candidates for the selection, and the compressed and window branches merged.

A program either ranks a piece of the selection blocks by their importance and keeps the n best, or merges
some columns of the partials. All know the softmax's denominators by themselves: that is a small reduction.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nsa_kernels.triton.decode_score import overlaps
from nsa_kernels.triton.decode_tile import load_shares, load_stats, log_sum_exp, weigh, weigh_rest
from nsa_kernels.triton.tiles import blocks_before


@triton.jit
def count_before(bits, index, other_bits, other_index):
    """For each candidate [A], how many of the others [B] come before it: more important, or as much and
    lower.

    The others lie along the first axis: then each thread counts for its own candidates, without a shuffle.
    """
    earlier = (other_index[:, None] < index[None, :]).to(tl.int32)
    return tl.sum((other_bits[:, None] > bits[None, :] - earlier).to(tl.int32), 0)


@triton.jit
def load_pooled(
    reference,
    pooled,
    block,
    k,
    used,
    G: tl.constexpr,
    GROUP: tl.constexpr,
    BJ: tl.constexpr,
    SPILL: tl.constexpr,
):
    """What the keys of the k-th block before each block [BN] give to it.

    Returns:
        The m that the sums refer to and the sums, [GROUP, BN].
    """
    head = tl.arange(0, GROUP)
    source = block - k
    tile = source // BJ
    mask = ((source >= 0) & (tile < used))[None, :] & (head < G)[:, None]
    m = tl.load(reference + tile[None, :] * G + head[:, None], mask=mask, other=float("-inf"))
    cell = ((tile * (SPILL + 1) + k) * G)[None, :] + head[:, None]
    return m, tl.load(pooled + cell * BJ + (source % BJ)[None, :], mask=mask, other=0.0)


@triton.jit
def join(lse, score):
    """Log2-sum-exp with one more score; +inf stands for nothing seen, as in `log_sum_exp`."""
    lse = tl.where(lse == float("inf"), float("-inf"), lse)
    top = tl.maximum(lse, score)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.exp2(lse - top) + tl.exp2(score - top)
    return tl.where(total > 0, top + tl.log2(tl.where(total > 0, total, 1.0)), float("inf"))


@triton.jit
def rank_program(
    part,
    pair,
    tokens,
    visible,
    fresh_score,
    fresh_value,
    gates,
    gate_h,
    partial,
    stats,
    reference,
    pooled,
    ranked,
    candidate_value,
    candidate_block,
    base,
    splits,
    tiles,
    tile_run,
    window_run,
    pieces,
    G: tl.constexpr,
    GROUP: tl.constexpr,
    DV_END: tl.constexpr,
    PIECES: tl.constexpr,
    SHARES: tl.constexpr,
    BJ: tl.constexpr,
    SPILL: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    COUNT: tl.constexpr,
    COUNT_P: tl.constexpr,
    SPLITS: tl.constexpr,
    WINDOW: tl.constexpr,
    WINDOW_SPLITS: tl.constexpr,
    WINDOW_SHARES: tl.constexpr,
    BW: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DS: tl.constexpr,
    RUN: tl.constexpr,
    RUN_W: tl.constexpr,
    FRESH: tl.constexpr,
):
    """One piece of the ranking or one slice of the columns; the gates stand at the group.

    With FRESH, the compressed key after the first `visible` has these scores [GROUP] (-inf: there is none)
    and this value [DS]; no partial holds it.
    """
    own = (tokens - 1) // SELECT_BLOCK
    used_tiles = (visible + PIECES * BJ - 1) // (PIECES * BJ)
    used_splits = (used_tiles + tile_run - 1) // tile_run
    head = tl.arange(0, GROUP)
    window_share = pair.to(tl.int64) * (splits + WINDOW_SPLITS)
    share = window_share + WINDOW_SPLITS

    # In both roles all loads are under way before the first result is waited for.
    if part < pieces:
        if (tokens > 0) & (part * BN <= own):
            block = part * BN + tl.arange(0, BN)
            reference += pair.to(tl.int64) * tiles * G
            pooled += pair.to(tl.int64) * tiles * (SPILL + 1) * G * BJ
            m, total = load_stats(stats + share * 2 * G, 0, used_splits, G, GROUP, SPLITS, "")
            refers, sums = load_pooled(reference, pooled, block, 0, used_tiles, G, GROUP, BJ, SPILL)
            if SPILL > 0:
                refers_1, sums_1 = load_pooled(reference, pooled, block, 1, used_tiles, G, GROUP, BJ, SPILL)
            lse = log_sum_exp(m, total)
            if FRESH:
                lse = join(lse, fresh_score)
            importance = tl.sum(sums * tl.exp2(refers - lse[:, None]), 0)
            if SPILL > 0:
                importance += tl.sum(sums_1 * tl.exp2(refers_1 - lse[:, None]), 0)
            for k in tl.static_range(2, SPILL + 1):
                refers, sums = load_pooled(reference, pooled, block, k, used_tiles, G, GROUP, BJ, SPILL)
                importance += tl.sum(sums * tl.exp2(refers - lse[:, None]), 0)
            if FRESH:
                p = tl.sum(tl.exp2(fresh_score - lse), 0)
                importance += p * overlaps(block - visible // PIECES, visible % PIECES, PIECES, SHARES)
            value = tl.maximum(importance, 0.0)
            value = tl.where((block == 0) | (block == own) | (block == own - 1), float("inf"), value)
            value = tl.where(block > own, -1.0, value)
            bits = value.to(tl.int32, bitcast=True)  # of non-negative floats: these order as the floats do
            # Both sides of the comparison come out of memory. Threads that hold the same sum may differ in
            # its last bit (each fuses a product of its own into the addition): a block would then come
            # before itself.
            ranked += pair.to(tl.int64) * pieces * BN
            tl.store(ranked + block, bits)
            tl.debug_barrier()
            bits = tl.load(ranked + block, cache_modifier=".cg")
            before = tl.zeros([BN], dtype=tl.int32)
            for first in range(0, BN, BK):
                other = part * BN + first + tl.arange(0, BK)
                before += count_before(bits, block, tl.load(ranked + other, cache_modifier=".cg"), other)
            at = (pair.to(tl.int64) * pieces + part) * COUNT_P + before
            tl.store(candidate_value + at, value, mask=before < COUNT)
            tl.store(candidate_block + at, block, mask=before < COUNT)
    elif tokens > 0:
        column = (part - pieces) * DS + tl.arange(0, DS)
        used_window = (tl.minimum(tokens, WINDOW) + window_run * BW - 1) // (window_run * BW)
        cmp, cmp_stats = partial + share * G * DV_END, stats + share * 2 * G
        win, win_stats = partial + window_share * G * DV_END, stats + window_share * 2 * G
        gate_cmp = tl.load(gates + head * gate_h, mask=head < G, other=0.0)
        gate_win = tl.load(gates + head * gate_h + 2, mask=head < G, other=0.0)
        m, total = load_stats(cmp_stats, 0, used_splits, G, GROUP, SPLITS, "")
        m_run = load_stats(cmp_stats, 0, used_splits, G, GROUP, RUN, "")[0]
        shares = load_shares(cmp, 0, used_splits, column, G, GROUP, DV_END, RUN, "")
        m_win, total_win = load_stats(win_stats, 0, used_window, G, GROUP, WINDOW_SHARES, "")
        m_win_run = load_stats(win_stats, 0, used_window, G, GROUP, RUN_W, "")[0]
        shares_win = load_shares(win, 0, used_window, column, G, GROUP, DV_END, RUN_W, "")

        lse = log_sum_exp(m, total)
        if FRESH:
            lse = join(lse, fresh_score)
        out = weigh(shares, m_run, lse)
        out = weigh_rest(out, cmp, cmp_stats, lse, used_splits, column, G, GROUP, DV_END, RUN, "")
        if FRESH:
            out += tl.exp2(fresh_score - lse)[:, None] * fresh_value[None, :]
        lse = log_sum_exp(m_win, total_win)
        out_win = weigh(shares_win, m_win_run, lse)
        out_win = weigh_rest(out_win, win, win_stats, lse, used_window, column, G, GROUP, DV_END, RUN_W, "")
        out = out * gate_cmp.to(tl.float32)[:, None] + out_win * gate_win.to(tl.float32)[:, None]
        place = base + (pair.to(tl.int64) * G + head[:, None]) * DV_END + column[None, :]
        tl.store(place, out, mask=(head < G)[:, None] & (column < DV_END)[None, :])


@triton.jit
def rank_kernel(
    gates,
    lengths,
    partial,
    stats,
    reference,
    pooled,
    ranked,
    candidate_value,
    candidate_block,
    base,
    gate_b,
    gate_h,
    kv_heads,
    splits,
    tiles,
    tile_run,
    window_run,
    pieces,
    G: tl.constexpr,
    GROUP: tl.constexpr,
    DV_END: tl.constexpr,
    PIECES: tl.constexpr,
    SHARES: tl.constexpr,
    BJ: tl.constexpr,
    SPILL: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    COUNT: tl.constexpr,
    COUNT_P: tl.constexpr,
    SPLITS: tl.constexpr,
    WINDOW: tl.constexpr,
    WINDOW_SPLITS: tl.constexpr,
    WINDOW_SHARES: tl.constexpr,
    BW: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DS: tl.constexpr,
    RUN: tl.constexpr,
    RUN_W: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid (pieces + column slices, pairs)."""
    part = tl.program_id(0)
    pair = tl.program_id(1)
    row = (pair // kv_heads).to(tl.int64)
    tokens = tl.load(lengths + row).to(tl.int32)
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    rank_program(
        part,
        pair,
        tokens,
        blocks_before(tokens, BLOCK, STRIDE),
        0.0,
        0.0,
        gates + row * gate_b + (pair % kv_heads) * G * gate_h,
        gate_h,
        partial,
        stats,
        reference,
        pooled,
        ranked,
        candidate_value,
        candidate_block,
        base,
        splits,
        tiles,
        tile_run,
        window_run,
        pieces,
        G,
        GROUP,
        DV_END,
        PIECES,
        SHARES,
        BJ,
        SPILL,
        SELECT_BLOCK,
        COUNT,
        COUNT_P,
        SPLITS,
        WINDOW,
        WINDOW_SPLITS,
        WINDOW_SHARES,
        BW,
        BN,
        BK,
        DS,
        RUN,
        RUN_W,
        False,
    )
