"""Second launch of decode: candidates for the selection, and the compressed and window branches merged.

A program either ranks a piece of the selection blocks by their importance and keeps the n best, or merges
some columns of the partials. All know the softmax's denominators by themselves: that is a small reduction.
"""

import triton
import triton.language as tl

from nsa_kernels.triton.decode_tile import log_sum_exp, merge_partials
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
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    PIECES: tl.constexpr,
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
):
    """Grid (pieces + column slices, pairs)."""
    part = tl.program_id(0)
    pair = tl.program_id(1)
    row = (pair // kv_heads).to(tl.int64)
    kv_head = pair % kv_heads
    tokens = tl.load(lengths + row).to(tl.int32)
    own = (tokens - 1) // SELECT_BLOCK
    visible = blocks_before(tokens, BLOCK, STRIDE)
    used_tiles = (visible + PIECES * BJ - 1) // (PIECES * BJ)
    used_splits = (used_tiles + tile_run - 1) // tile_run
    head = tl.arange(0, GROUP)
    share = pair.to(tl.int64) * (splits + WINDOW_SPLITS)
    window_stats = stats + share * 2 * G
    stats = window_stats + WINDOW_SPLITS * 2 * G

    if part < pieces:
        if (tokens > 0) & (part * BN <= own):
            lse = log_sum_exp(stats, used_splits, G, GROUP, SPLITS, "")
            block = part * BN + tl.arange(0, BN)
            importance = tl.zeros([BN], dtype=tl.float32)
            for k in tl.static_range(SPILL + 1):
                source = block - k
                tile = source // BJ
                mask = ((source >= 0) & (tile < used_tiles))[None, :] & (head < G)[:, None]
                at = pair.to(tl.int64) * tiles + tile
                m = tl.load(reference + at[None, :] * G + head[:, None], mask=mask, other=float("-inf"))
                cell = ((at * (SPILL + 1) + k) * G)[None, :] + head[:, None]
                sums = tl.load(pooled + cell * BJ + (source % BJ)[None, :], mask=mask, other=0.0)
                importance += tl.sum(sums * tl.exp2(m - lse[:, None]), 0)
            value = tl.maximum(importance, 0.0)
            value = tl.where((block == 0) | (block == own) | (block == own - 1), float("inf"), value)
            value = tl.where(block > own, -1.0, value)
            bits = value.to(tl.int32, bitcast=True)  # of non-negative floats: these order as the floats do
            if BN > BK:
                ranked += pair.to(tl.int64) * pieces * BN
                tl.store(ranked + block, bits)
                tl.debug_barrier()
                before = tl.zeros([BN], dtype=tl.int32)
                for first in range(0, BN, BK):
                    other = part * BN + first + tl.arange(0, BK)
                    before += count_before(bits, block, tl.load(ranked + other, cache_modifier=".cg"), other)
            else:
                before = count_before(bits, block, bits, block)
            at = (pair.to(tl.int64) * pieces + part) * COUNT_P + before
            tl.store(candidate_value + at, value, mask=before < COUNT)
            tl.store(candidate_block + at, block, mask=before < COUNT)
    elif tokens > 0:
        column = (part - pieces) * DS + tl.arange(0, DS)
        window = partial + share * G * DV_END
        partial = window + WINDOW_SPLITS * G * DV_END
        gate = gates + row * gate_b + (kv_head * G + head) * gate_h
        gate_cmp = tl.load(gate, mask=head < G, other=0.0).to(tl.float32)
        gate_win = tl.load(gate + 2, mask=head < G, other=0.0).to(tl.float32)
        lse = log_sum_exp(stats, used_splits, G, GROUP, SPLITS, "")
        out = merge_partials(partial, stats, lse, used_splits, column, G, GROUP, DV_END, RUN, "")
        out *= gate_cmp[:, None]
        used = (tl.minimum(tokens, WINDOW) + window_run * BW - 1) // (window_run * BW)
        lse = log_sum_exp(window_stats, used, G, GROUP, WINDOW_SHARES, "")
        out += (
            merge_partials(window, window_stats, lse, used, column, G, GROUP, DV_END, RUN, "")
            * gate_win[:, None]
        )
        place = base + (pair.to(tl.int64) * G + head[:, None]) * DV_END + column[None, :]
        tl.store(place, out, mask=(head < G)[:, None] & (column < DV_END)[None, :])
