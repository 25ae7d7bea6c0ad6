"""Third launch of decode: the partials of the three branches become the output.

A program owns some columns of the values of one pair. All of its loads are under way before the first result
is waited for: the gates, every partial's m and l, and the partials' columns. Each warp adds up a share of the
partials for itself; they meet once, at the end.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from nsa_kernels.triton.decode_tile import completes, log_sum_exp, used_splits, used_tiles
from nsa_kernels.triton.tiles import blocks_before


@triton.jit
def load_partials(
    partial, stats, first, count, head, column,
    G: tl.constexpr, DV_END: tl.constexpr, LANES: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """m [GROUP, LANES, RUN] and columns [GROUP, LANES, RUN, width] of the partials from `first` on.

    -inf and 0 from `count` on. The compiler deals the last axis to threads first, then the others from the
    first on: the partials of a lane come to one warp, those of a run to one thread.
    """
    share = first + tl.arange(0, LANES)[:, None] + tl.arange(0, RUN)[None, :] * LANES
    mask = (head < G)[:, None, None] & (share < count)[None, :, :]
    cell = share[None, :, :] * G + head[:, None, None]
    m = stats + share[None, :, :] * (2 * G) + head[:, None, None]
    m = tl.load(m, mask=mask, other=float("-inf"))
    place = cell[:, :, :, None] * DV_END + column[None, None, None, :]
    mask = mask[:, :, :, None] & (column < DV_END)[None, None, None, :]
    return m, tl.load(partial + place, mask=mask, other=0.0)


@triton.jit
def merge_kernel(
    gates, lengths, partial, stats, denominators, out, gate_b, gate_h,
    kv_heads, splits, tile_run, window_run, runs,
    G: tl.constexpr, GROUP: tl.constexpr, DV_END: tl.constexpr, PIECES: tl.constexpr, SHARES: tl.constexpr,
    BJ: tl.constexpr, WINDOW: tl.constexpr, WINDOW_SPLITS: tl.constexpr, BW: tl.constexpr,
    SELECT_BLOCK: tl.constexpr, COUNT: tl.constexpr, SLOTS: tl.constexpr, DS: tl.constexpr,
    LANES: tl.constexpr, PART: tl.constexpr, OTHERS: tl.constexpr, BLOCK: tl.constexpr,
    STRIDE: tl.constexpr, FRESH: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(D_v / DS), pairs).

    A program holds PART partials of the compressed branch at a time, and all OTHERS of the window and of the
    selected branch. With FRESH, the compressed key that the last token completes is one partial more, behind
    the splits in use.
    """
    part = tl.program_id(0)
    pair = tl.program_id(1)
    row = (pair // kv_heads).to(tl.int64)
    head = tl.arange(0, GROUP)
    column = part * DS + tl.arange(0, DS)
    tokens = tl.load(lengths + row).to(tl.int32)
    gates += row * gate_b + (pair % kv_heads) * G * gate_h + head * gate_h
    gate = tl.load(gates, mask=head < G, other=0.0).to(tl.float32)
    branch = tl.arange(0, 2)  # the window, the selected
    gate_others = tl.load(gates[:, None] + 2 - branch[None, :], mask=(head < G)[:, None], other=0.0)

    visible = blocks_before(tokens - 1 if FRESH else tokens, BLOCK, STRIDE)
    count = used_splits(used_tiles(visible, PIECES, SHARES, BJ), tile_run)
    if FRESH:
        count += completes(tokens, BLOCK, STRIDE).to(tl.int32)
    count_win = (tl.minimum(tokens, WINDOW) + window_run * BW - 1) // (window_run * BW)
    count_slc = (tl.minimum((tokens + SELECT_BLOCK - 1) // SELECT_BLOCK, COUNT) + SLOTS - 1) // SLOTS
    first = pair.to(tl.int64) * (WINDOW_SPLITS + splits + 1 + runs)
    partial += first * G * DV_END
    stats += first * 2 * G
    cmp, cmp_stats = partial + WINDOW_SPLITS * G * DV_END, stats + WINDOW_SPLITS * 2 * G
    if OVERLAP:
        gdc_wait()

    index = tl.arange(0, OTHERS)[None, :]
    share = index + branch[:, None] * (WINDOW_SPLITS + splits + 1)
    inside = index < tl.where(branch == 0, count_win, count_slc)[:, None]
    place = stats + share[None, :, :] * (2 * G) + head[:, None, None]
    mask = (head < G)[:, None, None] & inside[None, :, :]
    m_others = tl.load(place, mask=mask, other=float("-inf"))  # [GROUP, 2, OTHERS]
    total = tl.load(place + G, mask=mask, other=0.0)
    lse = tl.load(denominators + pair.to(tl.int64) * G + head, mask=(head < G) & (tokens > 0), other=0.0)
    m, shares = load_partials(cmp, cmp_stats, 0, count, head, column, G, DV_END, LANES, PART // LANES)
    RUN: tl.constexpr = 2 * OTHERS // LANES
    share = tl.reshape(share, [LANES, RUN])
    place = (share[None, :, :] * G + head[:, None, None])[:, :, :, None] * DV_END + column[None, None, None, :]
    mask = (head < G)[:, None, None] & tl.reshape(inside, [LANES, RUN])[None, :, :]
    mask = mask[:, :, :, None] & (column < DV_END)[None, None, None, :]
    shares_others = tl.load(partial + place, mask=mask, other=0.0)
    tl.debug_barrier()  # the assembler moves no load past it; it would put off some

    acc = tl.sum(tl.exp2(m - lse[:, None, None])[:, :, :, None] * shares, 2)
    for begin in range(PART, count, PART):
        m, shares = load_partials(
            cmp, cmp_stats, begin, count, head, column, G, DV_END, LANES, PART // LANES
        )  # fmt: skip
        acc += tl.sum(tl.exp2(m - lse[:, None, None])[:, :, :, None] * shares, 2)
    acc *= gate[:, None, None]
    weights = tl.exp2(m_others - log_sum_exp(m_others, total, 2)[:, :, None])
    weights = tl.reshape(weights * gate_others.to(tl.float32)[:, :, None], [GROUP, LANES, RUN])
    acc += tl.sum(weights[:, :, :, None] * shares_others, 2)
    acc = tl.where(tokens > 0, tl.sum(acc, 1), 0.0)  # a row without tokens may have any gates
    place = out + (pair.to(tl.int64) * G + head[:, None]) * DV_END + column[None, :]
    tl.store(place, acc.to(out.dtype.element_ty), mask=(head < G)[:, None] & (column < DV_END)[None, :])
