"""The arithmetic by which blocks, columns and diagonals are chosen, written out plainly.

Sums and products are made in float64 and rounded to float32 once, so that their order doesn't matter:
whatever stands beside a row, in how many pieces a prompt is read, and whether kernels' choosers
(`nsa_kernels.order_free`, which says how far this holds) or these lines work them out, scores have the same
bits. Scores that round alike are ties, which go to the lower index.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from nsa_models.methods._block import grouped
from nsa_models.methods._prompt import PromptRow


def means(x: Tensor, size: int) -> Tensor:
    """Means of x [..., n, d] over blocks of `size` tokens, the last one's of those it has.

    Returns:
        float32 [..., blocks, d].
    """
    count = x.shape[-2]
    blocks = -(-count // size)
    sums = pad(x.double(), (0, 0, 0, blocks * size - count)).unflatten(-2, (blocks, size)).sum(-2)
    sizes = torch.full((blocks, 1), size, device=x.device)
    sizes[-1:] = count - (blocks - 1) * size
    rounded: Tensor = (sums / sizes).float()
    return rounded


def products(q: Tensor, keys: Tensor) -> Tensor:
    """Products [B, H, n, X] of q [B, H, n, d] with keys [B, H_kv, X, d] of each head's group, float32."""
    return grouped(q.double(), keys.double().transpose(-1, -2)).float()


def sums_of_last(row: PromptRow, count: int) -> tuple[Tensor, Tensor]:
    """Causal attention weights of the last `count` queries, summed by key and by distance t - s.

    Returns:
        float32 [H, n] each; distances are 0, 1, ...
    """
    asked, at = min(count, row.length), torch.arange(row.length, device=row.q.device)
    distance = at[-asked:, None] - at  # [m, n]
    logits = grouped(row.q[None, :, -asked:].double(), row.k[None].double().transpose(-1, -2))[0]
    weights = (logits * row.scaling).masked_fill(distance < 0, float("-inf")).softmax(-1)
    by_distance = torch.zeros(weights.shape[0], row.length, dtype=weights.dtype, device=at.device)
    by_distance.index_add_(1, distance.clamp(min=0).flatten(), weights.flatten(1))  # later keys have weight 0
    return weights.sum(1).float(), by_distance.float()
