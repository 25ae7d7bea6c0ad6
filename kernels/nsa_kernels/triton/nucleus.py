"""Bisection for the edge of a nucleus: a program for each row, a pass over the row for each bit.

Probabilities are not negative, so their bits as whole numbers are ordered as they are.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096
_BITS = 30
"""Of 1.0, the largest probability, and all below: 0x3F800000 < 2 ** 30."""


@triton.jit(do_not_specialize=["width"])
def nucleus_kernel(Probabilities, Shares, Least, width, BLOCK: tl.constexpr, BITS: tl.constexpr):
    """Grid (B,)."""
    row = tl.program_id(0).to(tl.int64)
    share = tl.load(Shares + row)
    Probabilities += row * width
    at = tl.arange(0, BLOCK)
    edge = tl.zeros([], tl.int32)
    for bit in range(BITS):
        tried = edge | (tl.full([], 1, tl.int32) << (BITS - 1 - bit))
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, width, BLOCK):
            p = tl.load(Probabilities + start + at, mask=start + at < width, other=0.0)
            total += tl.where(p.to(tl.int32, bitcast=True) >= tried, p, 0.0)
        edge = tl.where(tl.sum(total, 0) >= share, tried, edge)
    tl.store(Least + row, edge.to(tl.float32, bitcast=True))


def nucleus(probabilities: Tensor, shares: Tensor) -> Tensor:
    """As `nsa_kernels.nucleus.nucleus` has it."""
    least = torch.empty(len(probabilities), dtype=torch.float32, device=probabilities.device)
    nucleus_kernel[len(probabilities),](
        probabilities.contiguous(),
        shares,
        least,
        probabilities.shape[-1],
        BLOCK=_BLOCK,
        BITS=_BITS,
        num_warps=16,
    )
    return least
