"""The likeliest tokens that together reach a share of the probability, found without sorting them."""

from __future__ import annotations

import torch
from torch import Tensor


def nucleus(probabilities: Tensor, shares: Tensor) -> Tensor:
    """The least probability that stays in each row's nucleus (top-p sampling, arXiv 1904.09751).

    Args:
        probabilities: [B, V] float32, contiguous, each row's sum about 1.
        shares: [B] float32 within (0, 1].

    Returns:
        [B] float32: the largest value t so that the probabilities of t and above add up to the share; 0 where
        rounding keeps even the whole row below it.
    """
    from nsa_kernels.triton.nucleus import nucleus as by_kernel

    return by_kernel(probabilities, shares)


def nucleus_plainly(probabilities: Tensor, shares: Tensor) -> Tensor:
    """The plain twin of `nucleus`."""
    down = probabilities.sort(-1, descending=True).values
    before = down.double().cumsum(-1) - down
    last = (before < shares[:, None]).sum(-1, keepdim=True).clamp(min=1) - 1
    found: Tensor = down.gather(-1, last)[:, 0]
    return found.to(torch.float32)
