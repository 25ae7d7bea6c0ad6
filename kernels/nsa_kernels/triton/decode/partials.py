"""What the three kernels of decode share: rows of a cache as a tile, one step of a softmax, the merge of
partials.

A partial is what a program makes of its share of a branch's keys: per head the largest score (top), the sum
of 2^(score - top) (total), and the values summed with these weights, not normalised (acc). Scratch holds them
as [pair, share, G, width] and [pair, share, 2, G] (top, then total), float32; a pair is a row of the batch
with a KV head. The shares of a pair are the splits of the window, those of the compressed branch, and the
runs of selected blocks.
"""

import triton
import triton.language as tl


@triton.jit
def row_of(pair, Lengths, kv_heads):
    """Where a program begins: row of the batch and KV head of its pair, both 64-bit, and the row's length."""
    batch = (pair // kv_heads).to(tl.int64)
    tokens = tl.load(Lengths + batch).to(tl.int32)
    return batch, (pair % kv_heads).to(tl.int64), tokens


@triton.jit
def load_rows(base, offsets, seen, FIRST: tl.constexpr, WIDTH: tl.constexpr, END: tl.constexpr):
    """Rows [R, WIDTH] of a cache, columns from FIRST on; 0 where not `seen` [R] and past column END."""
    column = FIRST + tl.arange(0, WIDTH)
    mask = seen[:, None]
    if FIRST + WIDTH > END:
        mask = mask & (column < END)[None, :]
    return tl.load(base + offsets[:, None] + column[None, :], mask=mask, other=0.0)


@triton.jit
def load_query(
    Q, stride, G: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, DK_END: tl.constexpr
):
    """The queries of a group, MAIN [GP, DK] and REST [GP, DR] (MAIN again where there is no rest)."""
    head = tl.arange(0, GP)
    return load_keys(Q, head * stride, head < G, DK, DR, DK_END)


@triton.jit
def load_keys(base, offsets, seen, DK: tl.constexpr, DR: tl.constexpr, DK_END: tl.constexpr):
    """Rows of a cache, MAIN [R, DK] and REST [R, DR] (MAIN again where there is no rest)."""
    k = load_rows(base, offsets, seen, 0, DK, DK_END)
    k_rest = k
    if DR > 0:
        k_rest = load_rows(base, offsets, seen, DK, DR, DK_END)
    return k, k_rest


@triton.jit
def score_keys(
    q, q_rest, k, k_rest, seen, scale_log2, DR: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Scores [GP, R] in units of log2; -inf where not seen, whatever the keys are there."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if DR > 0:
        s = tl.dot(q_rest, tl.trans(k_rest), s, input_precision=PRECISION)
    return tl.where(seen[None, :], s * scale_log2, float("-inf"))


@triton.jit
def scores(
    q,
    q_rest,
    base,
    offsets,
    seen,
    scale_log2,
    DK: tl.constexpr,
    DR: tl.constexpr,
    DK_END: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores [GP, R] in units of log2; -inf where not seen."""
    k, k_rest = load_keys(base, offsets, seen, DK, DR, DK_END)
    return score_keys(q, q_rest, k, k_rest, seen, scale_log2, DR, PRECISION)


@triton.jit
def absorb(s, v, top, total, acc, PRECISION: tl.constexpr):
    """top, total and acc with one tile more. Every row of the first tile must see something."""
    new_top = tl.maximum(top, tl.max(s, 1))
    fade = tl.exp2(top - new_top)
    p = tl.exp2(s - new_top[:, None])
    acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
    return new_top, total * fade + tl.sum(p, 1), acc


@triton.jit
def store_partial(
    Partial, Stats, top, total, acc, G: tl.constexpr, GP: tl.constexpr, DV: tl.constexpr, DV_END: tl.constexpr
):
    """Writes one partial; both pointers stand at its share."""
    head = tl.arange(0, GP)
    column = tl.arange(0, DV)
    tl.store(Stats + head, top, mask=head < G)
    tl.store(Stats + G + head, total, mask=head < G)
    place = Partial + head[:, None] * DV_END + column[None, :]
    tl.store(place, acc, mask=(head < G)[:, None] & (column < DV_END)[None, :])


@triton.jit
def store_pooled(
    Reference, Pooled, tile, top, sums, wanted, G: tl.constexpr, GP: tl.constexpr, BJ: tl.constexpr
):  # fmt: skip
    """Writes what a tile gives to its blocks, sums [GP, BJ], and the top that they refer to, where it is
    wanted; both pointers stand at the pair."""
    head = tl.arange(0, GP)
    block = tl.arange(0, BJ)
    mask = (head < G) & wanted
    tl.store(Reference + tile * G + head, top, mask=mask)
    cell = (tile * G + head[:, None]) * BJ + block[None, :]
    tl.store(Pooled + cell, sums, mask=mask[:, None] & (block < BJ)[None, :])


@triton.jit
def used_tiles(visible, PIECES: tl.constexpr, SHARES: tl.constexpr, BJ: tl.constexpr):
    """Tiles of BJ selection blocks up to the last block that one of `visible` compressed keys overlaps."""
    return tl.where(visible > 0, (visible + SHARES - 2) // PIECES // BJ + 1, 0)


@triton.jit
def used_splits(tiles, tile_run):
    """Programs of the first launch that these tiles keep busy."""
    return (tiles + tile_run - 1) // tile_run


@triton.jit
def load_stats(Stats, count, G: tl.constexpr, GROUP: tl.constexpr, SHARES: tl.constexpr):
    """top and total [SHARES, GROUP] of the first `count` partials; -inf and 0 behind them."""
    share = tl.arange(0, SHARES)
    head = tl.arange(0, GROUP)
    place = Stats + share[:, None] * (2 * G) + head[None, :]
    mask = (share < count)[:, None] & (head < G)[None, :]
    top = tl.load(place, mask=mask, other=float("-inf"))
    return top, tl.load(place + G, mask=mask, other=0.0)


@triton.jit
def log_sum_exp(top, total, AXIS: tl.constexpr):
    """Log2-sum-exp of partials along an axis; +inf where nothing was seen."""
    most = tl.max(top, AXIS)
    most = tl.where(most == float("-inf"), 0.0, most)
    total = tl.sum(total * tl.exp2(top - tl.expand_dims(most, AXIS)), AXIS)
    return tl.where(total > 0, most + tl.log2(tl.where(total > 0, total, 1.0)), float("inf"))
