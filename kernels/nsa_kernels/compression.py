"""Block compression phi: one key (or value) for each overlapping block of l tokens, every d tokens.

Three forms of phi (paper equation 7), as plain functions of their weights, for keys and values alike:
`compress_mean`, `compress_linear` and `compress_mlp`. All work on each KV head by itself, share their weights
between the heads, and add the learned positional embedding `pe` to the tokens inside a block first.

The blocks overlap (l = 2d in the paper), so that unfolding them would copy every token l/d times. Instead the
tokens are cut into pieces of d, each piece is projected once for each of its l/d places in a block, and the
results are added: the same sums, without the copy. `block_view` shows the blocks themselves.

On a CUDA device Triton kernels do the same in one launch (`nsa_kernels/triton/compression.py`). What stands
here is their definition in the tests, and runs everywhere else.

To extend a cache of compressed keys from i blocks, pass the tokens from i*d onward: the grid is the same.
"""

import functools
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_kernels.ahead import real_device
from nsa_kernels.dispatch import choose_backend, get_backend
from nsa_kernels.geometry import BlockGeometry, num_blocks

_TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def block_view(x: Tensor, geometry: BlockGeometry) -> Tensor:
    """The overlapping blocks of a sequence, without copying.

    Args:
        x: Keys or values [B, S, H_kv, D], starting on the block grid.
        geometry: Block sizes.

    Returns:
        A view [B, C, l, H_kv, D]; C = num_blocks(S, geometry), which is 0 for a sequence shorter than l.
    """
    if num_blocks(x.shape[1], geometry) == 0:
        return x.new_empty(x.shape[0], 0, geometry.block, *x.shape[2:])
    return x.unfold(1, geometry.block, geometry.stride).movedim(-1, 2)


