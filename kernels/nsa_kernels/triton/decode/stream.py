"""The compressed branch of decode's first launch where there is much to read: many rows, or long ones.

What `score` makes of a tile, made of one tile after the other. The key before a tile, which the tile's
first block overlaps too, is the last of the tile before, so that none has a halo; and the next tiles are on
their way in bulk copies while one is worked on.
"""

import triton
import triton.language as tl

from nsa_kernels.triton.decode.partials import load_keys, load_rows, score_keys, store_pooled
from nsa_kernels.triton.tiles import wide


@triton.jit
def stream_tiles(
    begin, end, visible, q, q_rest, K_cmp, V_cmp, stride_kcc, stride_vcc, K_bulk, V_bulk, batch, kv_head,
    Reference, Pooled, scale_log2,
    G: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, DK_END: tl.constexpr,
    DV: tl.constexpr, DV_END: tl.constexpr, PIECES: tl.constexpr, BJ: tl.constexpr, SHARES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """top, total and acc of the tiles from `begin` to `end`; as `score_tile` it leaves the importances that
    they give.

    Args:
        begin: First tile.
        end: Behind the last. Each has a visible key, or stands behind one that counts for its first block.
        visible: Keys that are there.
        K_cmp: Keys of the row and head.
        V_cmp: Values.
        K_bulk: Descriptor of all keys [B, S', H_kv, DK], from which tiles are copied, or None.
        V_bulk: Of all values.
        Reference: At the pair.
        Pooled: At the pair.
    """
    top, carry = _key_before(
        begin * (BJ * PIECES), visible, q, q_rest, K_cmp, stride_kcc, scale_log2, DK, DR, DK_END, GP, SHARES
    )  # fmt: skip
    total = tl.zeros([GP], dtype=tl.float32)
    acc = tl.zeros([GP, DV], dtype=tl.float32)
    whole = tl.maximum(tl.minimum(visible // (BJ * PIECES), end), begin)
    for tile in range(begin, whole):
        top, total, acc, carry = _stream_tile(
            tile, visible, q, q_rest, K_cmp, V_cmp, stride_kcc, stride_vcc, K_bulk, V_bulk, batch, kv_head,
            Reference, Pooled, top, total, acc, carry, scale_log2,
            G, GP, DK, DR, DK_END, DV, DV_END, PIECES, BJ, SHARES, False, PRECISION,
        )  # fmt: skip
    for tile in tl.range(whole, end, num_stages=1):
        top, total, acc, carry = _stream_tile(
            tile, visible, q, q_rest, K_cmp, V_cmp, stride_kcc, stride_vcc, K_bulk, V_bulk, batch, kv_head,
            Reference, Pooled, top, total, acc, carry, scale_log2,
            G, GP, DK, DR, DK_END, DV, DV_END, PIECES, BJ, SHARES, True, PRECISION,
        )  # fmt: skip
    return top, total, acc


@triton.jit
def _key_before(
    start, visible, q, q_rest, K_cmp, stride_kcc, scale_log2, DK: tl.constexpr, DR: tl.constexpr,
    DK_END: tl.constexpr, GP: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """The score [GP] of the key before `start`, -inf where there is none, and 2 to it less itself: 1 or 0."""
    s = tl.full([GP], float("-inf"), tl.float32)
    if SHARES > 1:
        there = (start > 0) & (start <= visible)
        place = K_cmp + wide(start - 1) * stride_kcc
        column = tl.arange(0, DK)
        key = tl.load(place + column, mask=there & (column < DK_END), other=0.0).to(tl.float32)
        s = tl.sum(q.to(tl.float32) * key[None, :], 1)
        if DR > 0:
            column = DK + tl.arange(0, DR)
            key = tl.load(place + column, mask=there & (column < DK_END), other=0.0).to(tl.float32)
            s += tl.sum(q_rest.to(tl.float32) * key[None, :], 1)
        s = tl.where(there, s * scale_log2, float("-inf"))
    return s, tl.where(s > float("-inf"), 1.0, 0.0)


@triton.jit
def _stream_tile(
    tile, visible, q, q_rest, K_cmp, V_cmp, stride_kcc, stride_vcc, K_bulk, V_bulk, batch, kv_head,
    Reference, Pooled, top, total, acc, carry, scale_log2,
    G: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, DK_END: tl.constexpr,
    DV: tl.constexpr, DV_END: tl.constexpr, PIECES: tl.constexpr, BJ: tl.constexpr, SHARES: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile joins top, total and acc.

    `carry` [GP] is 2^(score - top) of the key before it, and becomes that of its last key.
    """
    KEYS: tl.constexpr = BJ * PIECES
    start = tile * KEYS
    index = tl.arange(0, KEYS)
    seen = start + index < visible
    if K_bulk is not None:
        k = K_bulk.load([batch, start, kv_head, 0]).reshape(KEYS, DK)
        k_rest = k
        v = V_bulk.load([batch, start, kv_head, 0]).reshape(KEYS, DV)
        if MASKED:
            v = tl.where(seen[:, None], v, 0.0)
    else:
        k, k_rest = load_keys(K_cmp + wide(start) * stride_kcc, index * stride_kcc, seen, DK, DR, DK_END)
        v = load_rows(V_cmp + wide(start) * stride_vcc, index * stride_vcc, seen, 0, DV, DV_END)
    if MASKED:
        s = score_keys(q, q_rest, k, k_rest, seen, scale_log2, DR, PRECISION)
        new_top = tl.maximum(tl.max(s, 1), top)
        p = tl.exp2(s - new_top[:, None])
    else:
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if DR > 0:
            s = tl.dot(q_rest, tl.trans(k_rest), s, input_precision=PRECISION)
        new_top = tl.maximum(tl.max(s, 1) * scale_log2, top)
        p = tl.exp2(s * scale_log2 - new_top[:, None])
    fade = tl.exp2(top - new_top)
    acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
    total = total * fade + tl.sum(p, 1)

    block = tl.arange(0, BJ)
    piece = tl.arange(0, PIECES)
    p = tl.reshape(p, [GP, BJ, PIECES])
    times = tl.minimum(PIECES - piece, SHARES).to(tl.float32)
    sums = tl.sum(p * times[None, None, :], 2)
    if SHARES > 1:
        last = tl.sum(tl.where(piece[None, None, :] == PIECES - 1, p, 0.0), 2)
        before = tl.maximum(block - 1, 0)[None, :] + tl.zeros([GP, BJ], tl.int32)
        sums += tl.where(block[None, :] == 0, (carry * fade)[:, None], tl.gather(last, before, 1))
        carry = tl.sum(tl.where(block[None, :] == BJ - 1, last, 0.0), 1)
    store_pooled(Reference, Pooled, tile, new_top, sums, True, G, GP, BJ)
    return new_top, total, acc, carry
