"""The three branches for a run of queries, in terms of scaled_dot_product_attention (SDPA) and boolean masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_kernels.geometry import BlockGeometry, num_blocks
from nsa_kernels.torch_.problem import Problem


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """SDPA of the G heads of a row over the row's one K/V.

    Args:
        q: [R, G, M, D_k].
        k: [R, S, D_k].
        v: [R, S, D_v].
        scale: Factor on the logits.
        mask: bool, broadcastable to [R, G, M, S]; True = seen. Every query must see a key.
        causal: Query i sees keys 0..i; instead of a mask.

    Returns:
        [R, G, M, D_v].
    """
    group = q.shape[1]
    # A view with stride 0: enable_gqa would rule out the memory-efficient CUDA kernel, the one that takes masks.
    k, v = (x.unsqueeze(1).expand(-1, group, -1, -1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)


def attend_or_zero(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, scale: float) -> Tensor:
    """As `attend`, for queries that may see nothing: their output is 0, and no gradient passes."""
    if k.shape[1] == 0:
        return q.new_zeros(*q.shape[:-1], v.shape[-1])
    blind = ~mask.any(-1, keepdim=True)
    # What SDPA makes of an empty row differs between its kernels (NaN, 0, the mean): let it see all, then drop it.
    return attend(q, k, v, mask=mask | blind, scale=scale).masked_fill(blind, 0)


def visible_blocks(positions: Tensor, count: int, geometry: BlockGeometry) -> Tensor:
    """Which compressed keys a query sees: i*d + l <= t + 1. [..., M] -> bool [..., M, count]."""
    last = torch.arange(count, device=positions.device) * geometry.stride + geometry.block - 1
    return last <= positions.unsqueeze(-1)


def compressed(p: Problem, q: Tensor, first: int) -> Tensor:
    """Compressed branch of the queries first..first+M-1, q [R, G, M, D_k] -> [R, G, M, D_v]."""
    last = first + q.shape[2]
    count = min(num_blocks(p.keys_before(last), p.geometry), p.k_cmp.shape[1])
    mask = visible_blocks(p.positions(first, last), count, p.geometry)
    return attend_or_zero(q, p.k_cmp[:, :count], p.v_cmp[:, :count], over_heads(mask), scale=p.scale)


@torch.no_grad()
def group_probabilities(p: Problem, q: Tensor, first: int) -> Tensor:
    """Softmax over the visible compressed keys, summed over the heads of the group.

    In float32 at least, whatever the dtype of q: close scores decide which blocks are seen.

    Args:
        p: The problem.
        q: The queries first..first+M-1 [R, G, M, D_k].
        first: Number of the first of them.

    Returns:
        [R, M, C'] with C' the blocks complete before the last query; 0 where a block is not visible.
    """
    rows, group, size, _ = q.shape
    last = first + size
    count = min(num_blocks(p.keys_before(last), p.geometry), p.k_cmp.shape[1])
    dtype = torch.promote_types(q.dtype, torch.float32)
    keys = p.k_cmp[:, :count].to(dtype).transpose(-1, -2)
    logits = torch.bmm(q.to(dtype).flatten(1, 2), keys).view(rows, group, size, count)
    hidden = ~visible_blocks(p.positions(first, last), count, p.geometry)
    logits.mul_(p.scale).masked_fill_(over_heads(hidden), torch.finfo(dtype).min)
    # A query that sees no block got a uniform softmax: the second fill makes it zero.
    return logits.softmax(-1).sum(1).masked_fill_(hidden, 0)


def window(p: Problem, q: Tensor, first: int) -> Tensor:
    """Window branch of the queries first..first+M-1: keys (t - w, t]. Needs a common start."""
    assert isinstance(p.start, int)
    width, last = p.geometry.window, first + q.shape[2]
    if p.start == 0 and first == 0 and last <= width:
        return attend(q, p.k_win[:, :last], p.v_win[:, :last], causal=True, scale=p.scale)
    if p.start == 0 and first == 0 and last > width:
        head, tail = q.split([width, last - width], dim=2)
        return torch.cat([window(p, head, 0), window(p, tail, width)], dim=2)
    low = max(0, p.start + first - width)  # one more than needed: round sizes suit the kernels better
    high = p.keys_before(last)
    t = p.positions(first, last).unsqueeze(-1)
    s = torch.arange(low, high, device=q.device)
    mask = (s <= t) & (s > t - width)
    return attend_or_zero(q, p.k_win[:, low:high], p.v_win[:, low:high], mask, scale=p.scale)


def mix(gates: Tensor, o_cmp: Tensor, o_slc: Tensor, o_win: Tensor) -> Tensor:
    """Sum over the branches of gate * branch; gates [R, G, M, 3], branches [R, G, M, D_v]."""
    g_cmp, g_slc, g_win = gates.unsqueeze(-2).unbind(-1)
    return g_cmp * o_cmp + g_slc * o_slc + g_win * o_win


def over_heads(mask: Tensor) -> Tensor:
    """A mask [M, S] or [R, M, S] made broadcastable to [R, G, M, S]."""
    return mask if mask.dim() == 2 else mask.unsqueeze(1)
