"""Second launch of decode: every program finds the n best blocks of its pair and attends to those of its
slots.

A program takes SLOTS of the n slots: one where pairs are few, so that each has a single chain of loads. What
it finds by itself (choose.py) the other programs of the pair find as well; it leaves one partial.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nsa_kernels.triton.decode.choose import choose, importances
from nsa_kernels.triton.decode.partials import (
    absorb,
    load_query,
    load_rows,
    row_of,
    scores,
    store_partial,
    used_splits,
    used_tiles,
)
from nsa_kernels.triton.tiles import blocks_before


@triton.jit
def attend_slots(
    slot, first, q, q_rest, K_slc, V_slc, stride_ks, stride_vs, Partial, Stats, tokens, scale_log2,
    G: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, DK_END: tl.constexpr,
    DV: tl.constexpr, DV_END: tl.constexpr, SELECT: tl.constexpr, SLOTS: tl.constexpr,
    NB: tl.constexpr, LT: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The partial of the slots from `first` on; the caches stand at the row and head.

    Args:
        slot: Of each block [NB], -1 where it has none. A slot that no block has is passed over.
    """
    block = tl.arange(0, NB)
    inner = tl.arange(0, LT)
    top = tl.full([GP], float("-inf"), dtype=tl.float32)
    total = tl.zeros([GP], dtype=tl.float32)
    acc = tl.zeros([GP, DV], dtype=tl.float32)
    one = tl.arange(0, SLOTS)
    if SLOTS == 1:
        picks = tl.sum(tl.where(slot == first, block + 1, 0), 0) - 1 + one
    else:
        picks = tl.where(slot[:, None] == (first + one)[None, :], (block + 1)[:, None], 0)
        picks = tl.sum(picks, 0) - 1
    filled = tl.sum((picks >= 0).to(tl.int32), 0)
    tiles: tl.constexpr = (SELECT + LT - 1) // LT
    # A loop for a single block too: its loads are issued together before any is waited for.
    for step in tl.range(filled * tiles, num_stages=STAGES):
        picked = tl.sum(tl.where(one == step // tiles, picks, 0), 0)
        begin = picked * SELECT + step % tiles * LT
        seen = inner < tl.minimum((picked + 1) * SELECT, tokens) - begin
        k = K_slc + begin.to(tl.int64) * stride_ks
        s = scores(q, q_rest, k, inner * stride_ks, seen, scale_log2, DK, DR, DK_END, PRECISION)
        v = load_rows(V_slc + begin.to(tl.int64) * stride_vs, inner * stride_vs, seen, 0, DV, DV_END)
        top, total, acc = absorb(s, v, top, total, acc, PRECISION)
    store_partial(Partial, Stats, top, total, acc, G, GP, DV, DV_END)


@triton.jit(
    do_not_specialize=("splits", "tiles", "runs", "window_splits"),
    do_not_specialize_on_alignment=("tile_run",),
)
def attend_kernel(
    Q, K_slc, V_slc, Lengths, Partial, Stats, Reference, Pooled, Ranked, Denominators, Blocks, stride_qb,
    stride_qh, stride_kb, stride_ks, stride_kh, stride_vb, stride_vs, stride_vh, scale_log2, kv_heads, splits,
    tiles, tile_run, runs, window_splits,
    G: tl.constexpr, GROUP: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr,
    DK_END: tl.constexpr, DV: tl.constexpr, DV_END: tl.constexpr, PIECES: tl.constexpr, SHARES: tl.constexpr,
    BJ: tl.constexpr, SPLITS: tl.constexpr, TILES: tl.constexpr, PIECEWISE: tl.constexpr,
    SELECT: tl.constexpr, COUNT: tl.constexpr, COUNT_P: tl.constexpr, NB: tl.constexpr, GROUPS: tl.constexpr,
    WAYS: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, LT: tl.constexpr, STAGES: tl.constexpr,
    BLOCK: tl.constexpr, STRIDE: tl.constexpr, RETURN_BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (runs of slots, pairs); the shares of a pair are those of partials.py."""
    if OVERLAP:
        gdc_launch_dependents()
    run = tl.program_id(0)
    pair = tl.program_id(1)
    batch, kv_head, tokens = row_of(pair, Lengths, kv_heads)
    q, q_rest = load_query(Q + batch * stride_qb + kv_head * G * stride_qh, stride_qh, G, GP, DK, DR, DK_END)
    if OVERLAP:
        gdc_wait()  # every program waits: the third launch counts on the first being done as well
    K_slc += batch * stride_kb + kv_head * stride_kh
    V_slc += batch * stride_vb + kv_head * stride_vh
    own = (tokens - 1) // SELECT
    used = tl.minimum(COUNT, own + 1)
    if RETURN_BLOCKS:
        Blocks += pair.to(tl.int64) * COUNT
        if run == 0:
            place = tl.arange(0, COUNT_P)
            unused = (place >= tl.where(tokens > 0, used, 0)) & (place < COUNT)
            tl.store(Blocks + place, tl.full([COUNT_P], -1, tl.int32), mask=unused)
    if (tokens > 0) & (run * SLOTS < used):
        share = pair.to(tl.int64) * (window_splits + splits + runs)
        scored = used_tiles(blocks_before(tokens, BLOCK, STRIDE), PIECES, SHARES, BJ)
        Reference += pair.to(tl.int64) * tiles * G
        Pooled += pair.to(tl.int64) * tiles * G * BJ
        Ranked += (pair.to(tl.int64) * runs + run) * NB
        lse = importances(
            Ranked, Stats + (share + window_splits) * 2 * G, Reference, Pooled,
            used_splits(scored, tile_run), scored, G, GROUP, BJ, SPLITS, TILES, PIECEWISE,
        )  # fmt: skip
        head = tl.arange(0, GROUP)
        tl.store(Denominators + pair.to(tl.int64) * G + head, lse, mask=(head < G) & (run == 0))
        # Both sides of every comparison come out of memory. Threads that hold the same sum may differ in its
        # last bit (each fuses a product of its own into the addition): a block could then be counted but not
        # chosen, and its slot stay empty.
        tl.debug_barrier()
        slot = choose(Ranked, scored * BJ, own, COUNT, NB, GROUPS, WAYS, WIDTH)
        if RETURN_BLOCKS:
            tl.store(Blocks + slot, tl.arange(0, NB), mask=(slot >= 0) & (run == 0))
        share += window_splits + splits + run
        attend_slots(
            slot, run * SLOTS, q, q_rest, K_slc, V_slc, stride_ks, stride_vs,
            Partial + share * G * DV_END, Stats + share * 2 * G, tokens, scale_log2,
            G, GP, DK, DR, DK_END, DV, DV_END, SELECT, SLOTS, NB, LT, STAGES, PRECISION,
        )  # fmt: skip
