"""One step of online softmax, which all branches share: a tile of queries meets a tile of keys."""

import triton
import triton.language as tl

from nsa_kernels.triton.tiles import wide


@triton.jit
def load_rows(pointer, row, stride, MASKED: tl.constexpr, keep, WIDTH: tl.constexpr):
    """Rows [R, WIDTH] of a tensor whose last dimension is contiguous; rows not kept are 0."""
    pointers = pointer + row[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    if MASKED:
        return tl.load(pointers, mask=keep[:, None], other=0.0)
    return tl.load(pointers)


@triton.jit
def attend(
    acc,
    top,
    total,
    q,
    q_rest,
    k,  # pointer to the first key of this head, or a descriptor [B, S, H_kv, DK]
    v,
    stride_k,
    stride_v,
    batch,
    kv_head,
    first,
    limit,
    low,
    high,
    scale_log2,
    BN: tl.constexpr,
    DK: tl.constexpr,
    DR: tl.constexpr,
    DV: tl.constexpr,
    MASKED: tl.constexpr,
    LOW: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds the keys first..first+BN-1 to the running softmax of each row.

    Args:
        acc: Sum of p * v so far [BM, DV].
        top: Largest score so far, in units of log2 [BM]; -inf before the first.
        total: Sum of p so far [BM].
        q: Queries [BM, DK].
        q_rest: Their columns from DK on [BM, DR], if DR.
        k: Keys.
        v: Values.
        stride_k: Elements from one key to the next.
        stride_v: Elements from one value to the next.
        batch: Row of the batch, for descriptors.
        kv_head: KV head, for descriptors.
        first: First key of the tile.
        limit: Keys from here on are never read (they may be NaN), if MASKED.
        low: First key that each row sees [BM], if MASKED and LOW.
        high: Key up to which each row sees, exclusive [BM], if MASKED.
        scale_log2: From q.k to units of log2.

    Returns:
        acc, top, total.
    """
    key = tl.arange(0, BN)
    keep = first + key < limit
    if TMA:
        keys = k.load([batch, first, kv_head, 0]).reshape(BN, DK)
    else:
        k += wide(first) * stride_k
        keys = load_rows(k, key, stride_k, MASKED, keep, DK)
    scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
    if DR:
        rest = load_rows(k + DK, key, stride_k, MASKED, keep, DR)
        scores = tl.dot(q_rest, tl.trans(rest), scores, input_precision=PRECISION)
    if MASKED:
        seen = (first + key)[None, :] < high[:, None]
        if LOW:
            seen = seen & ((first + key)[None, :] >= low[:, None])
        scores = tl.where(seen, scores * scale_log2, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        # A row that has seen nothing yet has no top to subtract: -inf - -inf would be NaN.
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        p = tl.exp2(scores - shift[:, None])
    else:
        new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
        shift = new_top
        p = tl.exp2(scores * scale_log2 - shift[:, None])
    fade = tl.exp2(top - shift)
    total = total * fade + tl.sum(p, 1)
    acc = acc * fade[:, None]
    if TMA:
        values = v.load([batch, first, kv_head, 0]).reshape(BN, DV)
        if MASKED:
            values = tl.where(keep[:, None], values, 0.0)
    else:
        v += wide(first) * stride_v
        values = load_rows(v, key, stride_v, MASKED, keep, DV)
    acc = tl.dot(p.to(values.dtype), values, acc, input_precision=PRECISION)
    return acc, new_top, total


@triton.jit
def finish(acc, top, total):
    """Output [BM, DV] and log-sum-exp [BM] in units of log2; 0 and +inf for rows that saw nothing."""
    some = total > 0
    out = acc / tl.where(some, total, 1.0)[:, None]
    lse = tl.where(some, top + tl.log2(tl.where(some, total, 1.0)), float("inf"))
    return out, lse
