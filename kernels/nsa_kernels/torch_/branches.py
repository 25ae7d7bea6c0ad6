"""The branches for a run of queries as dense attention under boolean masks.

Each function takes a `Problem`, a run of its queries q [R, G, M, D_k] and the number of the first of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nsa_kernels.geometry import BlockGeometry, num_blocks
from nsa_kernels.lone_query import leaves_one_over, one_more_query
from nsa_kernels.torch_.problem import Problem
from nsa_kernels.torch_.scratch import Scratch

_WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """scaled_dot_product_attention of the G heads of a row over the row's one K/V.

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
    if mask is not None and group > 1 and leaves_one_over(q.shape[2]):
        # With these K and V, CUDA's kernel would give the last query the mask of the first one.
        q, mask = one_more_query(q, mask)
        return attend(q, k, v, scale=scale, mask=mask)[:, :, :-1]
    if causal:  # where there are more keys, the kernel would show them to that query
        k, v = (x[:, : q.shape[2]] for x in (k, v))
    # Views with stride 0: enable_gqa would rule out CUDA's memory-efficient kernel, the one that takes masks.
    k, v = (x.unsqueeze(1).expand(-1, group, -1, -1) for x in (k, v))
    if q.is_cuda and not torch.compiler.is_compiling():
        # cuDNN's backward (torch 2.11, cuDNN 9.19) takes the plan of an earlier call with other strides: in a
        # process that had run both paths of this backend, dK and dV of the window were off by 80 %. Under
        # torch.compile the choice stays with torch, which has flash's gradients expect other strides.
        with sdpa_kernel(_WITHOUT_CUDNN):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)


def attend_or_zero(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, scale: float) -> Tensor:
    """As `attend`, for queries that may see nothing: their output is 0, and no gradient passes."""
    if k.shape[1] == 0:
        return q.new_zeros(*q.shape[:-1], v.shape[-1])
    blind = ~mask.any(-1, keepdim=True)
    # What the kernels make of an empty row differs (NaN, 0, the mean): let it see everything, then drop it.
    return attend(q, k, v, mask=mask | blind, scale=scale).masked_fill(blind, 0)


def compressed(p: Problem, q: Tensor, first: int) -> Tensor:
    """Compressed branch [R, G, M, D_v]."""
    last = first + q.shape[2]
    count = blocks_before(p, last)
    mask = visible_blocks(p.positions(first, last), count, p.geometry)
    return attend_or_zero(q, p.k_cmp[:, :count], p.v_cmp[:, :count], over_heads(mask), scale=p.scale)


@torch.no_grad()
def compressed_probabilities(p: Problem, q: Tensor, first: int, scratch: Scratch | None = None) -> Tensor:
    """Softmax over the visible compressed keys.

    In float32 at least, whatever the dtype of q: close scores decide which blocks are seen.

    Args:
        p: The problem.
        q: The run's queries.
        first: Number of the first query.
        scratch: Memory for the result among others; None = new memory.

    Returns:
        [R, G, M, C'] with C' the blocks complete before the last query; 0 where a block is not visible.
    """
    rows, group, size, _ = q.shape
    last = first + size
    count = blocks_before(p, last)
    dtype = torch.promote_types(q.dtype, torch.float32)
    queries = q.to(dtype).flatten(1, 2) * p.scale
    keys = p.k_cmp[:, :count].to(dtype).transpose(-1, -2)
    scratch = scratch or Scratch(enabled=False)
    shape = (rows, group * size, count)
    logits = torch.bmm(queries, keys, out=scratch.get("scores", shape, queries)).view(
        rows, group, size, count
    )
    # With a common start every query of the run sees what the first one sees: only the rest needs the mask.
    clear = blocks_before(p, first + 1) if isinstance(p.start, int) else 0
    hidden = over_heads(~visible_blocks(p.positions(first, last), count, p.geometry, skip=clear))
    logits[..., clear:].masked_fill_(hidden, torch.finfo(dtype).min)
    probabilities = scratch.softmax_(logits)
    if clear == 0:  # a query that sees no block got a uniform softmax
        probabilities.masked_fill_(hidden, 0)
    return probabilities


def window(p: Problem, q: Tensor, first: int) -> Tensor:
    """Window branch [R, G, M, D_v]: keys (t - w, t]."""
    width, last = p.geometry.window, first + q.shape[2]
    t = p.positions(first, last).unsqueeze(-1)
    if isinstance(p.start, Tensor):
        s = p.start.unsqueeze(-1) + torch.arange(first - width + 1, last, device=q.device)
        inside = (s >= 0) & (s < p.keys)
        index = s.clamp(0, p.keys - 1).unsqueeze(-1)
        k, v = (x.gather(1, index.expand(-1, -1, x.shape[-1])) for x in (p.k_win, p.v_win))
        s = s.unsqueeze(1)
        mask = inside.unsqueeze(1) & (s <= t) & (s > t - width)
        return attend_or_zero(q, k, v, over_heads(mask), scale=p.scale)
    if p.start == 0 and first == 0 and last <= width:
        return attend(q, p.k_win[:, :last], p.v_win[:, :last], causal=True, scale=p.scale)
    if p.start == 0 and first == 0 and last > width:
        head, tail = q.split([width, last - width], dim=2)
        return torch.cat([window(p, head, 0), window(p, tail, width)], dim=2)
    high = p.keys_before(last)
    low = max(0, min(p.start + first - width, high))  # one more than needed: a round size suits the kernels
    s = torch.arange(low, high, device=q.device)
    mask = (s <= t) & (s > t - width)
    return attend_or_zero(q, p.k_win[:, low:high], p.v_win[:, low:high], mask, scale=p.scale)


def mix(gates: Tensor, o_cmp: Tensor, o_slc: Tensor, o_win: Tensor) -> Tensor:
    """Sum over the branches of gate * branch; gates [R, G, M, 3], branches [R, G, M, D_v]."""
    g_cmp, g_slc, g_win = gates.unsqueeze(-2).unbind(-1)
    return g_cmp * o_cmp + g_slc * o_slc + g_win * o_win


def blocks_before(p: Problem, last: int) -> int:
    """Compressed keys that the queries before number `last` can see at most."""
    return min(num_blocks(p.keys_before(last), p.geometry), p.k_cmp.shape[1])


def visible_blocks(positions: Tensor, count: int, geometry: BlockGeometry, skip: int = 0) -> Tensor:
    """Which of the compressed keys skip..count-1 a query sees: i*d + l <= t + 1.

    [..., M] -> bool [..., M, count - skip].
    """
    last = torch.arange(skip, count, device=positions.device) * geometry.stride + geometry.block - 1
    return last <= positions.unsqueeze(-1)


def over_heads(mask: Tensor) -> Tensor:
    """A mask [M, S] or [R, M, S] made broadcastable to [R, G, M, S]."""
    return mask if mask.dim() == 2 else mask.unsqueeze(1)
