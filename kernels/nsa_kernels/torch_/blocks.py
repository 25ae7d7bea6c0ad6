"""Attention by lists of blocks in plain torch: masks over all keys, tile by tile. Slow, and right."""

from __future__ import annotations

import torch
from torch import Tensor

from nsa_kernels.block_lists import BlockLists, PageLists

_CELLS = 2**24
"""Weights of windows that are made at a time."""


def prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists,
    *,
    start: Tensor,
    ends: Tensor,
    low: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Arguments of `nsa_kernels.blocks.block_attention`, positions as int32 [B] each."""
    lists.check()
    (_, queries, heads, _), tokens = q.shape, k.shape[1]
    keys = torch.arange(tokens, device=q.device)
    outs, sums = [], []
    seen = lists.seen(tokens)
    for tile in range(lists.counts.shape[2]):
        some = slice(tile * lists.query_block, min((tile + 1) * lists.query_block, queries))
        position = start[:, None] + torch.arange(some.start, some.stop, device=q.device)  # [B, n]
        visible = keys < ends[:, None, None]
        if causal:
            visible = visible & (keys <= position[..., None])
        visible = visible & (position < ends[:, None])[..., None]  # [B, n, S]
        if low is not None:
            visible = visible & (keys >= low[:, some, None])
        keep = visible[:, None] & _each_head(seen[:, :, tile], heads)[:, :, None]  # [B, H, n, S]
        if lists.members is not None:
            words = lists.members[:, :, some]
            block = keys // lists.key_block
            chosen = words[..., (block // 32).clamp(max=words.shape[-1] - 1)] >> (block % 32)
            keep = keep & (chosen & 1).bool()
        out, lse = _softmax(q[:, some], k, v, keep, scale)
        outs.append(out)
        sums.append(lse)
    return torch.cat(outs, 1).to(q.dtype), torch.cat(sums, 1)


def decode(q: Tensor, k: Tensor, v: Tensor, lists: PageLists, *, lengths: Tensor, scale: float) -> Tensor:
    """Arguments of `nsa_kernels.blocks.page_decode`."""
    lists.check()
    tokens = k.shape[1]
    used = torch.arange(lists.firsts.shape[-1], device=q.device) < lists.counts[..., None]
    index = lists.firsts[..., None] + torch.arange(lists.page, device=q.device)
    index = torch.where(used[..., None] & (index < lengths[:, None, None, None]), index, tokens).flatten(2)
    keep = torch.zeros(*lists.counts.shape, tokens + 1, dtype=torch.bool, device=q.device)
    keep.scatter_(-1, index.clamp(max=tokens).long(), True)
    keep = _each_head(keep[..., :tokens], q.shape[1])[:, :, None]
    out, _ = _softmax(q.unsqueeze(1), k, v, keep, scale)
    return out.squeeze(1).to(q.dtype)


def window_sums(q: Tensor, k: Tensor, lse: Tensor, *, window: int, scale: float) -> Tensor:
    """Arguments of `nsa_kernels.window.window_sums`."""
    wide = torch.promote_types(q.dtype, torch.float32)
    (queries, heads, _), (tokens, kv_heads, _) = q.shape, k.shape
    first, front = tokens - queries, max(0, tokens - queries - window + 1)
    sums = torch.zeros(heads, tokens - front, dtype=wide, device=q.device)
    step = max(1, _CELLS // (heads * (window + queries)))
    for begin in range(first, tokens, step):
        end = min(begin + step, tokens)
        low, some = max(0, begin - window + 1), slice(begin - first, end - first)
        grouped = q[some].to(wide).unflatten(1, (kv_heads, heads // kv_heads))
        scores = torch.einsum("nghd,sgd->ghns", grouped, k[low:end].to(wide)).flatten(0, 1) * scale
        position = torch.arange(begin, end, device=q.device)[:, None]
        key = torch.arange(low, end, device=q.device)
        outside = (key > position) | (key <= position - window)
        weights = (scores - lse[:, some, None]).masked_fill(outside, -torch.inf).exp()
        sums[:, low - front : end - front] += weights.sum(1)
    return sums


def _each_head(x: Tensor, heads: int) -> Tensor:
    """[B, L, ...] -> [B, H, ...]."""
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def _softmax(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Output [B, n, H, D_v] and log-sum-exp [B, n, H], float32 or wider, of q [B, n, H, D_k] under a mask."""
    wide = torch.promote_types(q.dtype, torch.float32)
    kv_heads = k.shape[2]
    group = q.shape[2] // kv_heads
    grouped = q.to(wide).unflatten(2, (kv_heads, group))
    scores = torch.einsum("bnghd,bsgd->bghns", grouped, k.to(wide)).flatten(1, 2) * scale
    scores = scores.masked_fill(~keep, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = scores.softmax(-1).masked_fill(~keep, 0.0)  # NaN, too, where nothing is seen
    held = keep.any(2)[..., None].unflatten(1, (kv_heads, group)).any(2).transpose(1, 2)  # [B, S, H_kv, 1]
    values = v.to(wide).masked_fill(~held, 0.0)  # what nobody sees may be NaN
    out = torch.einsum("bghns,bsgd->bnghd", weights.unflatten(1, (kv_heads, group)), values)
    return out.flatten(2, 3), lse.transpose(1, 2)
