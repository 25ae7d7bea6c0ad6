"""The selected branch by gathering: each query reads its own n blocks and nothing else."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_kernels.geometry import BlockGeometry
from nsa_kernels.torch_.problem import Problem
from nsa_kernels.torch_.scratch import Scratch


def block_table(x: Tensor, geometry: BlockGeometry) -> Tensor:
    """Cuts [R, S, D] into selection blocks [R, S', l'*D], so that a block is one row to gather.

    The last block is filled up with zeros: a copy, but only where S is no multiple of l'.
    """
    short = -x.shape[1] % geometry.select_block
    if short:
        x = F.pad(x, (0, 0, 0, short))
    return x.reshape(x.shape[0], x.shape[1] // geometry.select_block, -1)


def gathered(
    p: Problem,
    tables: tuple[Tensor, Tensor],
    q: Tensor,
    blocks: Tensor,
    first: int,
    scratch: Scratch,
) -> Tensor:
    """Selected branch of a run of queries.

    The G heads of a group share their blocks: for each query one matmul [G, D] x [D, n*l'].

    Args:
        p: The problem.
        tables: Keys and values by block, [R, S', l'*D_k] and [R, S', l'*D_v].
        q: The run's queries [R, G, M, D_k].
        blocks: Their blocks [R, M, n]: ascending, then -1 for unused slots.
        first: Number of the first query.
        scratch: Memory for the intermediates.

    Returns:
        [R, G, M, D_v]; anything finite for a query without blocks, which is padding.
    """
    rows, group, size, dim = q.shape
    length, slots = p.geometry.select_block, p.geometry.select_count
    table_rows = torch.arange(rows, device=q.device)[:, None, None] * tables[0].shape[1]
    index = (blocks.clamp(min=0) + table_rows).flatten()
    k, v = (
        torch.index_select(t, 0, index, out=scratch.get(name, (len(index), t.shape[1]), t))
        for name, t in zip("kv", (t.flatten(0, 1) for t in tables), strict=True)
    )
    queries = (q * p.scale).transpose(1, 2).reshape(rows * size, group, dim)
    keys = k.view(rows * size, slots * length, dim).transpose(1, 2)
    shape = (rows * size, group, slots * length)
    logits = torch.bmm(queries, keys, out=scratch.get("logits", shape, q)).view(rows, size, group, -1)

    # Blocks are ascending: where all slots are in use, only the last can hold tokens after the query.
    full = isinstance(p.start, int) and p.start + first >= (slots - 1) * length
    masked = 1 if full else slots
    tokens = blocks[..., -masked:, None] * length + torch.arange(length, device=q.device)
    hidden = (tokens < 0) | (tokens > p.positions(first, first + size)[..., None, None])
    tail = logits[..., -masked * length :]
    tail.masked_fill_(hidden.flatten(-2).unsqueeze(2), torch.finfo(logits.dtype).min)

    weights = scratch.softmax_(logits.flatten(0, 1))
    out = torch.bmm(weights, v.view(rows * size, slots * length, -1))
    return out.view(rows, size, group, -1).transpose(1, 2)
