"""Third launch of decode: the n best blocks, attention to them, and the sum of the branches.

Every program ranks the candidates by itself, attends to its own few blocks and leaves a partial; the last
program of a pair to arrive merges these and writes the output.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from nsa_kernels.triton.decode_score import load_query
from nsa_kernels.triton.decode_tile import (
    absorb,
    load_rows,
    load_shares,
    load_stats,
    log_sum_exp,
    scores,
    store_partial,
    weigh,
    weigh_rest,
)


@triton.jit
def count_others(value, run, other_value, other_run):
    """For each candidate [A], how many of the others [B] from other runs come before it.

    Of equal candidates, that of the earlier run comes first: the others of an earlier run are compared with
    the next smaller float.
    """
    smaller = (value.to(tl.int32, bitcast=True) - 1).to(tl.float32, bitcast=True)
    smaller = tl.where(value > 0, smaller, -0.5)
    bound = tl.where(other_run[:, None] < run[None, :], smaller[None, :], value[None, :])
    bound = tl.where(other_run[:, None] == run[None, :], float("inf"), bound)
    return tl.sum(tl.where(other_value[:, None] > bound, 1.0, 0.0), 0).to(tl.int32)


@triton.jit
def write_blocks(blocks, before, block, mine, COUNT: tl.constexpr, COUNT_P: tl.constexpr):
    """Writes the COUNT best of the candidates in ascending order, then -1, where this program is to do it."""
    slot = tl.arange(0, COUNT_P)
    best = before[None, :] == slot[:, None]
    best = tl.sum(tl.where(best, block[None, :] + 1, 0), 1) - 1
    # The unused, all -1, stay behind in their order.
    order = tl.where((best < 0) | (slot >= COUNT), 0x7FFFFFFF - COUNT_P + slot, best)
    order = tl.sum((order[None, :] < order[:, None]).to(tl.int32), 1)
    tl.store(blocks + order, tl.where(slot < COUNT, best, -1), mask=(order < COUNT) & mine)


@triton.jit
def attend_kernel(
    q,
    k_slc,
    v_slc,
    gates,
    lengths,
    candidate_value,
    candidate_block,
    base,
    partial,
    stats,
    counter,
    out,
    blocks,
    q_b,
    q_h,
    k_b,
    k_s,
    k_h,
    v_b,
    v_s,
    v_h,
    gate_b,
    gate_h,
    scale_log2,
    kv_heads,
    pieces,
    G: tl.constexpr,
    GP: tl.constexpr,
    GROUP: tl.constexpr,
    DK: tl.constexpr,
    DR: tl.constexpr,
    DK_END: tl.constexpr,
    DV: tl.constexpr,
    DV_END: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    COUNT: tl.constexpr,
    COUNT_P: tl.constexpr,
    CANDIDATES: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SLOTS: tl.constexpr,
    LT: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNKS_P: tl.constexpr,
    RUN: tl.constexpr,
    RETURN_BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid (ceil(n / SLOTS), pairs)."""
    chunk = tl.program_id(0)
    pair = tl.program_id(1)
    row = (pair // kv_heads).to(tl.int64)
    kv_head = pair % kv_heads
    tokens = tl.load(lengths + row).to(tl.int32)
    query, query_rest = load_query(q + row * q_b + kv_head * G * q_h, q_h, G, GP, DK, DR, DK_END)
    if OVERLAP:
        gdc_wait()
    place = tl.arange(0, CANDIDATES)
    candidate_value += pair.to(tl.int64) * pieces * COUNT_P
    candidate_block += pair.to(tl.int64) * pieces * COUNT_P
    # Loaded before the length has come; masked by it afterwards.
    there = (place < pieces * COUNT_P) & (place % COUNT_P < COUNT)
    value = tl.load(candidate_value + place, mask=there, other=-2.0)
    block = tl.load(candidate_block + place, mask=there, other=0)
    own = (tokens + SELECT_BLOCK - 1) // SELECT_BLOCK - 1  # -1 where there are no tokens
    used = (tl.minimum(COUNT, own + 1) + SLOTS - 1) // SLOTS
    blocks += pair.to(tl.int64) * COUNT
    out += pair.to(tl.int64) * G * DV_END
    head = tl.arange(0, GROUP)
    column = tl.arange(0, DV)
    slot = tl.arange(0, COUNT_P)
    inside = (head < G)[:, None] & (column < DV_END)[None, :]

    if used == 0:
        if chunk == 0:
            zeros = tl.zeros([GROUP, DV], dtype=tl.float32).to(out.dtype.element_ty)
            tl.store(out + head[:, None] * DV_END + column[None, :], zeros, mask=inside)
            if RETURN_BLOCKS:
                tl.store(blocks + slot, tl.full([COUNT_P], -1, dtype=tl.int32), mask=slot < COUNT)
    elif chunk < used:
        live = place < (own // BN + 1) * COUNT_P
        value = tl.where(live, value, -2.0)
        block = tl.where(live, block, 0)
        # Each piece's candidates stand in order: of its own piece, as many come before one as its place says.
        before = place % COUNT_P
        if CANDIDATES > BK:
            for first in range(0, (own // BN + 1) * COUNT_P, BK):
                other = first + tl.arange(0, BK)
                keep = (other < (own // BN + 1) * COUNT_P) & (other % COUNT_P < COUNT)
                other_value = tl.load(candidate_value + other, mask=keep, other=-2.0)
                before += count_others(value, place // COUNT_P, other_value, other // COUNT_P)
        else:
            before += count_others(value, place // COUNT_P, value, place // COUNT_P)
        before = tl.where(value >= 0, before, COUNT_P)

        if RETURN_BLOCKS:
            write_blocks(blocks, before, block, chunk == 0, COUNT, COUNT_P)

        k_slc += row * k_b + kv_head * k_h
        v_slc += row * v_b + kv_head * v_h
        m = tl.full([GP], float("-inf"), dtype=tl.float32)
        total = tl.zeros([GP], dtype=tl.float32)
        acc = tl.zeros([GP, DV], dtype=tl.float32)
        inner = tl.arange(0, LT)
        tiles: tl.constexpr = (SELECT_BLOCK + LT - 1) // LT
        first_slot = chunk * SLOTS
        slots = tl.minimum(SLOTS, tl.minimum(COUNT, own + 1) - first_slot)
        for tile in range(slots * tiles):
            chosen = tl.sum(tl.where(before == first_slot + tile // tiles, block, 0), 0)
            begin = chosen * SELECT_BLOCK + tile % tiles * LT
            end = tl.minimum((chosen + 1) * SELECT_BLOCK, tokens)
            seen = inner < end - begin
            keys = k_slc + begin.to(tl.int64) * k_s
            s = scores(query, query_rest, keys, inner * k_s, seen, scale_log2, DK, DR, DK_END, PRECISION)
            values = load_rows(v_slc + begin.to(tl.int64) * v_s, inner * v_s, seen, 0, DV, DV_END)
            _, m, total, acc = absorb(s, values, m, total, acc, PRECISION)

        share = pair.to(tl.int64) * CHUNKS
        partial += share * G * DV_END
        stats += share * 2 * G
        store_partial(partial + chunk * G * DV_END, stats + chunk * 2 * G, m, total, acc, G, GP, DV, DV_END)
        tl.debug_barrier()  # all threads' stores come before the one thread's count
        arrived = tl.atomic_add(counter + pair, 1, sem="acq_rel")
        if arrived == used - 1:
            m_all, total_all = load_stats(stats, 0, used, G, GROUP, CHUNKS_P, ".cg")
            m_run = load_stats(stats, 0, used, G, GROUP, RUN, ".cg")[0]
            shares = load_shares(partial, 0, used, column, G, GROUP, DV_END, RUN, ".cg")
            gate = gates + row * gate_b + (kv_head * G + head) * gate_h
            gate = tl.load(gate + 1, mask=head < G, other=0.0).to(tl.float32)
            base += pair.to(tl.int64) * G * DV_END
            rest = tl.load(base + head[:, None] * DV_END + column[None, :], mask=inside, other=0.0)
            lse = log_sum_exp(m_all, total_all)
            result = weigh(shares, m_run, lse)
            result = weigh_rest(result, partial, stats, lse, used, column, G, GROUP, DV_END, RUN, ".cg")
            result = (rest + gate[:, None] * result).to(out.dtype.element_ty)
            tl.store(out + head[:, None] * DV_END + column[None, :], result, mask=inside)
