"""What the three kernels of decode share: rows of a cache as a tile, one step of a softmax, the merge of
partials.

A partial is what a program makes of its share of a branch's keys: per head the largest score m, the sum l of
2^(score - m), and the values summed with these weights, not normalised. Scratch holds them as
[pair, share, G, width] and [pair, share, 2, G] (m, then l), float32; a pair is a row of the batch with a KV
head. The shares of a pair are the splits of the window, those of the compressed branch, and the runs of
selected blocks.
"""

import triton
import triton.language as tl


@triton.jit
def row_of(pair, lengths, kv_heads):
    """Where a program begins: row of the batch and KV head of its pair, both 64-bit, and the row's length."""
    batch = (pair // kv_heads).to(tl.int64)
    tokens = tl.load(lengths + batch).to(tl.int32)
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
    q, stride, G: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, DK_END: tl.constexpr
):
    """The queries of a group, MAIN [GP, DK] and REST [GP, DR] (MAIN again where there is no rest)."""
    head = tl.arange(0, GP)
    return load_keys(q, head * stride, head < G, DK, DR, DK_END)


@triton.jit
def load_keys(base, offsets, seen, DK: tl.constexpr, DR: tl.constexpr, DK_END: tl.constexpr):
    """Rows of a cache, MAIN [R, DK] and REST [R, DR] (MAIN again where there is no rest)."""
    keys = load_rows(base, offsets, seen, 0, DK, DK_END)
    rest = keys
    if DR > 0:
        rest = load_rows(base, offsets, seen, DK, DR, DK_END)
    return keys, rest


@triton.jit
def score_keys(
    query, query_rest, keys, rest, seen, scale_log2, DR: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Scores [GP, R] in units of log2; -inf where not seen, whatever the keys are there."""
    s = tl.dot(query, tl.trans(keys), input_precision=PRECISION)
    if DR > 0:
        s = tl.dot(query_rest, tl.trans(rest), s, input_precision=PRECISION)
    return tl.where(seen[None, :], s * scale_log2, float("-inf"))


@triton.jit
def scores(
    query,
    query_rest,
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
    keys, rest = load_keys(base, offsets, seen, DK, DR, DK_END)
    return score_keys(query, query_rest, keys, rest, seen, scale_log2, DR, PRECISION)


@triton.jit
def absorb(s, values, m, total, acc, PRECISION: tl.constexpr):
    """m, total and acc with one tile more. Every row of the first tile must see something."""
    top = tl.maximum(m, tl.max(s, 1))
    decay = tl.exp2(m - top)
    p = tl.exp2(s - top[:, None])
    acc = tl.dot(p.to(values.dtype), values, acc * decay[:, None], input_precision=PRECISION)
    return top, total * decay + tl.sum(p, 1), acc


@triton.jit
def store_partial(
    partial, stats, m, total, acc, G: tl.constexpr, GP: tl.constexpr, DV: tl.constexpr, DV_END: tl.constexpr
):
    """Writes one partial; both pointers stand at its share."""
    head = tl.arange(0, GP)
    column = tl.arange(0, DV)
    tl.store(stats + head, m, mask=head < G)
    tl.store(stats + G + head, total, mask=head < G)
    place = partial + head[:, None] * DV_END + column[None, :]
    tl.store(place, acc, mask=(head < G)[:, None] & (column < DV_END)[None, :])


@triton.jit
def store_pooled(
    reference, pooled, tile, m, sums, wanted, G: tl.constexpr, GP: tl.constexpr, BJ: tl.constexpr
):  # fmt: skip
    """Writes what a tile gives to its blocks, sums [GP, BJ], and the m that they refer to, where it is
    wanted; both pointers stand at the pair."""
    head = tl.arange(0, GP)
    block = tl.arange(0, BJ)
    mask = (head < G) & wanted
    tl.store(reference + tile * G + head, m, mask=mask)
    cell = (tile * G + head[:, None]) * BJ + block[None, :]
    tl.store(pooled + cell, sums, mask=mask[:, None] & (block < BJ)[None, :])


@triton.jit
def used_tiles(visible, PIECES: tl.constexpr, SHARES: tl.constexpr, BJ: tl.constexpr):
    """Tiles of BJ selection blocks up to the last block that one of `visible` compressed keys overlaps."""
    return tl.where(visible > 0, (visible + SHARES - 2) // PIECES // BJ + 1, 0)


@triton.jit
def used_splits(tiles, tile_run):
    """Programs of the first launch that these tiles keep busy."""
    return (tiles + tile_run - 1) // tile_run


@triton.jit
def load_stats(stats, count, G: tl.constexpr, GROUP: tl.constexpr, SHARES: tl.constexpr):
    """m and l [SHARES, GROUP] of the first `count` partials; -inf and 0 behind them."""
    share = tl.arange(0, SHARES)
    head = tl.arange(0, GROUP)
    place = stats + share[:, None] * (2 * G) + head[None, :]
    mask = (share < count)[:, None] & (head < G)[None, :]
    m = tl.load(place, mask=mask, other=float("-inf"))
    return m, tl.load(place + G, mask=mask, other=0.0)


@triton.jit
def log_sum_exp(m, total, AXIS: tl.constexpr):
    """Log2-sum-exp of partials along an axis; +inf where nothing was seen."""
    top = tl.max(m, AXIS)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(total * tl.exp2(m - tl.expand_dims(top, AXIS)), AXIS)
    return tl.where(total > 0, top + tl.log2(tl.where(total > 0, total, 1.0)), float("inf"))
