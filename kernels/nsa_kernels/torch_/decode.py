"""One new token a row: reads the compressed keys, the n chosen blocks and one window, and nothing else.

The caches stay in the caller's layout: to bring them into another would read them whole for each token.
"""

import torch
from torch import Tensor

from nsa_kernels.geometry import BlockGeometry
from nsa_kernels.selection import block_importance, select_blocks
from nsa_kernels.torch_.branches import visible_blocks
from nsa_kernels.types import Caches, NSAOutput


def decode(
    q: Tensor,
    caches: Caches,
    gates: Tensor,
    *,
    geometry: BlockGeometry,
    lengths: Tensor,
    scale: float,
    return_blocks: bool,
) -> NSAOutput:
    """One token a row; arguments and result as in `nsa_kernels.nsa_decode`."""
    size, kv_heads = caches.k_slc.shape[1:3]
    positions = lengths - 1  # [B]
    real = positions >= 0
    q = torch.where(real[:, None, None], q, 0).unflatten(1, (kv_heads, -1))  # [B, H_kv, G, D_k]
    gates = torch.where(real[:, None, None], gates, 0).unflatten(1, (kv_heads, -1))

    count = caches.k_cmp.shape[1]
    seen = visible_blocks(positions, count, geometry)[:, None]  # [B, 1, C]
    o_cmp, probabilities = _attend(q, *_rows(caches.k_cmp, caches.v_cmp, seen), seen, scale)
    count = geometry.num_select_blocks(size)
    importance = block_importance(probabilities.detach().sum(2), geometry, count)  # [B, H_kv, blocks]
    blocks = select_blocks(importance, positions[:, None], geometry)  # [B, H_kv, n]

    tokens = blocks[..., None] * geometry.select_block + torch.arange(geometry.select_block, device=q.device)
    tokens = tokens.flatten(2)  # [B, H_kv, n*l']
    seen = (tokens >= 0) & (tokens <= positions[:, None, None])
    o_slc, _ = _attend(q, *_gather(caches.k_slc, caches.v_slc, tokens, seen), seen, scale)

    tokens = positions[:, None, None] - torch.arange(min(geometry.window, size), device=q.device)
    tokens = tokens.expand(-1, kv_heads, -1)  # [B, H_kv, w]
    seen = tokens >= 0
    o_win, _ = _attend(q, *_gather(caches.k_win, caches.v_win, tokens, seen), seen, scale)

    g_cmp, g_slc, g_win = gates.unsqueeze(-2).unbind(-1)
    out = (g_cmp * o_cmp + g_slc * o_slc + g_win * o_win).flatten(1, 2)
    blocks = blocks.masked_fill(~real[:, None, None], -1)
    return NSAOutput(out, blocks if return_blocks else None)


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of q [B, H_kv, G, D_k] over k, v [B, H_kv, s, D] where seen [B, 1 | H_kv, s].

    Returns:
        out [B, H_kv, G, D_v] and the probabilities [B, H_kv, G, s], these in float32 at least; both 0 where
        nothing is seen.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    logits = torch.matmul(q.to(dtype) * scale, k.to(dtype).transpose(-1, -2))
    hidden = ~seen.unsqueeze(2)
    logits = logits.masked_fill(hidden, torch.finfo(dtype).min)
    probabilities = logits.softmax(-1).masked_fill(hidden, 0)
    return torch.matmul(probabilities.to(v.dtype), v), probabilities


def _rows(k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """[B, C, H_kv, D] -> [B, H_kv, C, D], zeros where nothing is seen [B, 1, C]."""
    kept = seen[..., None]
    return torch.where(kept, k.transpose(1, 2), 0), torch.where(kept, v.transpose(1, 2), 0)


def _gather(k: Tensor, v: Tensor, tokens: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens [B, H_kv, s] of k and v [B, S, H_kv, D] -> [B, H_kv, s, D], zeros where nothing is seen."""
    batch, size, kv_heads, _ = k.shape
    row = torch.arange(batch, device=k.device)[:, None, None]
    head = torch.arange(kv_heads, device=k.device)[:, None]
    index = (row, tokens.clamp(0, size - 1), head)
    kept = seen[..., None]
    return torch.where(kept, k[index], 0), torch.where(kept, v[index], 0)
