"""Sums and products for choosing, the same to the last bit however they are made.

A choice between close scores is made by their last bits, and those of a float32 sum depend on its order: on
the piece that a row stood in, the batch beside it, the kernel that a library picked, and the device. Here
sums and products are made in float64 and rounded to float32 once. Two orders then differ only where the true
number lies within their float64 errors of a border between two float32 numbers, and there by the last bit of
float32. Scores that round alike are ties, which go to the lower index.
"""

from __future__ import annotations

import torch
from torch import Tensor

CELLS = 2**24
"""Numbers of 64 bits that one step holds in a tensor: 128 MiB."""


def block_means(x: Tensor, block: int) -> Tensor:
    """Mean of each block's tokens, the last one's of what it has.

    Held at a time: `CELLS` numbers of x in 64 bits, or one block of all heads where that is more.

    Args:
        x: [B, N, H, D].
        block: Tokens to a block.

    Returns:
        float32 [B, ceil(N / block), H, D].
    """
    batch, count, heads, width = x.shape
    step = max(1, CELLS // (batch * heads * width * block)) * block
    whole = count // block * block
    parts = [
        x[:, begin : min(begin + step, whole)].unflatten(1, (-1, block)).double().mean(2).float()
        for begin in range(0, whole, step)
    ]
    if whole < count:
        parts.append(x[:, whole:].double().mean(1, keepdim=True).float())
    return torch.cat(parts, 1)


def products(q: Tensor, k: Tensor) -> Tensor:
    """float32 products [B, H, n, X] of q [B, n, H, D] with k [B, X, H_kv, D] of each head's group."""
    return wide_products(q, k).float()


def wide_products(q: Tensor, k: Tensor) -> Tensor:
    """The same before they are rounded, in float64."""
    batch, count, heads, width = q.shape
    kv_heads = k.shape[2]
    folded = q.transpose(1, 2).reshape(batch, kv_heads, heads // kv_heads * count, width)
    product: Tensor = folded.double() @ k.permute(0, 2, 3, 1).double()
    return product.view(batch, heads, count, -1)
