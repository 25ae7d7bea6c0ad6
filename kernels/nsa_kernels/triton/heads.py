"""Norm and rotation of heads in one pass, and entries put into a cache; twins in `nsa_kernels.heads`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.ahead import launch

_ROWS = 8


@triton.jit(do_not_specialize=["rows", "heads", "tokens"])
def norm_rotate_kernel(
    X, Weight, Cos, Sin, Out, rows, heads, tokens, eps,
    stride_xb, stride_xn, stride_xh, stride_cb, stride_cn,
    D: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, ROWS: tl.constexpr,
    NORM: tl.constexpr, ROTATE: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(rows / ROWS),): a row is one head of one token.

    The two halves of its first R dimensions, which rotate, lie side by side here; the others follow apart.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    head, token = row % heads, row // heads
    batch, at = token // tokens, token % tokens
    column = tl.arange(0, HALF)
    mask = inside[:, None] & (column < R // 2)[None, :]
    X += (batch * stride_xb + at * stride_xn + head * stride_xh)[:, None]
    first = tl.load(X + column[None, :], mask=mask, other=0.0)
    second = tl.load(X + column[None, :] + R // 2, mask=mask, other=0.0)
    kind = first.dtype
    first, second = first.to(tl.float32), second.to(tl.float32)
    if R < D:
        further = R + tl.arange(0, REST)
        beyond = inside[:, None] & (further < D)[None, :]
        rest = tl.load(X + further[None, :], mask=beyond, other=0.0).to(tl.float32)
    if NORM:
        power = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        if R < D:
            power += tl.sum(rest * rest, 1)
        scale = tl.rsqrt(power / D + eps)[:, None]
        weight = Weight + column[None, :]
        used = (column < R // 2)[None, :]
        first *= scale * tl.load(weight, mask=used, other=0.0).to(tl.float32)
        second *= scale * tl.load(weight + R // 2, mask=used, other=0.0).to(tl.float32)
        first, second = first.to(kind).to(tl.float32), second.to(kind).to(tl.float32)
        if R < D:
            used = (further < D)[None, :]
            rest *= scale * tl.load(Weight + further[None, :], mask=used, other=0.0).to(tl.float32)
    if ROTATE:
        angle = (batch * stride_cb + at * stride_cn)[:, None] + column[None, :]
        cos, sin = tl.load(Cos + angle, mask=mask, other=0.0), tl.load(Sin + angle, mask=mask, other=0.0)
        cos_other = tl.load(Cos + angle + R // 2, mask=mask, other=0.0)
        sin_other = tl.load(Sin + angle + R // 2, mask=mask, other=0.0)
        first, second = first * cos - second * sin, second * cos_other + first * sin_other
    Out += (row * D)[:, None]
    tl.store(Out + column[None, :], first.to(kind), mask=mask)
    tl.store(Out + column[None, :] + R // 2, second.to(kind), mask=mask)
    if R < D:
        tl.store(Out + further[None, :], rest.to(kind), mask=beyond)


@triton.jit(do_not_specialize=["width"])
def place_kernel(Buffer, New, Columns, width, stride_b, stride_s, stride_n, BLOCK: tl.constexpr):
    """Grid (B, ceil(heads * D / BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column = tl.load(Columns + row)
    entry = tl.load(New + row * stride_n + at, mask=at < width, other=0.0)
    tl.store(Buffer + row * stride_b + column * stride_s + at, entry, mask=at < width)


def norm_rotate(
    x: Tensor, weight: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None
) -> Tensor:
    """As `nsa_kernels.heads.norm_rotate` has it."""
    batch, tokens, heads, width = x.shape
    if x.stride(-1) != 1:
        x = x.contiguous()
    out = torch.empty(batch, tokens, heads, width, dtype=x.dtype, device=x.device)
    rows = batch * tokens * heads
    if not rows:
        return out
    rotated, angles = width if cos is None else cos.shape[-1], (0, 0)
    if cos is not None and sin is not None:
        cos, sin = (part if part.stride(-1) == 1 else part.contiguous() for part in (cos, sin))
        angles = (cos.stride(0) if cos.shape[0] > 1 else 0, cos.stride(1) if cos.shape[1] > 1 else 0)
        if angles != (sin.stride(0) if sin.shape[0] > 1 else 0, sin.stride(1) if sin.shape[1] > 1 else 0):
            sin = sin.contiguous()
            cos = cos.contiguous()
            angles = (cos.stride(0) if cos.shape[0] > 1 else 0, cos.stride(1) if cos.shape[1] > 1 else 0)
    launch(norm_rotate_kernel, (triton.cdiv(rows, _ROWS),))(
        x,
        x if weight is None else weight.contiguous(),
        x if cos is None else cos,
        x if sin is None else sin,
        out,
        rows,
        heads,
        tokens,
        eps,
        *x.stride()[:3],
        *angles,
        D=width,
        R=rotated,
        HALF=triton.next_power_of_2(max(1, rotated // 2)),
        REST=triton.next_power_of_2(max(1, width - rotated)),
        ROWS=_ROWS,
        NORM=weight is not None,
        ROTATE=cos is not None,
        num_warps=4,
    )
    return out


def place(buffer: Tensor, new: Tensor, columns: Tensor) -> None:
    """As `nsa_kernels.heads.place` has it."""
    width = new.shape[2] * new.shape[3]
    if new.stride()[2:] != (new.shape[3], 1):
        new = new.contiguous()
    block = min(1024, triton.next_power_of_2(width))
    launch(place_kernel, (len(columns), triton.cdiv(width, block)))(
        buffer, new, columns, width, *buffer.stride()[:2], new.stride(0), BLOCK=block, num_warps=4
    )
