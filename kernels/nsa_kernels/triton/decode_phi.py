"""phi of the block that a new token completes, in shares: what a token's step adds to decode's launches.

In the first launch a program takes a slice of the first weight's rows for all heads of a batch row: these are
outputs of a linear map, or hidden units of an MLP, of which it leaves the share that they have in each
output. The second launch adds the shares up. Scratch holds them as [pair, share, D], float32; the mean and
the linear map leave one share.

The weights are what takes time, so each is read once for a row. The block's last token comes from the call,
not from the cache, which other programs are writing just then.
"""

import triton
import triton.language as tl


@triton.jit
def load_block(
    raw, raw_s, raw_h, new, new_h, pe, head, heads, token, column, BLOCK: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """Elements of a block, with the positional embedding, in float32; 0 where there are none.

    Args:
        raw: At the block's first token and the first head, [tokens, heads, D].
        raw_s: Elements from a token to the next.
        raw_h: Elements from a head to the next.
        new: The block's last token, [heads, D].
        new_h: Elements from a head to the next.
        pe: [BLOCK, D] or None.
        head: Of each element; any shape that goes with those of token and column.
        heads: How many there are.
        token: Of each element, from 0 on.
        column: Of each element.
        BLOCK: l.
        D: Width of a token.
    """
    inside = (head < heads) & (column < D)
    cached, given = raw + head.to(tl.int64) * raw_h + token * raw_s, new + head.to(tl.int64) * new_h
    place = tl.where(token < BLOCK - 1, cached, given) + column
    x = tl.load(place, mask=inside & (token < BLOCK), other=0.0).to(tl.float32)
    if pe is not None:
        inside = (token < BLOCK) & (column < D)
        x += tl.load(pe + token * D + column, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit
def mean_program(
    raw, raw_s, new, pe, shares, BLOCK: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """phi of one head's block, ROWS tokens at a time; the pointers stand at the head."""
    head = tl.zeros([1, 1], dtype=tl.int32)
    column = tl.arange(0, triton.next_power_of_2(D))
    total = tl.zeros([ROWS, triton.next_power_of_2(D)], dtype=tl.float32)
    for first in range(0, BLOCK, ROWS):
        token = (first + tl.arange(0, ROWS))[:, None]
        total += load_block(raw, raw_s, 0, new, 0, pe, head, 1, token, column[None, :], BLOCK, D)
    tl.store(shares + column, tl.sum(total, 0) / BLOCK, mask=column < D)


@triton.jit
def phi_program(
    part, raw, raw_s, raw_h, new, new_h, heads,
    weight, weight_s, bias, weight_out, out_s, bias_out, pe, shares,
    MLP: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, UNITS: tl.constexpr, RUN: tl.constexpr,
    SHARES: tl.constexpr, HP: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One slice of phi of a row's block, for all heads; the pointers stand at the row.

    UNITS rows of the first weight in all; the slice takes RUN times BN of them, BK elements of the block at a
    time.
    """
    output = tl.arange(0, DP)
    head = tl.arange(0, HP)
    dtype: tl.constexpr = raw.dtype.element_ty
    place = shares + head[:, None] * (SHARES * D)
    out = tl.zeros([HP, DP], dtype=tl.float32)
    for step in range(RUN):
        unit = (part * RUN + step) * BN + tl.arange(0, BN)
        real = unit < UNITS
        row = weight + unit.to(tl.int64)[:, None] * weight_s
        acc = tl.zeros([HP, BN], dtype=tl.float32)
        for first in tl.range(0, BLOCK * D, BK, num_stages=STAGES):
            element = first + tl.arange(0, BK)
            inside = real[:, None] & (element < BLOCK * D)[None, :]
            w = tl.load(row + element[None, :], mask=inside, other=0.0)
            token, column = (element // D)[None, :], (element % D)[None, :]
            x = load_block(raw, raw_s, raw_h, new, new_h, pe, head[:, None], heads, token, column, BLOCK, D)
            acc = tl.dot(x.to(dtype), tl.trans(w.to(dtype)), acc, input_precision=PRECISION)
        if bias is not None:
            acc += tl.load(bias + unit, mask=real, other=0.0).to(tl.float32)[None, :]
        if MLP:
            active = 0.5 * acc * (1.0 + tl.erf(acc * 0.7071067811865476))
            inside = (output < D)[:, None] & real[None, :]
            w = tl.load(weight_out + output[:, None] * out_s + unit[None, :], mask=inside, other=0.0)
            out = tl.dot(active.to(dtype), tl.trans(w.to(dtype)), out, input_precision=PRECISION)
        else:
            tl.store(place + unit[None, :], acc, mask=(head < heads)[:, None] & real[None, :])
    if MLP:
        if bias_out is not None:
            wanted = (output < D) & (part == 0)
            out += tl.load(bias_out + output, mask=wanted, other=0.0).to(tl.float32)[None, :]
        inside = (head < heads)[:, None] & (output < D)[None, :]
        tl.store(place + part * D + output[None, :], out, mask=inside)


@triton.jit
def sum_shares(shares, column, D: tl.constexpr, SHARES: tl.constexpr):
    """Columns of phi's result in float32, 0 past D; `shares` stands at the pair."""
    share = tl.arange(0, triton.next_power_of_2(SHARES))
    place = shares + share[:, None] * D + column[None, :]
    return tl.sum(tl.load(place, mask=(share < SHARES)[:, None] & (column < D)[None, :], other=0.0), 0)


@triton.jit
def fresh_key(shares, cos, sin, dtype: tl.constexpr, D: tl.constexpr, SHARES: tl.constexpr):
    """The compressed key [D padded] as the cache holds it, in float32.

    Rounded to `dtype` as it comes from phi, and again after its rotation: of halves, by the rows [D] of the
    tables at which cos and sin stand, or none where these are None.
    """
    column = tl.arange(0, triton.next_power_of_2(D))
    key = sum_shares(shares, column, D, SHARES).to(dtype).to(tl.float32)
    if cos is not None:
        partner = tl.where(column < D // 2, column + D // 2, column - D // 2)
        turned = sum_shares(shares, tl.where(column < D, partner, D), D, SHARES).to(dtype).to(tl.float32)
        turned = tl.where(column < D // 2, -turned, turned)
        c = tl.load(cos + column, mask=column < D, other=0.0).to(tl.float32)
        s = tl.load(sin + column, mask=column < D, other=0.0).to(tl.float32)
        key = (key * c + turned * s).to(dtype).to(tl.float32)
    return key
