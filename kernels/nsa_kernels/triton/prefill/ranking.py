"""The n best blocks of a few queries, out of their importances in registers.

Importances lie as [BQ, A, LANES], block row * LANES + lane, a query within one warp: what is counted over a
query then needs no barrier.
"""

import triton
import triton.language as tl

GROUP_ROWS = tl.constexpr(8)
"""Rows of groups in `keep_largest`."""
SPARE = tl.constexpr(1)
"""How many more than needed reach its bound when it leaves the groups for all values."""
DROPS = tl.constexpr(6)
"""Passes in which it lets go the smallest, before it halves the range instead."""


@triton.jit
def count_rows(mask):
    """How many are true for each query: bool [BQ, A, LANES] -> int32 [BQ]."""
    return tl.sum(tl.sum(mask.to(tl.int32), 1), 1)


@triton.jit
def count_from(ranks, least):
    """How many ranks reach the least [BQ], which is not negative: int32 [BQ, A, LANES] -> int32 [BQ]."""
    below = (ranks - least[:, None, None]) >> 31  # -1 or 0, in half the instructions of a comparison
    return ranks.shape[1] * ranks.shape[2] + tl.sum(tl.sum(below, 1), 1)


@triton.jit
def count_and_gap(ranks, least):
    """`count_from`, and how far above `least` the smallest of those is; negative where there is none."""
    above = ranks - least[:, None, None]  # seen without a sign, those below come last
    count = ranks.shape[1] * ranks.shape[2] + tl.sum(tl.sum(above >> 31, 1), 1)
    gap = tl.min(tl.min(above.to(tl.uint32, bitcast=True), 1), 1)
    return count, gap.to(tl.int32, bitcast=True)


@triton.jit
def halve(ranks, low, held, high, need):
    """Three steps of bisection: `held` ranks, at least `need`, reach `low`; fewer reach `high`."""
    for _ in tl.static_range(3):
        middle = low + (high - low) // 2
        reached = count_from(ranks, middle)
        enough = reached >= need
        low = tl.where(enough, middle, low)
        held = tl.where(enough, reached, held)
        high = tl.where(held == need, low + 1, tl.where(enough, high, tl.maximum(middle, low + 1)))
    return low, held, high


@triton.jit
def drop_smallest(ranks, low, top, need):
    """Raises `low` over the smallest of those that reach it, as long as too many do, DROPS passes at most.

    Returns:
        low, held and high as `halve` takes them; high is low + 1 where nothing is left to do.
    """
    held, gap = count_and_gap(ranks, low)
    high = tl.where(held <= need, low + 1, top)
    passes = 0
    while (tl.max(high - low, 0) > 1) & (passes < DROPS):
        passes += 1
        searching = high - low > 1
        beyond = low + gap + 1
        reached, next_gap = count_and_gap(ranks, beyond)
        enough = reached >= need
        low = tl.where(searching, tl.where(enough, beyond, low + gap), low)
        held = tl.where(searching & enough, reached, held)
        gap = tl.where(enough, next_gap, 0)
        high = tl.where(searching & (reached <= need), low + 1, high)
    return low, held, high


