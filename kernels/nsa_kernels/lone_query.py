"""A fault of CUDA's memory-efficient attention, and the way around it.

The kernel takes queries in tiles of 64, or 32 where heads are wide. Where the last tile has a single query, K
and V are one head seen by all (stride 0) and no gradient is wanted, it computes the query's heads as the rows
of the tile, and from then on moves through the mask by the stride *between heads*, in the step to the tile's
first row, too. Under a mask that all heads share, whose stride is 0, the last query is masked as the first
one of the call; under a mask for each head it reads memory behind the mask. (`advance_to_block` in torch's
mem_eff_attention/kernel_forward.h; seen with torch 2.11 on an H200, in float32: a score was off by 6 nats.) A
call with one query has its tile at row 0 and is right.

So such a call gets one more query, whose output is dropped: a copy of the queries and of the mask, for one
length in 32. Copies of K and V for each head would cost more, and for every length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 32
"""Every tile of the kernel is a multiple of it."""


def leaves_one_over(queries: int) -> bool:
    """Whether some tile may hold the last query alone."""
    return queries > 1 and queries % _TILE == 1


def one_more_query(q: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and their mask with one query behind them that sees every key.

    Args:
        q: [..., M, D].
        mask: [..., M or 1, S], bool with True = seen, or what is added to the scores.

    Returns:
        [..., M + 1, D] and [..., M + 1 or 1, S].
    """
    if mask.shape[-2] != 1:
        seen = mask.dtype == torch.bool
        mask = F.pad(mask, (0, 0, 0, 1), value=seen)
    return F.pad(q, (0, 0, 0, 1)), mask