def compress_mean(
    x: Tensor, geometry: BlockGeometry, *, pe: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """phi = mean over the block.

    Args:
        x: Keys or values [B, S, H_kv, D].
        geometry: Block sizes.
        pe: Positional embedding inside a block [l, D], or None.
        backend: "auto", "torch" or "triton". "auto" is triton on CUDA in bfloat16 and float16 (see
            `choose_backend`), else torch.

    Returns:
        [B, C, H_kv, D].

    Raises:
        ValueError: The shape of `pe` does not fit the block, or the backend lacks the dtype.
        BackendUnavailableError: The backend cannot run here.
    """
    _check_pe(pe, x, geometry)
    kernels = _kernels(backend, x.shape[-1], x)
    if kernels is not None:
        mean: Tensor = kernels.compress_mean(x, geometry, pe=pe)
        return mean
    pieces = _pieces(x, geometry).sum(3)  # [B, P, H_kv, D]
    shares = geometry.block // geometry.stride
    count = num_blocks(x.shape[1], geometry)
    total = pieces[:, :count]
    for r in range(1, shares):
        total = total + pieces[:, r : r + count]
    mean = total / geometry.block
    if pe is not None:
        mean = mean + pe.mean(0).to(mean.dtype)
    return mean


def compress_linear(
    x: Tensor,
    weight: Tensor,
    geometry: BlockGeometry,
    *,
    bias: Tensor | None = None,
    pe: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """phi = one linear map of the whole block, flattened with the token outermost.

    Args:
        x: Keys or values [B, S, H_kv, D].
        weight: [D_out, l*D], laid out as `torch.nn.Linear(l * D, D_out).weight`.
        geometry: Block sizes.
        bias: [D_out], or None.
        pe: Positional embedding inside a block [l, D], or None.
        backend: As for `compress_mean`.

    Returns:
        [B, C, H_kv, D_out].

    Raises:
        ValueError: The shape of `weight` or `pe` does not fit the block, or the backend lacks the dtypes.
        BackendUnavailableError: The backend cannot run here.
    """
    _check_pe(pe, x, geometry)
    _check_weight(weight, x, geometry)
    kernels = _kernels(backend, max(x.shape[-1], weight.shape[0]), x, weight, bias, pe)
    if kernels is not None:
        x, weight, bias, pe = _autocast(x, weight, bias, pe)
        with torch.autocast(real_device(x.device).type, enabled=False):
            out: Tensor = kernels.compress_linear(x, weight, geometry, bias=bias, pe=pe)
        return out
    out_dim = weight.shape[0]
    shares = geometry.block // geometry.stride
    # [D_out, l/d, d*D] -> [d*D, l/d * D_out]: all the places that a piece can have in a block, side by side.
    places = weight.view(out_dim, shares, -1).permute(2, 1, 0).reshape(-1, shares * out_dim)
    projected = _pieces(x, geometry).flatten(3) @ places  # [B, P, H_kv, l/d * D_out]
    projected = projected.unflatten(3, (shares, out_dim))
    count = num_blocks(x.shape[1], geometry)
    total: Tensor = projected[:, :count, :, 0]
    for r in range(1, shares):
        total = total + projected[:, r : r + count, :, r]
    if pe is not None:  # W (x + pe) = W x + W pe, and W pe is the same for every block
        offset = F.linear(pe.flatten(), weight, bias)
        total = total + offset.to(total.dtype)
    elif bias is not None:
        total = total + bias.to(total.dtype)
    return total


def compress_mlp(
    x: Tensor,
    weight_in: Tensor,
    weight_out: Tensor,
    geometry: BlockGeometry,
    *,
    bias_in: Tensor | None = None,
    bias_out: Tensor | None = None,
    pe: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """phi = a two-layer MLP of the whole block with GELU between, the paper's form.

    Args:
        x: Keys or values [B, S, H_kv, D].
        weight_in: [D_hidden, l*D], laid out as in `compress_linear`.
        weight_out: [D_out, D_hidden].
        geometry: Block sizes.
        bias_in: [D_hidden], or None.
        bias_out: [D_out], or None.
        pe: Positional embedding inside a block [l, D], or None.
        backend: As for `compress_mean`.

    Returns:
        [B, C, H_kv, D_out].

    Raises:
        ValueError: The shape of a weight or of `pe` does not fit the block, or the backend lacks the dtypes.
        BackendUnavailableError: The backend cannot run here.
    """
    _check_pe(pe, x, geometry)
    _check_weight(weight_in, x, geometry)
    if weight_out.dim() != 2 or weight_out.shape[1] != weight_in.shape[0]:
        raise ValueError(
            f"weight_out must be [D_out, D_hidden] with D_hidden = {weight_in.shape[0]} as in weight_in, "
            f"got {list(weight_out.shape)}"
        )
    width = max(x.shape[-1], weight_out.shape[0])
    kernels = _kernels(backend, width, x, weight_in, bias_in, weight_out, bias_out, pe)
    if kernels is not None:
        x, weight_in, bias_in, weight_out, bias_out, pe = _autocast(
            x, weight_in, bias_in, weight_out, bias_out, pe
        )
        with torch.autocast(real_device(x.device).type, enabled=False):
            out: Tensor = kernels.compress_mlp(
                x, weight_in, weight_out, geometry, bias_in=bias_in, bias_out=bias_out, pe=pe
            )
        return out
    hidden = compress_linear(x, weight_in, geometry, bias=bias_in, pe=pe, backend="torch")
    return F.linear(F.gelu(hidden), weight_out, bias_out)


def _pieces(x: Tensor, geometry: BlockGeometry) -> Tensor:
    """Cuts tokens [B, S, H_kv, D] into pieces of d tokens [B, P, H_kv, d, D] that cover all blocks."""
    batch, length, heads, dim = x.shape
    count = num_blocks(length, geometry)
    shares = geometry.block // geometry.stride
    pieces = count + shares - 1 if count else 0
    tokens = x[:, : pieces * geometry.stride]
    return tokens.reshape(batch, pieces, geometry.stride, heads, dim).transpose(2, 3)


def _check_pe(pe: Tensor | None, x: Tensor, geometry: BlockGeometry) -> None:
    expected = torch.Size((geometry.block, x.shape[-1]))
    if pe is not None and pe.shape != expected:
        raise ValueError(f"pe must be [l, D] = {list(expected)}, got {list(pe.shape)}")


def _check_weight(weight: Tensor, x: Tensor, geometry: BlockGeometry) -> None:
    width = geometry.block * x.shape[-1]
    if weight.dim() != 2 or weight.shape[1] != width:
        raise ValueError(
            f"the weight must be [D_out, l*D] = [D_out, {width}] for l = {geometry.block} and "
            f"D = {x.shape[-1]}, got {list(weight.shape)}"
        )


def _kernels(backend: str, width: int, x: Tensor, *weights: Tensor | None) -> ModuleType | None:
    """The Triton kernels if they are to run, or None for the formulation in torch; `width` is the larger of
    what goes in and what comes out."""
    if backend == "torch":
        return None
    target = _autocast_dtype(x) if weights else None
    dtypes = {target or tensor.dtype for tensor in (x, *weights) if tensor is not None}
    if backend == "auto":
        chosen = {choose_backend(real_device(x.device), dtype, width=width) for dtype in dtypes}
        return _triton_kernels() if len(dtypes) == 1 and chosen == {"triton"} else None
    if backend != "triton":
        raise ValueError(f"unknown backend {backend!r}: choose auto, torch, triton")
    if len(dtypes) > 1 or not dtypes <= set(_TRITON_DTYPES):
        raise ValueError(
            f"backend 'triton' compresses tensors of one dtype out of "
            f"{', '.join(str(dtype) for dtype in _TRITON_DTYPES)}, got "
            f"{', '.join(sorted(str(dtype) for dtype in dtypes))}; use backend='torch'"
        )
    return _triton_kernels()


@functools.cache
def _triton_kernels() -> ModuleType:
    get_backend("triton")  # says why it cannot run
    import nsa_kernels.triton.phi as kernels

    return kernels


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What matrix products are cast to, or None."""
    device = real_device(x.device).type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return None


def _autocast(x: Tensor, *rest: Tensor | None) -> list[Any]:
    """The tensors as autocast would hand them to a matrix product."""
    dtype = _autocast_dtype(x)
    return [t if dtype is None or t is None else t.to(dtype) for t in (x, *rest)]
