"""Backward of the gated sum: what each gate gets, which is also what the softmax backward subtracts."""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.tiles import Grid


def gate_backward(
    dout: Tensor,
    o_cmp: Tensor,
    o_slc: Tensor,
    o_win: Tensor,
    grid: Grid,
    *,
    config: Mapping[str, int] | None = None,
) -> Tensor:
    """Gradient of the gates: <dout, out_b> for each branch b.

    Args:
        dout: Gradient of the gated sum [B, N, H, D_v].
        o_cmp: Output of the compressed branch before its gate [B, N, H, D_v]; so the other two.
        o_slc: The selected branch's.
        o_win: The window branch's.
        grid: The call.
        config: Launch; None = as shipped.

    Returns:
        float32 [B, N, H, 3], 0 at padding. Each branch is contiguous in memory, [3, B, N, H].
    """
    batch, queries, heads, width = dout.shape
    dgates = dout.new_empty(3, batch, queries, heads, dtype=torch.float32)
    if dgates.numel():
        launch = dict(config or shipped("gate_backward", width, dout.device))
        rows = launch.pop("BM")
        _gate_backward[(triton.cdiv(queries * heads, rows), batch)](
            dout,
            o_cmp,
            o_slc,
            o_win,
            dgates,
            grid.starts,
            grid.ends,
            *dout.stride()[:3],
            *o_cmp.stride()[:3],
            *o_slc.stride()[:3],
            *o_win.stride()[:3],
            queries,
            dgates[0].numel(),
            H=heads,
            D=width,
            BM=rows,
            **launch,
        )
    return dgates.movedim(0, -1)


@triton.jit
def _gate_backward(
    DOUT,
    CMP,
    SLC,
    WIN,
    DGATES,
    STARTS,
    ENDS,
    dout_b,
    dout_n,
    dout_h,
    cmp_b,
    cmp_n,
    cmp_h,
    slc_b,
    slc_n,
    slc_h,
    win_b,
    win_n,
    win_h,
    queries,
    branch_stride,
    H: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
):
    """A program: BM rows (query, head) of one row of the batch, all three branches."""
    b = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    n = row // H
    h = row % H
    d = tl.arange(0, D)[None, :]
    real = n < tl.minimum(queries, tl.load(ENDS + b) - tl.load(STARTS + b))
    mask = real[:, None]
    dout = tl.load(DOUT + b * dout_b + (n * dout_n + h * dout_h)[:, None] + d, mask, other=0.0)
    o_cmp = tl.load(CMP + b * cmp_b + (n * cmp_n + h * cmp_h)[:, None] + d, mask, other=0.0)
    o_slc = tl.load(SLC + b * slc_b + (n * slc_n + h * slc_h)[:, None] + d, mask, other=0.0)
    o_win = tl.load(WIN + b * win_b + (n * win_n + h * win_h)[:, None] + d, mask, other=0.0)
    dout = dout.to(tl.float32)
    out = DGATES + b * queries * H + row
    inside = n < queries
    tl.store(out, tl.sum(dout * o_cmp.to(tl.float32), 1), inside)
    tl.store(out + branch_stride, tl.sum(dout * o_slc.to(tl.float32), 1), inside)
    tl.store(out + 2 * branch_stride, tl.sum(dout * o_win.to(tl.float32), 1), inside)
