"""The masked backward, both passes."""

from typing import NamedTuple

import torch
from torch import Tensor

from nsa_kernels.geometry import num_blocks
from nsa_kernels.triton.backward.key_tiles import launch_key_tiles
from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.masked.forward import Kept
from nsa_kernels.triton.masked.keys import key_gradients
from nsa_kernels.triton.masked.queries import QueryGradients, query_gradients
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
    dk_cmp, dv_cmp = compressed_key_gradients(q, caches, dout, rows, grid)
    tokens = token_key_gradients(q, caches, dout, kept.members, rows, grid, shared=shared)
    dgates = rows.dgates.movedim(0, -1).to(gates.dtype)
    return Gradients(rows.dq, dk_cmp, dv_cmp, *tokens, dgates)


def compressed_key_gradients(
    q: Tensor, caches: Caches, dout: Tensor, rows: QueryGradients, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Gradients of the compressed keys and values: few keys, which chunks of the queries add to."""
    dk = torch.zeros(caches.k_cmp.shape, dtype=torch.float32, device=q.device)
    dv = torch.zeros(caches.v_cmp.shape, dtype=torch.float32, device=q.device)
    keys = min(dk.shape[1], num_blocks(grid.longest, grid.geometry))
    if keys:
        launch_key_tiles(
            q,
            caches.k_cmp,
            caches.v_cmp,
            dout,
            rows.shifts[0],
            None,
            rows.dgates[0],
            None,
            dk,
            dv,
            grid,
            shipped("masked_compressed", max(q.shape[-1], dout.shape[-1]), q.device),
            keys=keys,
            window=0,
        )
    return dk.to(caches.k_cmp.dtype), dv.to(caches.v_cmp.dtype)


def token_key_gradients(
    q: Tensor,
    caches: Caches,
    dout: Tensor,
    members: Tensor,
    rows: QueryGradients,
    grid: Grid,
    *,
    shared: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of the selected branch's keys and values and of the window's, None of those if `shared`."""
    k, v = caches.k_slc, caches.v_slc
    selected = key_gradients(q, k, v, dout, members, rows, grid, selected=True, windowed=shared)
    if shared:
        return *selected, None, None
    k, v = caches.k_win, caches.v_win
    windowed = key_gradients(q, k, v, dout, members, rows, grid, selected=False, windowed=True)
    return *selected, *windowed
