"""Third launch of decode: the n best blocks, attention to them, and the sum of the branches.

Every program ranks the candidates by itself, attends to its own few blocks and leaves a partial; the last
program of a pair to arrive merges these and writes the output.
"""

import triton
import triton.language as tl

from nsa_kernels.triton.decode_tile import (
    absorb,
    load_rows,
    log_sum_exp,
    merge_partials,
    scores,
    store_partial,
)


@triton.jit
def count_before_sorted(value, RUN: tl.constexpr, COUNT: tl.constexpr):
    """For each of COUNT candidates, how many come before it; they stand in runs of RUN, each already in
    order.

    Of equal candidates in different runs, that of the earlier run comes first: the others of an earlier run
    are compared with the next smaller float. Inside its own run a candidate's place is known.
    """
    place = tl.arange(0, COUNT)
    smaller = (value.to(tl.int32, bitcast=True) - 1).to(tl.float32, bitcast=True)
    smaller = tl.where(value > 0, smaller, -0.5)
    run = place // RUN
    other_run = run[:, None]
    bound = tl.where(other_run < run[None, :], smaller[None, :], value[None, :])
    bound = tl.where(other_run == run[None, :], float("inf"), bound)
    others = tl.sum(tl.where(value[:, None] > bound, 1.0, 0.0), 0)
    return place % RUN + others.to(tl.int32)


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
    SLOTS: tl.constexpr,
    LT: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNKS_P: tl.constexpr,
    RUN: tl.constexpr,
    RETURN_BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (ceil(n / SLOTS), pairs)."""
    chunk = tl.program_id(0)
    pair = tl.program_id(1)
    row = (pair // kv_heads).to(tl.int64)
    kv_head = pair % kv_heads
    tokens = tl.load(lengths + row).to(tl.int32)
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
        place = tl.arange(0, CANDIDATES)
        candidate_value += pair.to(tl.int64) * pieces * COUNT_P
        candidate_block += pair.to(tl.int64) * pieces * COUNT_P
        limit = (own // BN + 1) * COUNT_P
        live = (place < limit) & (place % COUNT_P < COUNT)
        value = tl.load(candidate_value + place, mask=live, other=-2.0)
        block = tl.load(candidate_block + place, mask=live, other=0)
        before = count_before_sorted(value, COUNT_P, CANDIDATES)
        before = tl.where(value >= 0, before, COUNT_P)

        if RETURN_BLOCKS:
            write_blocks(blocks, before, block, chunk == 0, COUNT, COUNT_P)

        mine = before[None, :] == (chunk * SLOTS + tl.arange(0, SLOTS))[:, None]
        chosen = tl.sum(tl.where(mine, block[None, :] + 1, 0), 1) - 1  # [SLOTS], -1 past the last
        if COUNT % SLOTS:
            chosen = tl.where(chunk * SLOTS + tl.arange(0, SLOTS) < COUNT, chosen, -1)
        chosen = tl.reshape(tl.broadcast_to(chosen[:, None], [SLOTS, LT]), [SLOTS * LT])
        inner = tl.arange(0, SLOTS * LT) % LT

        query_head = tl.arange(0, GP)
        q += row * q_b + kv_head * G * q_h
        query = load_rows(q, query_head * q_h, query_head < G, 0, DK, DK_END)
        query_rest = query
        if DR > 0:
            query_rest = load_rows(q, query_head * q_h, query_head < G, DK, DR, DK_END)
        k_slc += row * k_b + kv_head * k_h
        v_slc += row * v_b + kv_head * v_h
        m = tl.full([GP], float("-inf"), dtype=tl.float32)
        total = tl.zeros([GP], dtype=tl.float32)
        acc = tl.zeros([GP, DV], dtype=tl.float32)
        for first in tl.static_range(0, SELECT_BLOCK, LT):
            token = chosen * SELECT_BLOCK + first + inner
            seen = (chosen >= 0) & (token < tokens)
            if SELECT_BLOCK % LT:
                seen = seen & (first + inner < SELECT_BLOCK)
            token = tl.where(seen, token, 0).to(tl.int64)
            s = scores(query, query_rest, k_slc, token * k_s, seen, scale_log2, DK, DR, DK_END, PRECISION)
            values = load_rows(v_slc, token * v_s, seen, 0, DV, DV_END)
            _, m, total, acc = absorb(s, values, m, total, acc, PRECISION)

        share = pair.to(tl.int64) * CHUNKS
        partial += share * G * DV_END
        stats += share * 2 * G
        store_partial(partial + chunk * G * DV_END, stats + chunk * 2 * G, m, total, acc, G, GP, DV, DV_END)
        tl.debug_barrier()  # all threads' stores come before the one thread's count
        arrived = tl.atomic_add(counter + pair, 1, sem="acq_rel")
        if arrived == used - 1:
            lse = log_sum_exp(stats, used, G, GROUP, CHUNKS_P, ".cg")
            result = merge_partials(partial, stats, lse, used, column, G, GROUP, DV_END, RUN, ".cg")
            gate = gates + row * gate_b + (kv_head * G + head) * gate_h
            gate = tl.load(gate + 1, mask=head < G, other=0.0).to(tl.float32)
            base += pair.to(tl.int64) * G * DV_END
            rest = tl.load(base + head[:, None] * DV_END + column[None, :], mask=inside, other=0.0)
            result = (rest + gate[:, None] * result).to(out.dtype.element_ty)
            tl.store(out + head[:, None] * DV_END + column[None, :], result, mask=inside)
