"""Third launch of decode: the n best blocks, attention to them, and the sum of the branches.

A program owns some columns of the values of one pair. It ranks the candidates by itself, scores all n
blocks' keys, which the other programs of the pair score as well, and is done with its columns: the keys
come out of the L2 cache several times, but nobody waits for anybody, and there are no partials to merge.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from nsa_kernels.triton.decode_score import load_query
from nsa_kernels.triton.decode_tile import absorb, scores


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
def best(before, block, COUNT: tl.constexpr, COUNT_P: tl.constexpr):
    """The COUNT first of the candidates, by what comes before each; ascending, then -1 [COUNT_P]."""
    slot = tl.arange(0, COUNT_P)
    chosen = tl.sum(tl.where(before[None, :] == slot[:, None], block[None, :] + 1, 0), 1) - 1
    # The unused, all -1, stay behind in their order.
    order = tl.where((chosen < 0) | (slot >= COUNT), 0x7FFFFFFF - COUNT_P + slot, chosen)
    rank = tl.sum((order[None, :] < order[:, None]).to(tl.int32), 1)
    return tl.sum(tl.where(rank[None, :] == slot[:, None], chosen[None, :] + 1, 0), 1) - 1


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
    DK: tl.constexpr,
    DR: tl.constexpr,
    DK_END: tl.constexpr,
    DV_END: tl.constexpr,
    VALUES: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    COUNT: tl.constexpr,
    COUNT_P: tl.constexpr,
    CANDIDATES: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    LT: tl.constexpr,
    RETURN_BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid (ceil(D_v / VALUES), pairs)."""
    part = tl.program_id(0)
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
    used = tl.minimum(COUNT, own + 1)
    blocks += pair.to(tl.int64) * COUNT
    out += pair.to(tl.int64) * G * DV_END
    head = tl.arange(0, GP)
    column = part * VALUES + tl.arange(0, VALUES)
    slot = tl.arange(0, COUNT_P)
    inside = (head < G)[:, None] & (column < DV_END)[None, :]
    target = out + head[:, None] * DV_END + column[None, :]

    if used == 0:
        tl.store(target, tl.zeros([GP, VALUES], tl.float32).to(out.dtype.element_ty), mask=inside)
        if RETURN_BLOCKS:
            tl.store(blocks + slot, tl.full([COUNT_P], -1, tl.int32), mask=(slot < COUNT) & (part == 0))
    else:
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
        chosen = best(tl.where(value >= 0, before, COUNT_P), block, COUNT, COUNT_P)
        if RETURN_BLOCKS:
            tl.store(blocks + slot, chosen, mask=(slot < COUNT) & (part == 0))

        k_slc += row * k_b + kv_head * k_h
        v_slc += row * v_b + kv_head * v_h
        m = tl.full([GP], float("-inf"), dtype=tl.float32)
        total = tl.zeros([GP], dtype=tl.float32)
        acc = tl.zeros([GP, VALUES], dtype=tl.float32)
        tiles: tl.constexpr = (SELECT_BLOCK + LT - 1) // LT
        inner = tl.arange(0, LT)
        for step in range(used * tiles):
            picked = tl.sum(tl.where(slot == step // tiles, chosen, 0), 0)
            begin = picked * SELECT_BLOCK + step % tiles * LT
            seen = inner < tl.minimum((picked + 1) * SELECT_BLOCK, tokens) - begin
            keys = k_slc + begin.to(tl.int64) * k_s
            s = scores(query, query_rest, keys, inner * k_s, seen, scale_log2, DK, DR, DK_END, PRECISION)
            cell = v_slc + begin.to(tl.int64) * v_s + inner[:, None] * v_s + column[None, :]
            values = tl.load(cell, mask=seen[:, None] & (column < DV_END)[None, :], other=0.0)
            _, m, total, acc = absorb(s, values, m, total, acc, PRECISION)

        gate = gates + row * gate_b + (kv_head * G + head) * gate_h
        gate = tl.load(gate + 1, mask=head < G, other=0.0).to(tl.float32)
        rest = base + (pair.to(tl.int64) * G + head[:, None]) * DV_END + column[None, :]
        rest = tl.load(rest, mask=inside, other=0.0)
        result = rest + (gate / total)[:, None] * acc
        tl.store(target, result.to(out.dtype.element_ty), mask=inside)
