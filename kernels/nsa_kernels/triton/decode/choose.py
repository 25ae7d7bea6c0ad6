"""The n best selection blocks of a pair, found by one program alone: importance of all blocks, a bound
between the chosen and the rest, the chosen in ascending order.

Every program of the second launch does this for itself: what it reads comes out of the L2 cache, and nobody
waits for anybody.
"""

import triton
import triton.language as tl

from nsa_kernels.triton.decode.partials import load_stats, log_sum_exp

FORCED = tl.constexpr(3)
"""Blocks that are chosen whatever their importance: the first, the token's own and the one before."""


@triton.jit
def load_pooled(
    Reference, Pooled, first, count,
    G: tl.constexpr, GROUP: tl.constexpr, BJ: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """What the tiles from `first` on gave to their blocks; nothing from `count` on.

    The sums are loaded in two axes, heads and blocks: the compiler deals the blocks to threads, and leaves
    all heads of a block to one, so that the sum over a group needs no shuffle.

    Returns:
        The top that the sums refer to [GROUP, TILES], and the sums [GROUP, TILES, BJ].
    """
    head = tl.arange(0, GROUP)[:, None]
    tile = first + tl.arange(0, TILES)[None, :]
    top = tl.load(Reference + tile * G + head, mask=(head < G) & (tile < count), other=float("-inf"))
    block = tl.arange(0, TILES * BJ)[None, :]
    tile = first + block // BJ
    place = Pooled + (tile * G + head) * BJ + block % BJ
    sums = tl.load(place, mask=(head < G) & (tile < count), other=0.0)
    return top, tl.reshape(sums, [GROUP, TILES, BJ])


@triton.jit
def rank_tiles(
    Ranked, top, sums, lse, first, tiles, BJ: tl.constexpr, TILES: tl.constexpr
):  # fmt: skip
    """Writes the importance of the blocks of the tiles from `first` on."""
    block = (first + tl.arange(0, TILES))[:, None] * BJ + tl.arange(0, BJ)[None, :]
    importance = tl.sum(sums * tl.exp2(top - lse[:, None])[:, :, None], 0)
    importance = tl.maximum(importance, 0.0)
    tl.store(Ranked + block, importance.to(tl.int32, bitcast=True), mask=block < tiles * BJ)


@triton.jit
def importances(
    Ranked, Stats, Reference, Pooled, splits, tiles, G: tl.constexpr, GROUP: tl.constexpr, BJ: tl.constexpr,
    SPLITS: tl.constexpr, TILES: tl.constexpr, PIECEWISE: tl.constexpr,
):  # fmt: skip
    """Writes the importance of the blocks to `ranked`, as the bits of a float >= 0.

    The first launch has left `splits` partials and `tiles` tiles.

    Returns:
        The compressed branch's log2-sum-exp [GROUP].
    """
    top, sums = load_pooled(Reference, Pooled, 0, tiles, G, GROUP, BJ, TILES)
    # The assembler moves no load past a barrier. Else it asks for the sums when it needs them: after the
    # denominators, for which it has waited.
    tl.debug_barrier()
    top_split, total = load_stats(Stats, splits, G, GROUP, SPLITS)
    lse = log_sum_exp(top_split, total, 0)
    rank_tiles(Ranked, top, sums, lse, 0, tiles, BJ, TILES)
    if PIECEWISE:
        for first in range(TILES, tiles, TILES):
            top, sums = load_pooled(Reference, Pooled, first, tiles, G, GROUP, BJ, TILES)
            rank_tiles(Ranked, top, sums, lse, first, tiles, BJ, TILES)
    return lse


@triton.jit
def bounds(bits, need, many, NB: tl.constexpr, GROUPS: tl.constexpr, WAYS: tl.constexpr, WIDTH: tl.constexpr):
    """A bound between the `need` largest and the rest.

    Bisection, WAYS bounds at a time: their counts pass between the warps as one number, WIDTH bits each. It
    begins between the least and the largest of the maxima of GROUPS >= need interleaved groups, and ends as
    soon as a bound leaves exactly `need`.

    Args:
        bits: int32 [NB]; negative = takes no part.
        need: How many.
        many: Whether more than `need` take part; else all of them are taken.

    Returns:
        low, high, and how many are >= high: all of these are taken, of those from low to high the first, up
        to `need` in all. High is low + 1 unless all of these are taken.
    """
    top = tl.max(tl.reshape(bits, [NB // GROUPS, GROUPS]), 0)
    low = tl.where(many, tl.maximum(tl.min(top, 0), 0), 0)
    high = tl.maximum(tl.max(top, 0), 0) + 1
    above = tl.full([], 0, tl.int32)
    left = tl.where(many, need + 1, 0)  # how many are >= low: not counted yet, but too many for all we know
    while (left > need) & (high - low > 1):
        step = (high - low + WAYS) // (WAYS + 1)
        packed = tl.zeros([NB], dtype=tl.int32)
        for way in tl.static_range(WAYS):
            packed += (bits >= low + step * (way + 1)).to(tl.int32) << (WIDTH * way)
        packed = tl.sum(packed, 0)
        base = low
        for way in tl.static_range(WAYS):
            count = (packed >> (WIDTH * way)) & ((1 << WIDTH) - 1)
            bound = base + step * (way + 1)
            fewer = count < need
            # Ascending: the last that leaves enough, and the first that leaves too few.
            above = tl.where(fewer & (bound < high), count, above)
            high = tl.where(fewer & (bound < high), bound, high)
            left = tl.where(fewer, left, count)
            low = tl.where(fewer, low, bound)
    return low, high, above


@triton.jit
def choose(
    Ranked, written, own,
    COUNT: tl.constexpr, NB: tl.constexpr, GROUPS: tl.constexpr, WAYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The slot of each block [NB], -1 where it is not chosen; among equals the lower index is.

    Args:
        ranked: Bits of the importance of each block.
        written: How many blocks have one there; that of the others is 0.
        own: The last block.
        COUNT: n.
        NB: Blocks, padded.
        GROUPS: As in `bounds`.
        WAYS: As in `bounds`.
        WIDTH: As in `bounds`.
    """
    block = tl.arange(0, NB)
    # Past L1, which may hold what stood here before.
    bits = tl.load(Ranked + block, mask=block < written, other=0, cache_modifier=".cg")
    forced = ((block == 0) | (block >= own - 1)) & (block <= own)
    bits = tl.where(forced | (block > own), -1, bits)
    many = own >= COUNT
    low, high, above = bounds(bits, COUNT - FORCED, many, NB, GROUPS, WAYS, WIDTH)
    need = tl.where(many, COUNT - FORCED - above, NB)
    sure = forced | (bits >= high)
    perhaps = (bits >= low) & (bits < high)
    # One scan for both: what is sure in the low half.
    if NB < 32768:
        scanned = tl.cumsum(sure.to(tl.int32) + (perhaps.to(tl.int32) << 16), 0)
        before, rank = scanned & 0xFFFF, scanned >> 16
    else:
        before, rank = tl.cumsum(sure.to(tl.int32), 0), tl.cumsum(perhaps.to(tl.int32), 0)
    slot = before + tl.minimum(rank, need) - 1
    return tl.where((sure | (perhaps & (rank <= need))) & (slot < COUNT), slot, -1)
