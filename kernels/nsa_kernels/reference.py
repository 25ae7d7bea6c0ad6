"""The oracle: the definition of the attention written out token by token, in float64.

Slow on purpose. Every other backend is tested against it, on outputs, blocks and gradients.
"""

import torch
from torch import Tensor

from nsa_kernels.geometry import BlockGeometry, num_blocks
from nsa_kernels.types import Caches, NSAOutput


def attention(
    q: Tensor,
    caches: Caches,
    gates: Tensor,
    *,
    geometry: BlockGeometry,
    start: int | Tensor,
    lengths: Tensor | None,
    scale: float,
    return_blocks: bool,
) -> NSAOutput:
    """Prefill; arguments and result as in `nsa_kernels.nsa_attention`."""
    k_cmp, v_cmp, k_slc, v_slc, k_win, v_win = caches
    batch, count, heads, _ = q.shape
    size, kv_heads = k_slc.shape[1], k_slc.shape[2]
    group = heads // kv_heads
    starts = start.tolist() if isinstance(start, Tensor) else [start] * batch
    ends = lengths.tolist() if lengths is not None else [size] * batch
    blocks = torch.full(
        (batch, count, kv_heads, geometry.select_count), -1, dtype=torch.int32, device=q.device
    )
    nothing = q.new_zeros(group, v_slc.shape[-1], dtype=torch.float64)
    outputs = []
    for b in range(batch):
        for i in range(count):
            t = starts[b] + i
            for h in range(kv_heads):
                if not 0 <= t < ends[b]:  # padding
                    outputs.append(nothing)
                    continue
                mine = slice(h * group, (h + 1) * group)
                queries = q[b, i, mine].double() * scale
                seen = num_blocks(t + 1, geometry)
                o_cmp = nothing
                p = nothing.new_zeros(group, 0)
                if seen:
                    p = torch.softmax(queries @ k_cmp[b, :seen, h].double().T, dim=-1)
                    o_cmp = p @ v_cmp[b, :seen, h].double()
                chosen = select(p.sum(0).tolist(), t, geometry)
                blocks[b, i, h, : len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
                tokens = [s for j in chosen for s in _tokens(j, geometry) if s <= t]
                o_slc = _softmax_attention(queries, k_slc[b, :, h], v_slc[b, :, h], tokens)
                tokens = list(range(max(0, t - geometry.window + 1), t + 1))
                o_win = _softmax_attention(queries, k_win[b, :, h], v_win[b, :, h], tokens)
                g_cmp, g_slc, g_win = gates[b, i, mine].double().unsqueeze(-2).unbind(-1)
                outputs.append(g_cmp * o_cmp + g_slc * o_slc + g_win * o_win)
    out = (
        torch.stack(outputs).view(batch, count, heads, -1) if outputs else v_slc.new_zeros(batch, 0, heads, 0)
    )
    return NSAOutput(out.to(q.dtype), blocks.to(q.device) if return_blocks else None)


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
    """One token a row: a prefill of one query that stands at lengths - 1."""
    out, blocks = attention(
        q.unsqueeze(1),
        caches,
        gates.unsqueeze(1),
        geometry=geometry,
        start=lengths - 1,
        lengths=lengths,
        scale=scale,
        return_blocks=return_blocks,
    )
    return NSAOutput(out.squeeze(1), None if blocks is None else blocks.squeeze(1))


def importance(p: list[float], count: int, geometry: BlockGeometry) -> list[float]:
    """Importance of the selection blocks 0..count-1 from the group's probabilities over compressed keys."""
    pieces, shares = geometry.select_block // geometry.stride, geometry.block // geometry.stride
    scores = []
    for j in range(count):
        score = 0.0
        for m in range(pieces):
            for r in range(shares):
                i = pieces * j + m - r
                if 0 <= i < len(p):
                    score += p[i]
        scores.append(score)
    return scores


def select(p: list[float], t: int, geometry: BlockGeometry) -> list[int]:
    """Blocks of the token at position t, ascending: the forced, then by importance, lower index first."""
    own = t // geometry.select_block
    scores = importance(p, own + 1, geometry)
    chosen = {
        *range(min(geometry.first_blocks, own + 1)),
        *range(max(0, own - geometry.last_blocks + 1), own + 1),
    }
    for j in sorted(range(own + 1), key=lambda j: (-scores[j], j)):
        if len(chosen) < geometry.select_count:
            chosen.add(j)
    return sorted(chosen)


def _tokens(j: int, geometry: BlockGeometry) -> range:
    return range(j * geometry.select_block, (j + 1) * geometry.select_block)


def _softmax_attention(queries: Tensor, keys: Tensor, values: Tensor, tokens: list[int]) -> Tensor:
    """Attention of [G, D_k] scaled queries over some tokens of keys [S, D_k] and values [S, D_v]."""
    p = torch.softmax(queries @ keys[tokens].double().T, dim=-1)
    return p @ values[tokens].double()
