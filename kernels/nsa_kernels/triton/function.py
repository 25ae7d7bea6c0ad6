"""The whole attention on Triton kernels: forward, and backward for autograd."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from nsa_kernels.geometry import BlockGeometry
from nsa_kernels.triton.backward.compressed import compressed_backward
from nsa_kernels.triton.backward.gates import gate_backward
from nsa_kernels.triton.backward.selected import selected_backward
from nsa_kernels.triton.backward.window import window_backward
from nsa_kernels.triton.masked.backward import masked_backward
from nsa_kernels.triton.masked.conditions import all_chosen, serves_backward, serves_forward
from nsa_kernels.triton.masked.forward import Kept, masked_forward
from nsa_kernels.triton.prefill.compressed import compressed_forward
from nsa_kernels.triton.prefill.select import select
from nsa_kernels.triton.prefill.selected import selected_forward
from nsa_kernels.triton.prefill.window_and_forced import window_and_forced_forward
from nsa_kernels.triton.tiles import MAX_GROUP, MIN_DOT, Grid, rows_contiguous, split_width
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
    value_width = caches.v_slc.shape[-1]
    # Where the very same tensors serve both branches, what they get is one sum: autograd adds it up anyway.
    shared = caches.k_win is caches.k_slc and caches.v_win is caches.v_slc
    q, caches = _padded(q, caches)
    grid = make_grid(q, caches, geometry=geometry, start=start, lengths=lengths, scale=scale)
    out, blocks = _Attention.apply(q, *caches, gates, grid, _Call(shared, return_blocks))
    return NSAOutput(out[..., :value_width], blocks if return_blocks else None)


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
        q.unsqueeze(1), caches, gates.unsqueeze(1), geometry=geometry, start=lengths - 1, lengths=lengths,
        scale=scale, return_blocks=return_blocks,
    )  # fmt: skip
    return NSAOutput(out.squeeze(1), None if blocks is None else blocks.squeeze(1))


def make_grid(
    q: Tensor,
    caches: Caches,
    *,
    geometry: BlockGeometry,
    start: int | Tensor,
    lengths: Tensor | None,
    scale: float,
) -> Grid:
    """Positions and sizes of a call, without asking the device.

    Raises:
        ValueError: A group of query heads does not fit into a tile.
    """
    batch, count, heads, _ = q.shape
    keys, kv_heads = caches.k_slc.shape[1:3]
    if heads // kv_heads > MAX_GROUP:
        raise ValueError(
            f"the triton backend takes up to {MAX_GROUP} query heads to a KV head, got {heads // kv_heads}; "
            f"use backend='torch'"
        )
    if isinstance(start, Tensor):
        starts = start.clamp(min=0).to(torch.int32)
        longest = keys
    else:
        starts = torch.full((batch,), start, dtype=torch.int32, device=q.device)
        longest = min(keys, start + count)
    if lengths is None:
        ends = torch.full((batch,), keys, dtype=torch.int32, device=q.device)
    else:
        ends = lengths.clamp(max=keys).to(torch.int32)
    return Grid(
        geometry=geometry,
        starts=starts,
        ends=ends,
        batch=batch,
        queries=count,
        keys=keys,
        heads=heads,
        kv_heads=kv_heads,
        scale=scale,
        longest=longest,
        padded=lengths is not None or isinstance(start, Tensor),
    )


class _Call(NamedTuple):
    shared: bool
    """Window and selected branch have the very same keys and values."""
    blocks: bool
    """The caller asks for the blocks."""


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, *rest: Any) -> tuple[Tensor, Tensor | None]:
        *tensors, gates, grid, call = rest
        caches, save = Caches(*tensors), any(ctx.needs_input_grad)
        ctx.grid, ctx.call = grid, call
        widths = q.shape[-1], caches.v_slc.shape[-1]
        ctx.masked = False
        if serves_forward(grid, *widths, q.dtype):
            ctx.masked = serves_backward(grid, shared=call.shared)
            out, kept, blocks = _masked(q, caches, gates, grid, call, save=save)
        else:
            out, kept, blocks = _gathered(q, caches, gates, grid, save=save)
        if save:
            lists = () if ctx.masked else (blocks,)
            ctx.save_for_backward(q, *caches, gates, *kept, *lists)
        if blocks is not None:
            ctx.mark_non_differentiable(blocks)
        return out, blocks

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        saved, grid = ctx.saved_tensors, ctx.grid
        q, caches, gates = saved[0], Caches(*saved[1:7]), saved[7]
        kept = Kept(*saved[8:15])
        dout = rows_contiguous(dout)
        if ctx.masked:
            gradients = masked_backward(q, caches, gates, dout, kept, grid, shared=ctx.call.shared)
            return *gradients, None, None
        blocks = saved[15]
        dgates = gate_backward(dout, kept.o_cmp, kept.o_slc, kept.o_win, grid)
        dq = torch.zeros(q.shape, dtype=torch.float32, device=q.device)  # the branches add to it
        upstream = (gates, dgates)
        dk_cmp, dv_cmp = compressed_backward(
            q, caches.k_cmp, caches.v_cmp, dout, kept.lse_cmp, *upstream, dq, grid
        )
        dk_slc, dv_slc = selected_backward(
            q, caches.k_slc, caches.v_slc, dout, kept.lse_slc, *upstream, blocks, dq, grid
        )
        dk_win, dv_win = window_backward(
            q, caches.k_win, caches.v_win, dout, kept.lse_win, *upstream, dq, grid
        )
        dq = torch.mul(dq, grid.scale, out=torch.empty_like(q))
        return dq, dk_cmp, dv_cmp, dk_slc, dv_slc, dk_win, dv_win, dgates.to(gates.dtype), None, None


def _gathered(
    q: Tensor, caches: Caches, gates: Tensor, grid: Grid, *, save: bool
) -> tuple[Tensor, Kept, Tensor]:
    """The forward in which a query reads the blocks that it chose."""
    o_cmp, lse_cmp = compressed_forward(q, caches.k_cmp, caches.v_cmp, grid)
    blocks = select(q, caches.k_cmp, lse_cmp, grid)
    (o_win, lse_win), forced = window_and_forced_forward(q, caches, grid)
    out, o_slc, lse_slc = selected_forward(
        q, caches.k_slc, caches.v_slc, blocks, gates, o_cmp, o_win, *forced, grid, save=save
    )
    return out, Kept(o_cmp, o_slc, o_win, lse_cmp, lse_slc, lse_win, blocks.new_empty(0)), blocks


def _masked(
    q: Tensor, caches: Caches, gates: Tensor, grid: Grid, call: _Call, *, save: bool
) -> tuple[Tensor, Kept, Tensor | None]:
    """The forward in which a query's tile goes through all blocks that any of it chose; see `masked`."""
    compressed = chosen = None
    if call.blocks or not all_chosen(grid):
        compressed = compressed_forward(q, caches.k_cmp, caches.v_cmp, grid)
        chosen = select(q, caches.k_cmp, compressed[1], grid)
    if all_chosen(grid):
        compressed = None  # the kernel has it in it
    lists = None if compressed is None else chosen
    out, kept = masked_forward(q, caches, gates, compressed, lists, grid, shared=call.shared, save=save)
    return out, kept, chosen


def _padded(q: Tensor, caches: Caches) -> tuple[Tensor, Caches]:
    """Zeros behind widths that the kernels do not take, and dense rows: neither changes a score."""

    def fit(x: Tensor, width: int) -> Tensor:
        if x.shape[-1] != width:
            return F.pad(x, (0, width - x.shape[-1])).contiguous()  # pad keeps a channels-last layout
        return rows_contiguous(x)

    key_width = _next_width(q.shape[-1])
    value_width = max(MIN_DOT, triton.next_power_of_2(caches.v_slc.shape[-1]))
    widths = [key_width, value_width] * 3
    return fit(q, key_width), Caches(*(fit(x, width) for x, width in zip(caches, widths, strict=True)))


def _next_width(width: int) -> int:
    """The least width from this on that `split_width` can cut."""
    while True:
        try:
            split_width(width)
        except ValueError:
            width += 1
        else:
            return width
