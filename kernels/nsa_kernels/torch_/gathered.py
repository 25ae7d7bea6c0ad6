"""The selected branch by gathering: each query reads its own n blocks and nothing else."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_kernels.geometry import BlockGeometry
from nsa_kernels.torch_.problem import Problem


def block_table(x: Tensor, geometry: BlockGeometry) -> Tensor:
    """Cuts [R, S, D] into selection blocks [R, S', l'*D], so that a block is one row to gather.

    The last block is filled up with zeros: a copy, but only where S is no multiple of l'.
    """
    short = -x.shape[1] % geometry.select_block
    if short:
        x = F.pad(x, (0, 0, 0, short))
    return x.reshape(x.shape[0], x.shape[1] // geometry.select_block, -1)


def gathered(p: Problem, k_table: Tensor, v_table: Tensor, q: Tensor, blocks: Tensor, first: int) -> Tensor:
    """Selected branch of a run of queries.

    The G heads of a group share their blocks: for each query one matmul [G, D] x [D, n*l'].

    Args:
        p: The problem.
        k_table: Keys by block [R, S', l'*D_k].
        v_table: Values by block [R, S', l'*D_v].
        q: The run's queries [R, G, M, D_k].
        blocks: Their blocks [R, M, n], -1 = unused, ascending otherwise.
        first: Number of the first query.

    Returns:
        [R, G, M, D_v]; anything finite for a query without blocks, which is padding.
    """
    rows, group, size, dim = q.shape
    length, slots = p.geometry.select_block, p.geometry.select_count
    offsets = torch.arange(rows, device=q.device)[:, None, None] * k_table.shape[1]
    index = (blocks.clamp(min=0) + offsets).flatten()
    k, v = (
        t.flatten(0, 1).index_select(0, index).view(rows * size, slots * length, -1)
        for t in (k_table, v_table)
    )
    queries = (q * p.scale).transpose(1, 2).reshape(rows * size, group, dim)
    logits = torch.bmm(queries, k.transpose(1, 2)).view(rows, size, group, slots * length)

    # A query's blocks are ascending, so that only the last slot can hold tokens after it, when all are in use.
    masked = slots
    if isinstance(p.start, int) and p.start + first >= (slots - 1) * length:
        masked = 1
    tokens = blocks[..., -masked:, None] * length + torch.arange(length, device=q.device)
    hidden = (tokens < 0) | (tokens > p.positions(first, first + size)[..., None, None])
    tail = logits[..., -masked * length :]
    tail.masked_fill_(hidden.flatten(-2).unsqueeze(2), torch.finfo(logits.dtype).min)

    weights = torch.softmax(logits, -1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    out = torch.bmm(weights.flatten(0, 1), v)
    return out.view(rows, size, group, -1).transpose(1, 2)
