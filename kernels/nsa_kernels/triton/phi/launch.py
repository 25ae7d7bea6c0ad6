"""The launches of block compression, and the gradient of the linear map by torch's matrix products."""

import triton
from torch import Tensor

from nsa_kernels.ahead import launch
from nsa_kernels.geometry import BlockGeometry, num_blocks
from nsa_kernels.triton.configs import Config, shipped
from nsa_kernels.triton.phi import kernels
from nsa_kernels.triton.tiles import MIN_DOT, launch_options, precision


def mean_forward(
    x: Tensor, offset: Tensor | None, geometry: BlockGeometry, *, config: Config | None = None
) -> Tensor:
    """Means of the blocks of x [B, S, H_kv, D], plus offset [D]: [B, C, H_kv, D]."""
    batch, length, heads, width = x.shape
    count = num_blocks(length, geometry)
    out = x.new_empty(batch, count, heads, width)
    if out.numel():
        chosen = config or shipped("compress_mean", width, x.device)
        launch(kernels.mean_forward_kernel, (triton.cdiv(count, chosen["PIECES"]), batch * heads))(
            x,
            out if offset is None else offset.contiguous(),
            out,
            *x.stride()[:3],
            *out.stride()[:3],
            count,
            heads,
            BLOCK=geometry.block,
            STRIDE=geometry.stride,
            D=width,
            DP=triton.next_power_of_2(width),
            ROWS=min(chosen["ROWS"], triton.next_power_of_2(geometry.stride)),
            OPEN=triton.next_power_of_2(geometry.block // geometry.stride),
            PIECES=chosen["PIECES"],
            OFFSET=offset is not None,
            **launch_options(chosen),
        )
    return out


def mean_backward(
    dout: Tensor, length: int, geometry: BlockGeometry, *, config: Config | None = None
) -> Tensor:
    """Gradient of the tokens, [B, length, H_kv, D]: what the blocks over a token get, divided by l."""
    batch, count, heads, width = dout.shape
    dx = dout.new_empty(batch, length, heads, width)
    if dx.numel():
        chosen = config or shipped("compress_mean", width, dout.device)
        pieces = triton.cdiv(length, geometry.stride)
        launch(kernels.mean_backward_kernel, (triton.cdiv(pieces, chosen["PIECES"]), batch * heads))(
            dout,
            dx,
            *dout.stride()[:3],
            *dx.stride()[:3],
            count,
            length,
            heads,
            BLOCK=geometry.block,
            STRIDE=geometry.stride,
            D=width,
            DP=triton.next_power_of_2(width),
            PIECES=chosen["PIECES"],
            **launch_options(chosen),
        )
    return dx


def linear_forward(
    x: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    geometry: BlockGeometry,
    *,
    config: Config | None = None,
) -> Tensor:
    """W applied to each block of x [B, S, H_kv, D], plus offset [D_out]: [B, C, H_kv, D_out]."""
    batch, length, heads, width = x.shape
    count, out_width = num_blocks(length, geometry), weight.shape[0]
    out = x.new_empty(batch, count, heads, out_width)
    if out.numel():
        chosen = config or shipped("compress_linear", max(width, out_width), x.device)
        bn = _side(out_width, chosen["BN"])
        rows = batch * count * heads
        launch(kernels.linear_forward_kernel, (triton.cdiv(rows, chosen["BM"]), triton.cdiv(out_width, bn)))(
            x,
            weight,
            out if offset is None else offset.contiguous(),
            out,
            *x.stride()[:3],
            weight.stride(0),
            weight.stride(1),
            rows,
            count,
            heads,
            out_width,
            BLOCK=geometry.block,
            STRIDE=geometry.stride,
            D=width,
            BM=chosen["BM"],
            BN=bn,
            BK=_side(width, chosen["BK"] * 2 // x.element_size()),
            OFFSET=offset is not None,
            PRECISION=precision(x),
            **launch_options(chosen),
        )
    return out


def mlp_forward(
    x: Tensor,
    weight_in: Tensor,
    offset: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    geometry: BlockGeometry,
    *,
    config: Config | None = None,
) -> Tensor:
    """weight_out applied to the GELU of `linear_forward`, plus bias_out [D_out]: [B, C, H_kv, D_out]."""
    batch, length, heads, width = x.shape
    count, (out_width, hidden) = num_blocks(length, geometry), weight_out.shape
    out = x.new_empty(batch, count, heads, out_width)
    if out.numel():
        chosen = config or shipped("compress_mlp", max(width, out_width), x.device)
        rows = batch * count * heads
        launch(kernels.mlp_forward_kernel, (triton.cdiv(rows, chosen["BM"]),))(
            x,
            weight_in,
            out if offset is None else offset.contiguous(),
            weight_out,
            out if bias_out is None else bias_out.contiguous(),
            out,
            *x.stride()[:3],
            *weight_in.stride(),
            *weight_out.stride(),
            rows,
            count,
            heads,
            out_width,
            BLOCK=geometry.block,
            STRIDE=geometry.stride,
            D=width,
            HIDDEN=hidden,
            BM=chosen["BM"],
            BN=_side(hidden, chosen["BN"]),
            BK=_side(width, chosen["BK"] * 2 // x.element_size()),
            DO=_side(out_width, 1 << out_width.bit_length()),
            OFFSET=offset is not None,
            BIAS=bias_out is not None,
            PRECISION=precision(x),
            **launch_options(chosen),
        )
    return out


def linear_backward(
    x: Tensor, weight: Tensor, dout: Tensor, geometry: BlockGeometry, *, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the tokens and of W, by two matrix products of torch over pieces of d tokens.

    Args:
        x: Tokens [B, S, H_kv, D].
        weight: [D_out, l*D].
        dout: [B, C, H_kv, D_out].
        geometry: Block sizes.
        needs: Whether each of the two is wanted.

    Returns:
        [B, S, H_kv, D] and [D_out, l*D], or None.
    """
    batch, length, heads, width = x.shape
    count, out_width = dout.shape[1], weight.shape[0]
    shares = geometry.block // geometry.stride
    pieces = count + shares - 1 if count else 0
    covered = pieces * geometry.stride
    # [B, P, H_kv, l/d, D_out]: what a piece has to do with in each of its places in a block.
    placed = dout.new_zeros(batch, pieces, heads, shares, out_width)
    for r in range(shares):
        placed[:, r : r + count, :, r] = dout
    flat = placed.flatten(3).flatten(0, 2)
    places = weight.reshape(out_width, shares, -1).transpose(0, 1).reshape(shares * out_width, -1)
    dx = dweight = None
    if needs[0]:
        dx = x.new_zeros(batch, length, heads, width)
        tokens = (flat @ places).view(batch, pieces, heads, geometry.stride, width)
        dx[:, :covered] = tokens.transpose(2, 3).reshape(batch, covered, heads, width)
    if needs[1]:
        cut = x[:, :covered].unflatten(1, (pieces, geometry.stride)).transpose(2, 3)
        dplaces = flat.mT @ cut.reshape(batch * pieces * heads, geometry.stride * width)
        dweight = dplaces.view(shares, out_width, -1).transpose(0, 1).reshape(weight.shape)
    return dx, dweight


def _side(width: int, most: int) -> int:
    """Side of a tile in a matrix product: a power of 2, at least Triton's smallest."""
    return max(MIN_DOT, min(most, 1 << (width - 1).bit_length()))
