"""The masked backward, both passes."""

from typing import NamedTuple

import torch
from torch import Tensor

from nsa_kernels.geometry import num_blocks
from nsa_kernels.triton.backward.key_tiles import launch_key_tiles
from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.masked.forward import Kept
from nsa_kernels.triton.masked.keys import key_gradients
from nsa_kernels.triton.masked.queries import query_gradients
from nsa_kernels.triton.tiles import Grid
from nsa_kernels.types import Caches


class Gradients(NamedTuple):
    """Of everything that the attention takes; None for keys that have theirs with the selected branch's."""

    dq: Tensor
    dk_cmp: Tensor
    dv_cmp: Tensor
    dk_slc: Tensor
    dv_slc: Tensor
    dk_win: Tensor | None
    dv_win: Tensor | None
    dgates: Tensor


def masked_backward(
    q: Tensor, caches: Caches, gates: Tensor, dout: Tensor, kept: Kept, grid: Grid, *, shared: bool
) -> Gradients:
    """All gradients, from what the masked forward kept.

    Args:
        q: Queries [B, N, H, D_k].
        caches: Keys and values of the branches.
        gates: [B, N, H, 3], not negative.
        dout: Gradient of the gated sum [B, N, H, D_v], its last dimension contiguous.
        kept: Of the forward.
        grid: The call.
        shared: The window's keys and values are the selected branch's own tensors: what both get is one sum.
    """
    rows = query_gradients(q, caches, gates, dout, kept, grid, shared=shared)
    dk_cmp = torch.zeros(caches.k_cmp.shape, dtype=torch.float32, device=q.device)
    dv_cmp = torch.zeros(caches.v_cmp.shape, dtype=torch.float32, device=q.device)
    keys = min(caches.k_cmp.shape[1], num_blocks(grid.longest, grid.geometry))
    if keys:
        width = max(q.shape[-1], dout.shape[-1])
        launch_key_tiles(
            q, caches.k_cmp, caches.v_cmp, dout, rows.shifts[0], None, rows.dgates[0], None, dk_cmp, dv_cmp,
            grid, shipped("masked_compressed", width, q.device), keys=keys, window=0,
        )  # fmt: skip
    of_keys = (dout, kept.members, rows, grid)
    dk_slc, dv_slc = key_gradients(
        q, caches.k_slc, caches.v_slc, *of_keys, selected=True, windowed=shared
    )
    dk_win = dv_win = None
    if not shared:
        dk_win, dv_win = key_gradients(
            q, caches.k_win, caches.v_win, *of_keys, selected=False, windowed=True
        )
    return Gradients(
        rows.dq,
        dk_cmp.to(caches.k_cmp.dtype),
        dv_cmp.to(caches.v_cmp.dtype),
        dk_slc,
        dv_slc,
        dk_win,
        dv_win,
        rows.dgates.movedim(0, -1).to(gates.dtype),
    )
