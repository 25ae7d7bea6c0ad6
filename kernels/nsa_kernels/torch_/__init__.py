"""The `torch` backend: plain PyTorch on any device, autograd through everything but the choice of blocks."""

from torch import Tensor

from nsa_kernels.geometry import BlockGeometry
from nsa_kernels.torch_.masked import masked_attention
from nsa_kernels.torch_.problem import blocks_last, heads_first, heads_last
from nsa_kernels.types import NSAOutput


def attention(
    q: Tensor,
    k_cmp: Tensor,
    v_cmp: Tensor,
    k_slc: Tensor,
    v_slc: Tensor,
    k_win: Tensor,
    v_win: Tensor,
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
        q,
        k_cmp,
        v_cmp,
        k_slc,
        v_slc,
        k_win,
        v_win,
        gates,
        geometry=geometry,
        start=start,
        lengths=lengths,
        scale=scale,
    )
    if not isinstance(start, int):
        raise NotImplementedError("a start for each row")
    out, blocks = masked_attention(problem, return_blocks=return_blocks)
    out = heads_last(out, q.shape[0])
    if real is not None:
        out = out.masked_fill(~real[..., None, None], 0)
    if blocks is not None:
        blocks = blocks_last(blocks, q.shape[0])
        if real is not None:
            blocks = blocks.masked_fill(~real[..., None, None], -1)
    return NSAOutput(out, blocks)


def decode(
    q: Tensor,
    k_cmp: Tensor,
    v_cmp: Tensor,
    k_slc: Tensor,
    v_slc: Tensor,
    k_win: Tensor,
    v_win: Tensor,
    gates: Tensor,
    *,
    geometry: BlockGeometry,
    lengths: Tensor,
    scale: float,
    return_blocks: bool,
) -> NSAOutput:
    """One token a row; arguments and result as in `nsa_kernels.nsa_decode`."""
    raise NotImplementedError
