"""Backward of the gated sum: what each gate gets, which is also what the softmax backward subtracts."""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.tiles import Grid, launch_options


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
        chosen = config or shipped("gate_backward", width, dout.device)
        rows = chosen["BM"]
        _gate_backward_kernel[(triton.cdiv(queries * heads, rows), batch)](
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
            **launch_options(chosen),
        )
    return dgates.movedim(0, -1)


@triton.jit
def _load(X, batch, query, head, real, stride_b, stride_n, stride_h, D: tl.constexpr):
    """Rows [BM, D] of a tensor [B, N, H, D], 0 where not `real`."""
    rows = X + batch * stride_b + (query * stride_n + head * stride_h)[:, None]
    return tl.load(rows + tl.arange(0, D)[None, :], real[:, None], other=0.0)


@triton.jit
def _gate_backward_kernel(
    Dout,
    O_cmp,
    O_slc,
    O_win,
    Dgates,
    Starts,
    Ends,
    stride_dob,
    stride_don,
    stride_doh,
    stride_ocb,
    stride_ocn,
    stride_och,
    stride_osb,
    stride_osn,
    stride_osh,
    stride_owb,
    stride_own,
    stride_owh,
    queries,
    branch_stride,
    H: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
):
    """A program: BM rows (query, head) of one row of the batch, all three branches."""
    batch = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    query = row // H
    head = row % H
    real = query < tl.minimum(queries, tl.load(Ends + batch) - tl.load(Starts + batch))
    dout = _load(Dout, batch, query, head, real, stride_dob, stride_don, stride_doh, D)
    o_cmp = _load(O_cmp, batch, query, head, real, stride_ocb, stride_ocn, stride_och, D)
    o_slc = _load(O_slc, batch, query, head, real, stride_osb, stride_osn, stride_osh, D)
    o_win = _load(O_win, batch, query, head, real, stride_owb, stride_own, stride_owh, D)
    dout = dout.to(tl.float32)
    out = Dgates + batch * queries * H + row
    inside = query < queries
    tl.store(out, tl.sum(dout * o_cmp.to(tl.float32), 1), inside)
    tl.store(out + branch_stride, tl.sum(dout * o_slc.to(tl.float32), 1), inside)
    tl.store(out + 2 * branch_stride, tl.sum(dout * o_win.to(tl.float32), 1), inside)
