"""Third launch of decode: the partials of the three branches become the output.

A program owns some columns of the values of one pair. All of its loads are under way before the first result
is waited for: the gates, every partial's top and total, and its columns. Each warp adds up a share of the
partials for itself; they meet once, at the end.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from nsa_kernels.triton.decode.partials import log_sum_exp, row_of, used_splits, used_tiles
from nsa_kernels.triton.tiles import blocks_before


@triton.jit
def load_top(Stats, share, inside, G: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """top of partials, for each row [ROWS] as in `load_columns`; -inf where not inside."""
    head = tl.arange(0, ROWS) % GROUP
    return tl.load(Stats + share * (2 * G) + head, mask=inside & (head < G), other=float("-inf"))


@triton.jit
def load_columns(
    Partial, share, inside, column, G: tl.constexpr, GROUP: tl.constexpr, DV_END: tl.constexpr,
    LANES: tl.constexpr, RUN: tl.constexpr, DS: tl.constexpr,
):  # fmt: skip
    """Columns of partials [RUN, LANES, GROUP, DS]; 0 where not inside.

    Loaded in two axes, of which the compiler deals the columns to threads first and the rows after: so the
    heads come to a warp's threads, the lanes to warps, and the partials of a run to one thread.

    Args:
        share: Which partial, for each row [RUN * LANES * GROUP]; the heads follow each other.
        inside: Whether there is one.
    """
    head = tl.arange(0, RUN * LANES * GROUP) % GROUP
    place = Partial + (share * G + head)[:, None] * DV_END + column[None, :]
    mask = (inside & (head < G))[:, None] & (column < DV_END)[None, :]
    return tl.reshape(tl.load(place, mask=mask, other=0.0), [RUN, LANES, GROUP, DS])


@triton.jit(
    do_not_specialize=("splits", "window_run", "runs"),
    do_not_specialize_on_alignment=("tile_run",),
)
def merge_kernel(
    Gates, Lengths, Partial, Stats, Denominators, Out, stride_gb, stride_gh, kv_heads, splits, tile_run,
    window_run, runs,
    G: tl.constexpr, GROUP: tl.constexpr, DV_END: tl.constexpr, PIECES: tl.constexpr, SHARES: tl.constexpr,
    BJ: tl.constexpr, WINDOW: tl.constexpr, WINDOW_SPLITS: tl.constexpr, BW: tl.constexpr,
    SELECT: tl.constexpr, COUNT: tl.constexpr, SLOTS: tl.constexpr, DS: tl.constexpr, LANES: tl.constexpr,
    PART: tl.constexpr, OTHERS: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(D_v / DS), pairs).

    A program holds PART partials of the compressed branch at a time, and all OTHERS of the window and of the
    selected branch.
    """
    part = tl.program_id(0)
    pair = tl.program_id(1)
    batch, _, tokens = row_of(pair, Lengths, kv_heads)
    head = tl.arange(0, GROUP)
    column = part * DS + tl.arange(0, DS)
    Gates += batch * stride_gb + (pair % kv_heads) * G * stride_gh
    gate = tl.load(Gates + head * stride_gh, mask=head < G, other=0.0).to(tl.float32)
    other = tl.arange(0, 2)[:, None]  # the window, the selected
    other_gates = tl.load(Gates + head[None, :] * stride_gh + 2 - other, mask=(head < G)[None, :], other=0.0)

    visible = blocks_before(tokens, BLOCK, STRIDE)
    count = used_splits(used_tiles(visible, PIECES, SHARES, BJ), tile_run)
    count_win = (tl.minimum(tokens, WINDOW) + window_run * BW - 1) // (window_run * BW)
    count_slc = (tl.minimum((tokens + SELECT - 1) // SELECT, COUNT) + SLOTS - 1) // SLOTS
    first = pair.to(tl.int64) * (WINDOW_SPLITS + splits + runs)
    Partial += first * G * DV_END
    Stats += first * 2 * G
    Cmp, Cmp_stats = Partial + WINDOW_SPLITS * G * DV_END, Stats + WINDOW_SPLITS * 2 * G
    if OVERLAP:
        gdc_wait()

    RUN: tl.constexpr = PART // LANES
    share = tl.arange(0, PART * GROUP) // GROUP
    columns = load_columns(Cmp, share, share < count, column, G, GROUP, DV_END, LANES, RUN, DS)
    ROWS: tl.constexpr = 2 * OTHERS * GROUP
    OTHER_RUN: tl.constexpr = 2 * OTHERS // LANES
    other_share = tl.arange(0, ROWS) // GROUP
    selected = other_share >= OTHERS
    other_share = other_share % OTHERS
    inside = other_share < tl.where(selected, count_slc, count_win)
    other_share += tl.where(selected, WINDOW_SPLITS + splits, 0)
    other_columns = load_columns(
        Partial, other_share, inside, column, G, GROUP, DV_END, LANES, OTHER_RUN, DS
    )  # fmt: skip
    # The assembler moves no load past a barrier. Else it asks for the columns when it needs them: after the
    # weights, for which it has waited.
    tl.debug_barrier()
    top = load_top(Cmp_stats, share, share < count, G, GROUP, PART * GROUP)
    lse = tl.load(Denominators + pair.to(tl.int64) * G + head, mask=(head < G) & (tokens > 0), other=0.0)
    other_top = load_top(Stats, other_share, inside, G, GROUP, ROWS)
    other_head = tl.arange(0, ROWS) % GROUP
    place = Stats + other_share * (2 * G) + G + other_head
    total = tl.load(place, mask=inside & (other_head < G), other=0.0)

    weights = tl.exp2(tl.reshape(top, [RUN, LANES, GROUP]) - lse[None, None, :])
    acc = tl.sum(weights[:, :, :, None] * columns, 0)
    for first in range(PART, count, PART):
        there = first + share < count
        columns = load_columns(Cmp, first + share, there, column, G, GROUP, DV_END, LANES, RUN, DS)
        top = load_top(Cmp_stats, first + share, there, G, GROUP, PART * GROUP)
        weights = tl.exp2(tl.reshape(top, [RUN, LANES, GROUP]) - lse[None, None, :])
        acc += tl.sum(weights[:, :, :, None] * columns, 0)
    acc *= gate[None, :, None]
    other_top, total = tl.reshape(other_top, [2, OTHERS, GROUP]), tl.reshape(total, [2, OTHERS, GROUP])
    weights = tl.exp2(other_top - log_sum_exp(other_top, total, 1)[:, None, :])
    weights = tl.reshape(weights * other_gates.to(tl.float32)[:, None, :], [OTHER_RUN, LANES, GROUP])
    acc += tl.sum(weights[:, :, :, None] * other_columns, 0)
    acc = tl.where(tokens > 0, tl.sum(acc, 0), 0.0)  # a row without tokens may have any gates
    place = Out + (pair.to(tl.int64) * G + head[:, None]) * DV_END + column[None, :]
    tl.store(place, acc.to(Out.dtype.element_ty), mask=(head < G)[:, None] & (column < DV_END)[None, :])
