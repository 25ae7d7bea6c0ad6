"""From probabilities over compressed keys to the selected blocks (DESIGN "Importance", "Selection").

Nothing here carries a gradient: the choice of blocks is discrete, the paper trains it through the compressed
branch alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_kernels.geometry import BlockGeometry

_FORCED = torch.iinfo(torch.int64).max
_INDEX_BITS = 31


def block_importance(probabilities: Tensor, geometry: BlockGeometry, count: int) -> Tensor:
    """Pools compressed-key probabilities to selection blocks: sum_m sum_r p[(l'/d)*j + m - r].

    Args:
        probabilities: p, already summed over the query heads of a group [..., C].
        geometry: Block sizes.
        count: Selection blocks to score; at least those that C compression blocks touch.

    Returns:
        Importance [..., count].
    """
    pieces = geometry.select_block // geometry.stride
    shares = geometry.block // geometry.stride
    total = pieces * count
    padded = F.pad(probabilities, (shares - 1, total - probabilities.shape[-1]))
    overlap = padded[..., shares - 1 : shares - 1 + total]
    for r in range(1, shares):
        overlap = overlap + padded[..., shares - 1 - r : shares - 1 - r + total]
    by_block: Tensor = overlap.unflatten(-1, (count, pieces))
    return by_block.sum(-1)


def select_blocks(importance: Tensor, positions: Tensor, geometry: BlockGeometry) -> Tensor:
    """The n blocks that each token attends to: the forced ones, then the most important.

    The geometry's first and last blocks come first whatever their importance; equal importance goes to the
    lower index; a block that starts after the token is never chosen.

    Args:
        importance: Non-negative [..., N, blocks], float32 or float64.
        positions: Token positions [..., N], broadcastable to `importance` without its last dimension.
        geometry: Block sizes.

    Returns:
        int32 [..., N, n]: ascending, then -1 where fewer than n blocks start at or before the token.
    """
    count = importance.shape[-1]
    index = torch.arange(count, device=importance.device)
    own = (positions // geometry.select_block).unsqueeze(-1)
    forced = (index < geometry.first_blocks) | (index > own - geometry.last_blocks)
    future = index > own
    kept = min(count, geometry.select_count)
    if importance.dtype == torch.float64:
        # The bits of a double leave no room for the index: a stable sort keeps the lower index first.
        ranked = importance.masked_fill(forced, torch.inf).masked_fill(future, -1.0)
        values, chosen = ranked.sort(dim=-1, descending=True, stable=True)
        values, chosen = values[..., :kept], chosen[..., :kept]
    else:
        # Non-negative floats order as their bits do. With the reversed index below them no two keys are
        # equal, so that topk, which promises nothing about ties, has none to break.
        bits = importance.float().view(torch.int32).to(torch.int64)
        keys = (bits << _INDEX_BITS) + (count - 1 - index)
        keys = keys.masked_fill(forced, _FORCED).masked_fill(future, -1)
        values, chosen = keys.topk(kept, dim=-1, sorted=False)
    chosen = chosen.masked_fill(values < 0, count).sort(dim=-1).values
    chosen = chosen.masked_fill(chosen == count, -1).to(torch.int32)
    return F.pad(chosen, (0, geometry.select_count - kept), value=-1)


def all_blocks(positions: Tensor, geometry: BlockGeometry) -> Tensor:
    """The selection of tokens that stand before n * l', where every block is chosen and none needs a score.

    Args:
        positions: Token positions [..., N], each below `geometry.reach`.
        geometry: Block sizes.

    Returns:
        int32 [..., N, n], as `select_blocks` returns it.
    """
    index = torch.arange(geometry.select_count, device=positions.device)
    own = (positions // geometry.select_block).unsqueeze(-1)
    return torch.where(index <= own, index, -1).to(torch.int32)


def blocks_to_mask(blocks: Tensor, positions: Tensor, length: int, geometry: BlockGeometry) -> Tensor:
    """The tokens that the selected branch sees.

    Args:
        blocks: Selected blocks [..., N, n], -1 = unused.
        positions: Token positions [..., N], broadcastable.
        length: Keys S.
        geometry: Block sizes.

    Returns:
        bool [..., N, S]: s is in a chosen block and s <= t.
    """
    count = geometry.num_select_blocks(length)
    slots = torch.where(blocks < 0, count, blocks).long()
    chosen = torch.zeros(*blocks.shape[:-1], count + 1, dtype=torch.bool, device=blocks.device)
    chosen.scatter_(-1, slots, True)
    tokens = chosen[..., :count].unsqueeze(-1).expand(*chosen.shape[:-1], count, geometry.select_block)
    causal = torch.arange(length, device=blocks.device) <= positions.unsqueeze(-1)
    return tokens.flatten(-2)[..., :length] & causal
