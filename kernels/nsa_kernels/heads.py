"""What happens to a token's heads before attention: normalised, rotated, put into the cache.

For inference: nothing here has a gradient. The plain twins are what a model computes while it trains.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_kernels.ahead import real_device


def norm_rotate(
    x: Tensor, weight: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None
) -> Tensor:
    """RMS norm over the width of each head, then rotary embedding (NeoX halves); either may be left out.

    Angles of fewer than D dimensions rotate a head's first ones; the others are normalised alone.

    Args:
        x: [B, N, heads, D] in any strides with D contiguous.
        weight: [D] of the norm; None = none.
        eps: Of the norm.
        cos: [B or 1, N, 1, R] float32, R even and at most D; None = no rotation.
        sin: The same.

    Returns:
        [B, N, heads, D] in x's dtype, contiguous, rounded to it after each of the two.
    """
    if not _by_kernel(x):
        return norm_rotate_plainly(x, weight, eps, cos, sin)
    from nsa_kernels.triton import heads

    return heads.norm_rotate(x, weight, eps, cos, sin)


def norm_rotate_plainly(
    x: Tensor, weight: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None
) -> Tensor:
    """The plain twin of `norm_rotate`, with gradients."""
    if weight is not None:
        x = F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps).to(x.dtype)
    if cos is None or sin is None:
        return x
    rotated = cos.shape[-1]
    turning = x if rotated == x.shape[-1] else x[..., :rotated]
    first, second = turning.chunk(2, dim=-1)
    turned = (turning * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
    return turned if rotated == x.shape[-1] else torch.cat((turned, x[..., rotated:]), dim=-1)


def place(buffer: Tensor, new: Tensor, columns: Tensor) -> None:
    """Put one entry of every row into its column.

    Args:
        buffer: [B, S, heads, D], changed in place; heads and D contiguous.
        new: [B, 1, heads, D].
        columns: [B] int64 within S.
    """
    if _by_kernel(new):
        from nsa_kernels.triton import heads

        heads.place(buffer, new, columns)
    else:
        buffer[torch.arange(len(columns), device=new.device), columns] = new[:, 0]


def _by_kernel(x: Tensor) -> bool:
    return real_device(x.device).type == "cuda" and not torch.is_grad_enabled()
