"""The `torch` backend: plain PyTorch on any device, autograd through everything but the choice of blocks.

Three paths, chosen by size alone, that agree with each other and with the oracle:
`masked` for short sequences, `chunked` for long ones and for rows that start at different positions, and
`decode` for a single token.
"""

import torch
from torch import Tensor

from nsa_kernels.geometry import BlockGeometry
from nsa_kernels.torch_.chunked import chunked_attention
from nsa_kernels.torch_.decode import decode
from nsa_kernels.torch_.masked import masked_attention
from nsa_kernels.torch_.problem import Problem, blocks_last, heads_first, heads_last
from nsa_kernels.types import Caches, NSAOutput

__all__ = ["attention", "decode"]

MASKED_KEYS_CPU = 2048
"""Keys up to which dense masks are used on a CPU."""
MASKED_KEYS_GPU = 4096
"""The same on a GPU."""


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
    problem, real = heads_first(
        q, caches, gates, geometry=geometry, start=start, lengths=lengths, scale=scale
    )
    out, blocks = _prefill(problem, return_blocks=return_blocks)
    out = heads_last(out, q.shape[0])
    if blocks is not None:
        blocks = blocks_last(blocks, q.shape[0])
    if real is not None:
        padding = ~real[..., None, None]
        out = out.masked_fill(padding, 0)
        blocks = None if blocks is None else blocks.masked_fill(padding, -1)
    return NSAOutput(out, blocks)


def _prefill(p: Problem, *, return_blocks: bool) -> tuple[Tensor, Tensor | None]:
    """Masks for what is short or selects every block anyway, runs for the rest."""
    count = p.q.shape[2]
    limit = MASKED_KEYS_CPU if p.q.device.type == "cpu" else MASKED_KEYS_GPU
    if not isinstance(p.start, int):
        return chunked_attention(p, return_blocks=return_blocks)
    if p.keys_before(count) <= limit:
        return masked_attention(p, return_blocks=return_blocks)
    head = min(limit, p.geometry.reach) - p.start
    if head <= 0:
        return chunked_attention(p, return_blocks=return_blocks)
    out, blocks = masked_attention(p.queries(0, head), return_blocks=return_blocks)
    more, more_blocks = chunked_attention(p.queries(head, count), return_blocks=return_blocks)
    if blocks is not None and more_blocks is not None:
        blocks = torch.cat([blocks, more_blocks], dim=1)
    return torch.cat([out, more], dim=2), blocks