@triton.jit
def keep_largest(ranks, index, need, INDEX_BITS: tl.constexpr):
    """The `need` largest non-negative ranks of each query, lower index first among equals.

    The ranks of a query fall into groups (row % GROUP_ROWS, lane). The need-th largest of the groups' maxima
    is reached by at least `need` ranks and, on data without order, by few more. It is searched for among the
    maxima; those too many are then let go one by one, in a pass over all ranks each.

    Args:
        ranks: int32 [BQ, A, LANES], at most 0x7F800000; -1 = never chosen.
        index: Their index [1, A, LANES].
        need: How many to choose, int32 [BQ].
        INDEX_BITS: Bits of the largest index, and one more.

    Returns:
        The ranks, -1 for some that share the last place, and the least that is chosen, int32 [BQ]; fewer than
        `need` reach it where fewer are not negative.
    """
    A: tl.constexpr = ranks.shape[1]
    need = tl.maximum(need, 0)
    groups = ranks
    if A > GROUP_ROWS:
        folded = tl.reshape(ranks, [ranks.shape[0], A // GROUP_ROWS, GROUP_ROWS, ranks.shape[2]])
        groups = tl.max(folded, 1)
    lanes = tl.max(groups, 1)
    top = tl.max(lanes, 1) + 1
    some = lanes >= 0
    low = tl.min(tl.where(some, lanes, 0x7FFFFFFF), 1)  # one in each lane reaches this, if there is any
    low = tl.where(tl.sum(some.to(tl.int32), 1) >= tl.maximum(need, 1), low, 0)
    held = count_from(groups, low)
    high = tl.where(held <= need, low + 1, top)
    if A > GROUP_ROWS:
        for _ in tl.range(0, 2):
            low, held, high = halve(groups, low, held, high, need)
        while tl.max(tl.where(high - low > 1, held - need, 0), 0) > SPARE:
            low, held, high = halve(groups, low, held, high, need)
        low, held, high = drop_smallest(ranks, low, top, need)
    while tl.max(high - low, 0) > 1:
        low, held, high = halve(ranks, low, held, high, need)
    if tl.max(held - need, 0) > 0:  # several share the last place
        tie = ranks == low[:, None, None]
        left = need - (held - count_rows(tie))
        last = tl.zeros_like(low)
        for step in tl.range(0, INDEX_BITS):
            candidate = last | (1 << (INDEX_BITS - 1 - step))
            fits = count_rows((ranks == low[:, None, None]) & (index < candidate[:, None, None])) <= left
            last = tl.where(fits, candidate, last)
        ranks = tl.where((ranks == low[:, None, None]) & (index >= last[:, None, None]), -1, ranks)
    return ranks, low


@triton.jit
def count_bits(word):
    """Ones among the lowest 16 bits of each element."""
    word = word - ((word >> 1) & 0x5555)
    word = (word & 0x3333) + ((word >> 2) & 0x3333)
    word = (word + (word >> 4)) & 0x0F0F
    return (word + (word >> 8)) & 0x1F


@triton.jit
def list_chosen(
    target, exists, ranks, least, own, forced,
    BQ: tl.constexpr, RANKED: tl.constexpr, LANES: tl.constexpr, BITS: tl.constexpr,
    COUNT: tl.constexpr, COUNT_P: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Writes each query's blocks in ascending order: those whose rank is `least` or more, and the forced.

    Args:
        target: Where its list begins [BQ, 1].
        exists: Whether there is such a query [BQ, 1].
        ranks: int32 [BQ, RANKED, LANES], of block row * LANES + lane.
        least: int32 [BQ].
        own: The block that the query stands in [BQ].
        forced: How many of block 0, own - 1 and own there are [BQ].
        BITS: Blocks to a word, 16 at most.
        AT_ONCE: Slots that are compared with all others at a time.
    """
    # In each lane BITS blocks to a word. Lane by lane the blocks are written down, lowest first; then each is
    # moved to its place among them.
    bit = tl.arange(0, BITS)
    picked = tl.reshape(ranks >= least[:, None, None], [BQ, RANKED // BITS, BITS, LANES])
    words = tl.sum(tl.where(picked, 1 << bit[None, None, :, None], 0), 2)
    word = tl.arange(0, RANKED // BITS)[None, :, None] * (BITS * LANES) + tl.arange(0, LANES)[None, None, :]
    counts = tl.sum(count_bits(words), 1)
    place = tl.cumsum(counts, 1) - counts
    chosen = tl.sum(counts, 1)[:, None]
    for _ in tl.range(0, tl.max(tl.max(counts, 1), 0)):
        lowest = words & -words
        # A power of 2 as a float carries its logarithm in the exponent.
        position_in_word = (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
        candidate = tl.where(words != 0, word + position_in_word * LANES, 0x7FFFFFFF)
        lowest_block = tl.min(candidate, 1)
        some = lowest_block != 0x7FFFFFFF
        tl.store(target + place, lowest_block, mask=some & exists)
        place += some.to(tl.int32)
        words = tl.where(candidate == lowest_block[:, None, :], words ^ lowest, words)
    tl.debug_barrier()
    slot = tl.arange(0, COUNT_P)[None, :]
    result = tl.load(target + slot, mask=(slot < chosen) & exists, other=0)
    smaller = tl.zeros([BQ, COUNT_P], tl.int32)
    for begin in tl.static_range(0, COUNT_P, AT_ONCE):
        other = begin + tl.arange(0, AT_ONCE)[None, :]
        others = tl.load(target + other, mask=(other < chosen) & exists, other=0x7FFFFFFF)
        smaller += tl.sum((others[:, None, :] < result[:, :, None]).to(tl.int32), 2)
    tl.debug_barrier()  # all have read what is now written over
    # Block 0 comes first, the two before the query last; behind them -1 in the slots that are left.
    forced = forced[:, None]
    extra = slot - chosen
    place = tl.where(extra < 0, 1 + smaller, tl.where(extra == 0, 0, slot))
    result = tl.where(extra < 0, result, tl.where(extra == 0, 0, own[:, None] - (forced - 1 - extra)))
    result = tl.where(extra < forced, result, -1)
    place = tl.where(extra < forced, place, slot)
    tl.store(target + place, result, mask=(slot < COUNT) & exists)
