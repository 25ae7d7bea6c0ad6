"""Third launch of decode: the partials of the three branches become the output.

A program owns some columns of the values of one pair. All of its loads but the last few are under way before
the first result is waited for: the gates, every partial's m and l, and the partials' columns.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from nsa_kernels.triton.decode_tile import (
    completes,
    load_shares,
    load_stats,
    log_sum_exp,
    used_splits,
    used_tiles,
    weigh,
    weigh_rest,
)
from nsa_kernels.triton.tiles import blocks_before


@triton.jit
def merge_kernel(
    gates, lengths, partial, stats, out, gate_b, gate_h, kv_heads, splits, tile_run, window_run, runs,
    G: tl.constexpr, GROUP: tl.constexpr, DV_END: tl.constexpr, PIECES: tl.constexpr, SHARES: tl.constexpr,
    BJ: tl.constexpr, SPLITS: tl.constexpr, WINDOW: tl.constexpr, WINDOW_SPLITS: tl.constexpr,
    WINDOW_SHARES: tl.constexpr, BW: tl.constexpr, SELECT_BLOCK: tl.constexpr, COUNT: tl.constexpr,
    SLOTS: tl.constexpr, RUNS: tl.constexpr, DS: tl.constexpr, PART: tl.constexpr, PART_W: tl.constexpr,
    PART_S: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr, FRESH: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(D_v / DS), pairs).

    PART, PART_W and PART_S partials of the compressed, the window and the selected branch are held at a time.
    With FRESH, the compressed key that the last token completes is one partial more, behind the splits in
    use.
    """
    part = tl.program_id(0)
    pair = tl.program_id(1)
    row = (pair // kv_heads).to(tl.int64)
    head = tl.arange(0, GROUP)
    tokens = tl.load(lengths + row).to(tl.int32)
    gates += row * gate_b + (pair % kv_heads) * G * gate_h + head * gate_h
    gate_cmp = tl.load(gates, mask=head < G, other=0.0).to(tl.float32)
    gate_slc = tl.load(gates + 1, mask=head < G, other=0.0).to(tl.float32)
    gate_win = tl.load(gates + 2, mask=head < G, other=0.0).to(tl.float32)

    column = part * DS + tl.arange(0, DS)
    win = pair.to(tl.int64) * (WINDOW_SPLITS + splits + 1 + runs)
    cmp = win + WINDOW_SPLITS
    slc = cmp + splits + 1
    win, win_stats = partial + win * G * DV_END, stats + win * 2 * G
    cmp, cmp_stats = partial + cmp * G * DV_END, stats + cmp * 2 * G
    slc, slc_stats = partial + slc * G * DV_END, stats + slc * 2 * G

    visible = blocks_before(tokens - 1 if FRESH else tokens, BLOCK, STRIDE)
    count = used_splits(used_tiles(visible, PIECES, SHARES, BJ), tile_run)
    if FRESH:
        count += completes(tokens, BLOCK, STRIDE).to(tl.int32)
    count_win = (tl.minimum(tokens, WINDOW) + window_run * BW - 1) // (window_run * BW)
    count_slc = (tl.minimum((tokens + SELECT_BLOCK - 1) // SELECT_BLOCK, COUNT) + SLOTS - 1) // SLOTS
    if OVERLAP:
        gdc_wait()

    m, total = load_stats(cmp_stats, 0, count, G, GROUP, SPLITS, "")
    m_win, total_win = load_stats(win_stats, 0, count_win, G, GROUP, WINDOW_SHARES, "")
    m_slc, total_slc = load_stats(slc_stats, 0, count_slc, G, GROUP, RUNS, "")
    m_part = load_stats(cmp_stats, 0, count, G, GROUP, PART, "")[0]
    m_part_win = load_stats(win_stats, 0, count_win, G, GROUP, PART_W, "")[0]
    m_part_slc = load_stats(slc_stats, 0, count_slc, G, GROUP, PART_S, "")[0]
    shares = load_shares(cmp, 0, count, column, G, GROUP, DV_END, PART, "")
    shares_win = load_shares(win, 0, count_win, column, G, GROUP, DV_END, PART_W, "")
    shares_slc = load_shares(slc, 0, count_slc, column, G, GROUP, DV_END, PART_S, "")

    lse, lse_win, lse_slc = log_sum_exp(m, total), log_sum_exp(m_win, total_win), log_sum_exp(m_slc, total_slc)
    acc = weigh(shares, m_part, lse)
    acc_win = weigh(shares_win, m_part_win, lse_win)
    acc_slc = weigh(shares_slc, m_part_slc, lse_slc)
    if SPLITS > PART:
        acc = weigh_rest(acc, cmp, cmp_stats, lse, count, column, G, GROUP, DV_END, PART, "")
    if WINDOW_SHARES > PART_W:
        acc_win = weigh_rest(
            acc_win, win, win_stats, lse_win, count_win, column, G, GROUP, DV_END, PART_W, ""
        )  # fmt: skip
    if RUNS > PART_S:
        acc_slc = weigh_rest(
            acc_slc, slc, slc_stats, lse_slc, count_slc, column, G, GROUP, DV_END, PART_S, ""
        )  # fmt: skip
    acc = acc * gate_cmp[:, None] + acc_win * gate_win[:, None] + acc_slc * gate_slc[:, None]
    place = out + (pair.to(tl.int64) * G + head[:, None]) * DV_END + column[None, :]
    acc = tl.where(tokens > 0, acc, 0.0)  # a row without tokens may have any gates
    tl.store(place, acc.to(out.dtype.element_ty), mask=(head < G)[:, None] & (column < DV_END)[None, :])
