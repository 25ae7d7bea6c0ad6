"""Backward of the sliding window."""

from collections.abc import Mapping

from torch import Tensor

from nsa_kernels.triton.backward.key_tiles import launch_key_tiles
from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.tiles import Grid


def window_backward(
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
    """Gradients of the window branch; adds to `dq`.

    Args:
        q: Queries [B, N, H, D_k].
        k: Keys [B, S, H_kv, D_k].
        v: Values [B, S, H_kv, D_v].
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
    dk, dv = k.new_empty(k.shape), v.new_empty(v.shape)
    if not dq.numel():
        return dk.zero_(), dv.zero_()
    width = max(q.shape[-1], v.shape[-1])
    launch_key_tiles(
        q,
        k,
        v,
        dout,
        lse,
        gates[..., 2],
        dgates[..., 2],
        dq,
        dk,
        dv,
        grid,
        config or shipped("window_backward", width, q.device),
        keys=k.shape[1],
        window=grid.geometry.window,
    )
    return dk, dv
