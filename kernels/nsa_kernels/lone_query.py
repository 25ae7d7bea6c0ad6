"""A fault of CUDA's memory-efficient attention, and the way around it.

The kernel takes queries in tiles of 64, or of 32 where heads are wide. Where the last tile has one query, all
heads see one K and V (stride 0) and no gradient is wanted, it takes the query's heads for the rows of the
tile, and from then on moves through the mask by its stride *between heads*, in the step to the tile's first
row, too. Under a mask that all heads share, whose stride is 0, the last query is masked as the first one of
the call; under a mask for each head it reads memory behind the mask. With `is_causal` it hides nothing from
that query. A call with one query alone has its tile at row 0 and is right.

See `advance_to_block` in torch's mem_eff_attention/kernel_forward.h. Measured with torch 2.11 on an H200:
of 18 lengths up to 512 in float32, 65, 129 and 193 were wrong, in their last row alone, which was that
under the first row's mask; 65 in bfloat16, too, and 33 with heads of 192. A toy's score was off by 6 nats.

So a masked call of such a length gets one more query, whose output is dropped: a copy of the queries and of
the mask, for one length in 32. Copies of K and V for each head would cost more, and for every length.
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
        seen = 1.0 if mask.dtype == torch.bool else 0.0  # True, or nothing added to the scores
        mask = F.pad(mask, (0, 0, 0, 1), value=seen)
    return F.pad(q, (0, 0, 0, 1)), mask
