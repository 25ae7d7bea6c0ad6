"""phi of the block that a new token completes, in shares: what a token's step adds to decode's launches.

In the first launch each program takes some rows of the first weight: these are outputs of a linear map, or
hidden units of an MLP, of which it leaves the share that they have in each output. The second launch adds the
shares up. Scratch holds them as [pair, share, D], float32; the mean and the linear map leave one share.

A block is one vector here, so that these are products of a matrix and a vector: they wait for the weights,
and need no tensor cores. The block's last token comes from the call, not from the cache, which other programs
are writing just then.
"""

import triton
import triton.language as tl


@triton.jit
def completes(tokens, BLOCK: tl.constexpr, STRIDE: tl.constexpr):
    """Whether the last of `tokens` tokens completes a block."""
    return (tokens >= BLOCK) & ((tokens - BLOCK) % STRIDE == 0)


@triton.jit
def load_block(
    raw, raw_s, new, pe, token, column, inside, BLOCK: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """Elements of a block, with the positional embedding, in float32; 0 where not `inside`.

    Args:
        raw: At the block's first token, [tokens, D].
        raw_s: Elements from a token to the next.
        new: The block's last token [D].
        pe: [BLOCK, D] or None.
        token: Of each element; any shape.
        column: Of each element; the same shape.
        inside: Which elements there are.
        BLOCK: l.
        D: Width of a token.
    """
    x = tl.load(raw + token * raw_s + column, mask=inside & (token < BLOCK - 1), other=0.0)
    x = x.to(tl.float32)
    x += tl.load(new + column, mask=inside & (token == BLOCK - 1), other=0.0).to(tl.float32)
    if pe is not None:
        x += tl.load(pe + token * D + column, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit
def phi_program(
    part, raw, raw_s, new, weight, weight_s, bias, weight_out, out_s, bias_out, pe, shares,
    KIND: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, UNITS: tl.constexpr, RUN: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One part of phi of one block; `raw` stands at its first token, `shares` at the pair.

    UNITS rows of the first weight in all; the part takes RUN times BN of them, BK elements of the block at a
    time. The mean is one part, and takes ROWS tokens at a time.
    """
    DP: tl.constexpr = triton.next_power_of_2(D)
    output = tl.arange(0, DP)
    if KIND == "mean":
        total = tl.zeros([ROWS, DP], dtype=tl.float32)
        for first in range(0, BLOCK, ROWS):
            token = (first + tl.arange(0, ROWS))[:, None]
            inside = (token < BLOCK) & (output < D)[None, :]
            total += load_block(raw, raw_s, new, pe, token, output[None, :], inside, BLOCK, D)
        tl.store(shares + output, tl.sum(total, 0) / BLOCK, mask=output < D)
    else:
        out = tl.zeros([DP], dtype=tl.float32)
        for step in range(RUN):
            unit = (part * RUN + step) * BN + tl.arange(0, BN)
            real = unit < UNITS
            row = weight + unit.to(tl.int64)[:, None] * weight_s
            acc = tl.zeros([BN, BK], dtype=tl.float32)
            for first in range(0, BLOCK * D, BK):
                element = first + tl.arange(0, BK)
                inside = element < BLOCK * D
                w = tl.load(row + element[None, :], mask=real[:, None] & inside[None, :], other=0.0)
                x = load_block(raw, raw_s, new, pe, element // D, element % D, inside, BLOCK, D)
                acc += w.to(tl.float32) * x[None, :]
            value = tl.sum(acc, 1)
            if bias is not None:
                value += tl.load(bias + unit, mask=real, other=0.0).to(tl.float32)
            if KIND == "linear":
                tl.store(shares + unit, value, mask=real)
            else:
                value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
                place = weight_out + output[:, None] * out_s + unit[None, :]
                w = tl.load(place, mask=(output < D)[:, None] & real[None, :], other=0.0)
                out += tl.sum(w.to(tl.float32) * value[None, :], 1)
        if KIND == "mlp":
            if bias_out is not None:
                wanted = (output < D) & (part == 0)
                out += tl.load(bias_out + output, mask=wanted, other=0.0).to(tl.float32)
            tl.store(shares + part * D + output, out, mask=output < D)


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
