"""Backward of the compressed branch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nsa_kernels.geometry import num_blocks
from nsa_kernels.triton.backward.key_tiles import launch_key_tiles
from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.tiles import Grid


def compressed_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    lse: Tensor,
    gates: Tensor,
    dgates: Tensor,
    dq: Tensor,
    grid: Grid,
    *,
    config: Mapping[str, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of the compressed branch; adds to `dq`.

    Early keys are seen by more queries than late ones: the queries are cut into chunks, and what the chunks
    give to a key is added up in float32.

    Args:
        q: Queries [B, N, H, D_k].
        k: Compressed keys [B, C, H_kv, D_k].
        v: Compressed values [B, C, H_kv, D_v].
        dout: Gradient of the gated sum [B, N, H, D_v].
        lse: Of the forward, float32 [B, N, H].
        gates: [B, N, H, 3].
        dgates: From `gate_backward`, float32 [B, N, H, 3].
        dq: float32 [B, N, H, D_k], without the factor `scale`: added to.
        grid: The call.
        config: Launch, see `launch_key_tiles`; None = as shipped.

    Returns:
        dk and dv, in the dtypes and shapes of k and v.
    """
    dk = torch.zeros(k.shape, dtype=torch.float32, device=k.device)
    dv = torch.zeros(v.shape, dtype=torch.float32, device=v.device)
    keys = min(k.shape[1], num_blocks(grid.longest, grid.geometry))
    if keys and dq.numel():
        width = max(q.shape[-1], v.shape[-1])
        launch_key_tiles(
            q,
            k,
            v,
            dout,
            lse,
            gates[..., 0],
            dgates[..., 0],
            dq,
            dk,
            dv,
            grid,
            config or shipped("compressed_backward", width, q.device),
            keys=keys,
            window=0,
        )
    return dk.to(k.dtype), dv.to(v.dtype)
