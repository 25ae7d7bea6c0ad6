"""Block compression phi on Triton: the tokens are read where they lie, and no block is unfolded.

Here are the functions and their gradients; the launches are in `launch`, the kernels in `kernels`. The mean
has a kernel for its gradient. Those of the linear map and the MLP are a few large matrix products, which
torch does.

What positional embeddings and biases add is the same for every block, so that they come as one vector, an
`offset` that torch makes (and differentiates).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nsa_kernels.geometry import BlockGeometry
from nsa_kernels.triton.configs import Config
from nsa_kernels.triton.phi.launch import (
    linear_backward,
    linear_forward,
    mean_backward,
    mean_forward,
    mlp_forward,
)
from nsa_kernels.triton.tiles import rows_contiguous


def compress_mean(
    x: Tensor, geometry: BlockGeometry, *, pe: Tensor | None = None, config: Config | None = None
) -> Tensor:
    """phi = mean over the block; arguments and result as in `nsa_kernels.compress_mean`.

    Args:
        x: [B, S, H_kv, D].
        geometry: Block sizes.
        pe: [l, D], or None.
        config: Launch configuration; None = the shipped one.

    Returns:
        [B, C, H_kv, D].
    """
    offset = None if pe is None else pe.float().mean(0)
    out: Tensor = _Mean.apply(rows_contiguous(x), offset, geometry, config)
    return out


def compress_linear(
    x: Tensor,
    weight: Tensor,
    geometry: BlockGeometry,
    *,
    bias: Tensor | None = None,
    pe: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """phi = one linear map of the block; arguments and result as in `nsa_kernels.compress_linear`.

    Args:
        x: [B, S, H_kv, D].
        weight: [D_out, l*D].
        geometry: Block sizes.
        bias: [D_out], or None.
        pe: [l, D], or None.
        config: Launch configuration; None = the shipped one.

    Returns:
        [B, C, H_kv, D_out].
    """
    out: Tensor = _Linear.apply(rows_contiguous(x), weight, offset_of(weight, bias, pe), geometry, config)
    return out


def compress_mlp(
    x: Tensor,
    weight_in: Tensor,
    weight_out: Tensor,
    geometry: BlockGeometry,
    *,
    bias_in: Tensor | None = None,
    bias_out: Tensor | None = None,
    pe: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """phi = a two-layer MLP of the block; arguments and result as in `nsa_kernels.compress_mlp`.

    Args:
        x: [B, S, H_kv, D].
        weight_in: [D_hidden, l*D].
        weight_out: [D_out, D_hidden].
        geometry: Block sizes.
        bias_in: [D_hidden], or None.
        bias_out: [D_out], or None.
        pe: [l, D], or None.
        config: Launch configuration; None = the shipped one.

    Returns:
        [B, C, H_kv, D_out].
    """
    offset = offset_of(weight_in, bias_in, pe)
    out: Tensor = _MLP.apply(rows_contiguous(x), weight_in, offset, weight_out, bias_out, geometry, config)
    return out


def offset_of(weight: Tensor, bias: Tensor | None, pe: Tensor | None) -> Tensor | None:
    """What W (x + pe) + bias adds to W x, the same for every block: [D_out], or None for nothing."""
    return bias if pe is None else F.linear(pe.flatten(), weight, bias)


# ---- autograd


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, offset: Tensor | None, geometry: BlockGeometry, config: Config | None
    ) -> Tensor:
        ctx.shape, ctx.geometry, ctx.config = x.shape, geometry, config
        ctx.offset_dtype = None if offset is None else offset.dtype
        return mean_forward(x, offset, geometry, config=config)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        dx = doffset = None
        if ctx.needs_input_grad[0]:
            dx = mean_backward(rows_contiguous(dout), ctx.shape[1], ctx.geometry, config=ctx.config)
        if ctx.needs_input_grad[1]:
            doffset = dout.sum((0, 1, 2), dtype=torch.float32).to(ctx.offset_dtype)
        return dx, doffset, None, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        offset: Tensor | None,
        geometry: BlockGeometry,
        config: Config | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        ctx.offset_dtype = None if offset is None else offset.dtype
        return linear_forward(x, weight, offset, geometry, config=config)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx, dweight = linear_backward(x, weight, dout, ctx.geometry, needs=ctx.needs_input_grad[:2])
        doffset = None
        if ctx.needs_input_grad[2]:
            doffset = dout.sum((0, 1, 2), dtype=torch.float32).to(ctx.offset_dtype)
        return dx, dweight, doffset, None, None


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_in: Tensor,
        offset: Tensor | None,
        weight_out: Tensor,
        bias_out: Tensor | None,
        geometry: BlockGeometry,
        config: Config | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight_in, offset, weight_out, bias_out)
        ctx.geometry = geometry
        return mlp_forward(x, weight_in, offset, weight_out, bias_out, geometry, config=config)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_in, offset, weight_out, bias_out = ctx.saved_tensors
        hidden = linear_forward(x, weight_in, offset, ctx.geometry)  # again: it is larger than the result
        flat, given = hidden.flatten(0, 2), dout.flatten(0, 2)
        active = F.gelu(flat)
        dflat: Tensor = torch.ops.aten.gelu_backward(given @ weight_out, flat)
        dhidden = dflat.view_as(hidden)
        dx, dweight = linear_backward(x, weight_in, dhidden, ctx.geometry, needs=ctx.needs_input_grad[:2])
        sums = [None if vector is None else vector.dtype for vector in (offset, bias_out)]
        doffset, dbias = (
            None if dtype is None else gradient.sum(0, dtype=torch.float32).to(dtype)
            for dtype, gradient in zip(sums, (dflat, given), strict=True)
        )
        return dx, dweight, doffset, given.mT @ active, dbias, None, None
