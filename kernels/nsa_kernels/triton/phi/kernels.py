"""The kernels of block compression.

The mean reads each token once: a program walks over the pieces of d tokens of one head and keeps the sums of
the l/d blocks that are open. The linear map is one matrix product whose rows are the blocks of all heads,
gathered token by token; the MLP adds its second product to that. Sums are float32, and the hidden units of
the MLP are not rounded before the GELU.
"""

import triton
import triton.language as tl

from nsa_kernels.triton.tiles import wide


@triton.jit(do_not_specialize=("count",))
def mean_forward_kernel(
    X, Offset, Out, stride_xb, stride_xs, stride_xh, stride_ob, stride_oc, stride_oh, count, kv_heads,
    BLOCK: tl.constexpr, STRIDE: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr,
    OPEN: tl.constexpr, PIECES: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """PIECES neighbouring blocks of one head: a walk over their pieces, at most l/d blocks being open."""
    first = tl.program_id(0) * PIECES
    batch, kv_head = tl.program_id(1) // kv_heads, tl.program_id(1) % kv_heads
    shares: tl.constexpr = BLOCK // STRIDE
    column = tl.arange(0, DP)
    token = tl.arange(0, ROWS)
    slot = tl.arange(0, OPEN)
    inside = column < D
    x = X + wide(batch) * stride_xb + wide(kv_head) * stride_xh + wide(first) * STRIDE * stride_xs
    out = Out + wide(batch) * stride_ob + wide(kv_head) * stride_oh + wide(first) * stride_oc
    offset = tl.zeros([DP], tl.float32)
    if OFFSET:
        offset = tl.load(Offset + column, mask=inside, other=0).to(tl.float32)
    sums = tl.zeros([OPEN, DP], tl.float32)
    for piece in range(PIECES + shares - 1):
        total = tl.zeros([DP], tl.float32)
        real = first + piece < count + shares - 1
        for start in tl.static_range(0, STRIDE, ROWS):
            at = x + (start + token)[:, None] * stride_xs + column[None, :]
            keep = (start + token < STRIDE)[:, None] & inside[None, :] & real
            total += tl.sum(tl.load(at, mask=keep, other=0).to(tl.float32), 0)
        x += STRIDE * stride_xs
        sums += total[None, :]
        # The block that began shares - 1 pieces ago is complete; its slot is free for the next.
        closing = (slot == (piece + 1) % shares)[:, None]
        done = piece - (shares - 1)
        if done >= 0:
            mean = tl.sum(tl.where(closing, sums, 0.0), 0) / BLOCK + offset
            wanted = inside & (first + done < count)
            tl.store(out + done * stride_oc + column, mean.to(Out.dtype.element_ty), mask=wanted)
        sums = tl.where(closing, 0.0, sums)


@triton.jit
def mean_backward_kernel(
    Dout, Dx, stride_ob, stride_oc, stride_oh, stride_xb, stride_xs, stride_xh, count, length, kv_heads,
    BLOCK: tl.constexpr, STRIDE: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """All tokens of a piece get the same: the mean's share of each of the l/d blocks that cover the piece."""
    first = tl.program_id(0) * PIECES
    batch, kv_head = tl.program_id(1) // kv_heads, tl.program_id(1) % kv_heads
    shares: tl.constexpr = BLOCK // STRIDE
    column = tl.arange(0, DP)
    piece = tl.arange(0, PIECES)
    inside = (column < D)[None, :]
    dout = Dout + wide(batch) * stride_ob + wide(kv_head) * stride_oh + wide(first) * stride_oc
    total = tl.zeros([PIECES, DP], tl.float32)
    for r in tl.static_range(shares):
        block = first + piece - r
        keep = ((block >= 0) & (block < count))[:, None] & inside
        at = dout + (piece - r)[:, None] * stride_oc + column[None, :]
        total += tl.load(at, mask=keep, other=0).to(tl.float32)
    gradient = (total / BLOCK).to(Dx.dtype.element_ty)
    dx = Dx + wide(batch) * stride_xb + wide(kv_head) * stride_xh + wide(first) * STRIDE * stride_xs
    for token in range(STRIDE):
        keep = ((first + piece) * STRIDE + token < length)[:, None] & inside
        tl.store(dx + (piece * STRIDE + token)[:, None] * stride_xs + column[None, :], gradient, mask=keep)


@triton.jit
def _blocks_times_weight(
    acc, x, keep, W, column, stride_xs, stride_wn, stride_wk, out_width,
    BLOCK: tl.constexpr, D: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds W[column] applied to the blocks that begin at the pointers `x`, BK elements at a time."""
    parts: tl.constexpr = (D + BK - 1) // BK
    k = tl.arange(0, BK)
    w = W + column[None, :].to(tl.int64) * stride_wn
    for step in range(BLOCK * parts):
        token = step // parts
        place = (step % parts) * BK + k
        tile_keep = keep[:, None]
        weight_keep = (column < out_width)[None, :]
        if not EVEN:
            tile_keep = tile_keep & (place < D)[None, :]
            weight_keep = weight_keep & (place < D)[:, None]
        tile = tl.load(x[:, None] + token * stride_xs + place[None, :], mask=tile_keep, other=0)
        weight = tl.load(w + (token * D + place)[:, None] * stride_wk, mask=weight_keep, other=0)
        acc = tl.dot(tile, weight, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _block_pointers(X, index, rows, stride_xb, stride_xs, stride_xh, count, kv_heads, STRIDE: tl.constexpr):
    """Where the blocks of rows `index` begin; row = (batch * C + block) * H_kv + head."""
    index = tl.minimum(index, rows - 1).to(tl.int64)
    kv_head = index % kv_heads
    block = (index // kv_heads) % count
    return X + index // kv_heads // count * stride_xb + block * STRIDE * stride_xs + kv_head * stride_xh


@triton.jit(do_not_specialize=("rows",), do_not_specialize_on_alignment=("count",))
def linear_forward_kernel(
    X, W, Offset, Out, stride_xb, stride_xs, stride_xh, stride_wn, stride_wk, rows, count, kv_heads,
    out_width, BLOCK: tl.constexpr, STRIDE: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, OFFSET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One matrix product: a row is a block of a head, l*D wide."""
    index = wide(tl.program_id(0)) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    keep = index < rows
    x = _block_pointers(X, index, rows, stride_xb, stride_xs, stride_xh, count, kv_heads, STRIDE)
    acc = _blocks_times_weight(
        tl.zeros([BM, BN], tl.float32), x, keep, W, column, stride_xs, stride_wn, stride_wk, out_width,
        BLOCK, D, BK, D % BK == 0, PRECISION,
    )  # fmt: skip
    real = column < out_width
    if OFFSET:
        acc += tl.load(Offset + column, mask=real, other=0).to(tl.float32)[None, :]
    at = Out + index[:, None] * out_width + column[None, :]
    tl.store(at, acc.to(Out.dtype.element_ty), mask=keep[:, None] & real[None, :])


@triton.jit(do_not_specialize=("rows",), do_not_specialize_on_alignment=("count",))
def mlp_forward_kernel(
    X, W, Offset, W2, Bias, Out, stride_xb, stride_xs, stride_xh, stride_wn, stride_wk, stride_vn, stride_vk,
    rows, count, kv_heads, out_width,
    BLOCK: tl.constexpr, STRIDE: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, DO: tl.constexpr, OFFSET: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """BN hidden units at a time go through GELU into the second product, and never to memory."""
    index = wide(tl.program_id(0)) * BM + tl.arange(0, BM)
    keep = index < rows
    x = _block_pointers(X, index, rows, stride_xb, stride_xs, stride_xh, count, kv_heads, STRIDE)
    out_column = tl.arange(0, DO)
    real = out_column < out_width
    out = tl.zeros([BM, DO], tl.float32)
    if BIAS:
        out += tl.load(Bias + out_column, mask=real, other=0).to(tl.float32)[None, :]
    for begin in range(0, HIDDEN, BN):
        unit = begin + tl.arange(0, BN)
        acc = _blocks_times_weight(
            tl.zeros([BM, BN], tl.float32), x, keep, W, unit, stride_xs, stride_wn, stride_wk, HIDDEN,
            BLOCK, D, BK, D % BK == 0, PRECISION,
        )  # fmt: skip
        if OFFSET:
            acc += tl.load(Offset + unit, mask=unit < HIDDEN, other=0).to(tl.float32)[None, :]
        active = 0.5 * acc * (1.0 + tl.erf(acc * 0.7071067811865476))
        at = W2 + unit[:, None].to(tl.int64) * stride_vk + out_column[None, :] * stride_vn
        weight = tl.load(at, mask=(unit < HIDDEN)[:, None] & real[None, :], other=0)
        out = tl.dot(active.to(weight.dtype), weight, out, input_precision=PRECISION)
    at = Out + index[:, None] * out_width + out_column[None, :]
    tl.store(at, out.to(Out.dtype.element_ty), mask=keep[:, None] & real[None, :])
